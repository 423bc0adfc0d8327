"""Figures: every setting is there, errors are named, and the same numbers give the same bytes."""
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from invented_rows import BY, PROVENANCE, curves, invent, rows, summary  # noqa: F401

from modmem import figures
from modmem.figures import draw_bars, draw_tradeoff, save_figure
from modmem.tables import compare_published, save_table, summarize


def bars_of(figure):
    return [(patch.get_facecolor(), round(patch.get_height(), 6)) for axes in figure.axes for patch in axes.patches]


def texts_of(figure):
    legend_texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return legend_texts, [text.get_text() for axes in figure.axes for text in axes.texts]


def test_bars_show_every_setting_and_name_their_error(summary):
    figure = draw_bars(summary, "position", "block")
    heights = bars_of(figure)
    assert [height for _, height in heights[:3:2] + heights[3::2]] == [25, 25, 75, 75]  # unmodified first; the middle is not run
    assert math.isnan(heights[1][1]) and len({color for color, _ in heights[:3]}) == 1 and len({color for color, _ in heights}) == 2
    legend, texts = texts_of(figure)
    assert legend == ["unmodified", "modified", "± standard error, 3 runs"] and texts == ["not run"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["first", "middle", "last"]
    assert figure.axes[0].get_ylim() == (0, 100) and figure.get_figwidth() == 3.3


def test_the_legend_says_standard_deviation_or_that_runs_are_single():
    deviation = summarize(pd.DataFrame(invent()), ["position"], error="sd")
    single = summarize(pd.DataFrame(invent(values=[70.0])), ["position"])
    assert "± standard deviation, 3 runs" in texts_of(draw_bars(deviation, "position", ""))[0]
    assert "single runs: no errors" in texts_of(draw_bars(single, "position", ""))[0]


def test_bars_have_a_panel_for_each_value():
    rows = pd.DataFrame([{**row, "num_modified": size} for size in (8, 32, 128) for row in invent()])
    figure = draw_bars(summarize(rows, ["num_modified", "position"]), "position", "block", "num_modified", "|M| = {}")
    assert [axes.get_title() for axes in figure.axes] == ["|M| = 8", "|M| = 32", "|M| = 128", ""]
    assert not plt.get_fignums()


def test_a_tradeoff_curve_runs_along_the_radius_and_names_what_was_not_run(curves):
    shuffled = curves.sample(frac=1, random_state=0)
    shuffled.loc[shuffled["radius"] == 0.002, "modified_accuracy"] = 50
    figure = draw_tradeoff(shuffled, "position", "block")
    (line, *_) = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    assert list(line.get_ydata()) == [75, 50, 75] and list(line.get_xdata()) == [25, 25, 25]
    legend, _ = texts_of(figure)
    assert sorted(legend[:3]) == ["first", "last", "middle (not run)"] and "± standard error, 3 runs" in legend


def test_a_tradeoff_of_mixed_settings_is_refused(curves):
    with pytest.raises(ValueError, match="several points have the same position and radius"):
        draw_tradeoff(pd.concat([curves, curves]), "position", "block")


def test_the_band_is_one_error_wide_in_every_direction():
    band = figures._sweep(np.array([[10.0, 20.0], [30.0, 20.0]]), np.array([[2.0, 1.0], [4.0, 3.0]]))
    for inside in ([8.1, 20], [10, 20.9], [20, 21.9], [30, 22.9], [33.9, 20]):
        assert band.contains_point(inside), inside
    for outside in ([7.9, 20], [10, 21.3], [20, 22.3], [30, 23.1], [34.1, 20], [33.5, 22.5]):
        assert not band.contains_point(outside), outside


def test_the_same_rows_give_the_same_bytes_whatever_the_run(tmp_path, rows, summary, curves):
    for run in ("one", "two"):
        provenance = PROVENANCE | {"seconds": len(run) + ord(run[0]), "commit": run}
        again = summarize(rows, BY, pd.DataFrame({"position": ["first", "middle", "last"]}))
        with plt.rc_context({} if run == "one" else {"font.size": 30, "savefig.dpi": 10, "svg.hashsalt": None}):  # somebody's own style
            figure = draw_tradeoff(again, "position", "block")
            save_figure(tmp_path / run, "tradeoff", figure, again, compare_published(again, None, BY), "A caption.", provenance)
        save_table(tmp_path / run, "table_3", summary, compare_published(summary, None, ["position"]), "A caption.", provenance)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {*(f"tradeoff.{kind}" for kind in ("csv", "md", "svg", "png", "json")), *(f"table_3.{kind}" for kind in ("csv", "md", "json"))}
    same = {name for name in names if (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()}
    assert names - same == {"tradeoff.json", "table_3.json"}
