"""Lines, points and the forest: whiskers reach as far as the numbers say."""
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from modmem.figures import COLORS
from modmem.whiskers import draw_forest, draw_lines, draw_points


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


def test_points_stand_at_their_difference_with_one_error_to_each_side():
    table = pd.DataFrame({"constraint": ["x", "y"], "runs": 5, "area": [-2.0, 3.0], "area_se": [0.5, np.nan]})
    figure = draw_points(table, "constraint", {"area": "area"}, "points")
    ends = sorted(tuple(np.round(line.get_xdata(), 6)) for line in figure.axes[0].lines if len(line.get_xdata()) == 2)
    assert (-2.5, -1.5) in ends and (3, 3) in ends
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["area", "± standard error, 5 runs"]


def test_lines_have_a_panel_for_each_unit_and_axes_that_fit():
    table = pd.DataFrame({"size": [1000, 1000000], "make keys (s)": [0.01, 10.0], "asking (GB)": [0.5, 7.0]})
    figure = draw_lines(table, "size", "facts", {"seconds": {"make keys (s)": "make keys"}, "GB": {"asking (GB)": "asking"}}, log=True)
    assert [axes.get_ylabel() for axes in figure.axes] == ["seconds", "GB"] and {axes.get_yscale() for axes in figure.axes} == {"log"}
    plain = draw_lines(table, "size", "facts", {"GB": {"asking (GB)": "asking"}})
    assert plain.axes[0].get_ylim()[0] == 0 and list(plain.axes[0].lines[0].get_ydata()) == [0.5, 7]
