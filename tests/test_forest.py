"""The forest of claims: intervals, margins and verdicts are where the numbers say."""
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from modmem.figures import COLORS
from modmem.forest import draw_forest


@pytest.fixture
def checked():
    rows = [
        ("b_c", "Section 2", "more than", 50, -140.0, 30.0, 40.0, "contradicted"), ("a", "Section 1", "within", 2, -1.0, 0.0, 1.0, "holds"),
        ("d", "Section 2", "more than", 0, -5.0, 1.0, 110.0, "undecided"), ("e", "Section 1", "more than", 10, np.nan, np.nan, np.nan, "not run"),
    ]
    return pd.DataFrame(rows, columns=["name", "section", "kind", "margin", "low", "effect", "high", "verdict"])


def test_the_forest_has_every_claim_below_its_section_in_the_colour_of_its_verdict(checked):
    (axes,) = (figure := draw_forest(checked)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b c", "d", "a", "e"]
    assert [text.get_text() for text in axes.texts] == ["Section 2", "Section 1"]
    (intervals,) = (drawn for drawn in axes.collections if isinstance(drawn, LineCollection))
    assert [tuple(segment[:, 0]) for segment in intervals.get_segments()[:3]] == [(-140, 40), (-5, 110), (-1, 1)]
    assert [to_hex(color) for color in intervals.get_colors()[:3]] == [COLORS[name] for name in ("contradicted", "undecided", "holds")]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["1 holds", "1 contradicted", "1 undecided", "1 not run", "where the claim would hold"]


def test_the_shade_of_the_forest_is_where_the_claim_would_hold(checked):
    (axes,) = draw_forest(checked).axes
    right = axes.get_xlim()[1]
    assert [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches] == [(50, right), (0, right), (-2, 2), (10, right)]


def test_an_interval_that_leaves_the_forest_ends_in_an_arrow(checked):
    (axes,) = draw_forest(checked).axes
    left, right = axes.get_xlim()
    heights = axes.get_yticks()
    arrows = [tuple(drawn.get_offsets()[0]) for drawn in axes.collections if not isinstance(drawn, LineCollection) and len(drawn.get_offsets()) == 1]
    assert arrows == [(left, heights[0]), (right, heights[1])]
