"""Figures: every setting is there, errors are named, and the same numbers give the same bytes."""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from invented_rows import BY, PROVENANCE, curves, invent, rows, summary  # noqa: F401
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from modmem.figures import COLORS, draw_bars, draw_dial, draw_tradeoff, save_figure, save_picture
from modmem.tables import compare_published, save_table, summarize


def bars_of(figure):
    return [(patch.get_facecolor(), round(patch.get_height(), 6)) for axes in figure.axes for patch in axes.patches]


def texts_of(figure):
    legend_texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return legend_texts, [text.get_text() for axes in figure.axes for text in axes.texts]


def test_bars_show_every_setting_and_name_their_error(summary):
    figure = draw_bars(summary, "position", "block")
    heights = bars_of(figure)
    assert [height for _, height in heights] == [25, 25, 75, 75]  # unmodified first; the middle is not run
    assert [color for color, _ in heights] == [to_rgba(COLORS[name]) for name in ("unmodified", "unmodified", "modified", "modified")]
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


def test_a_point_of_a_tradeoff_has_a_whisker_of_one_error_in_each_direction(curves):
    figure = draw_tradeoff(curves[curves["position"] == "first"].assign(unmodified_accuracy_se=2.0), "position", "block")
    across, up = (collection.get_segments() for collection in figure.axes[0].collections if isinstance(collection, LineCollection))
    error = curves["modified_accuracy_se"][0]
    np.testing.assert_allclose(across, [[[23, 75], [27, 75]]] * 3)
    np.testing.assert_allclose(up, [[[25, 75 - error], [25, 75 + error]]] * 3)


def test_whiskers_of_bars_are_the_errors_of_the_table_and_never_cut():
    summary = summarize(pd.DataFrame(invent(values=[80.0, 98.0, 110.0])), ["position"], error="sd")  # 96 and 15.1
    figure = draw_bars(summary, "position", "block")
    _, modified = (line.get_ydata() for line in figure.axes[0].lines)
    mean, deviation = summary.loc[0, ["modified_accuracy", "modified_accuracy_sd"]]
    np.testing.assert_allclose(modified, [mean - deviation, mean + deviation])
    assert figure.axes[0].get_ylim()[1] > mean + deviation > 100


def test_a_bar_of_zero_does_not_look_like_one_that_was_not_run(summary):
    summary.loc[0, "modified_accuracy"] = 0.0
    assert texts_of(draw_bars(summary, "position", "block"))[1] == ["0", "not run"]


def test_two_settings_share_a_tradeoff_one_as_colour_and_one_as_shape(curves):
    both = pd.concat([curves.assign(norm="L-infinity"), curves.assign(norm="L2")])
    legend, _ = texts_of(draw_tradeoff(both, "norm", "norm, block", "position"))
    assert {"L-infinity, first", "L-infinity, middle (not run)", "L2, last"} <= set(legend)
    with pytest.raises(ValueError, match="several points have the same norm and radius"):
        draw_tradeoff(both, "norm", "norm")


def test_the_dial_ends_without_a_limit(curves):
    figure = draw_dial(curves[curves["position"] == "first"])
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == {"modified facts, A$_M$", "all others, A$_{F\\backslash S}$", "their mean"}
    assert [label.get_text() for label in axes.get_xticklabels()][::2] == ["0.001", "no limit"] and axes.get_xscale() == "log"


def test_a_dial_without_rows_is_empty_and_one_without_an_end_has_no_names(curves):
    (empty,) = draw_dial(curves[curves["position"] == "middle"]).axes
    assert not empty.lines and not empty.texts
    (bounded,) = draw_dial(curves[np.isfinite(curves["radius"])]).axes
    assert len(bounded.lines) == 3 and not bounded.texts


def test_the_same_rows_give_the_same_bytes_whatever_the_run(tmp_path, rows, summary, curves):
    for run in ("one", "two"):
        provenance = PROVENANCE | {"seconds": len(run) + ord(run[0]), "commit": run}
        again = summarize(rows, BY, pd.DataFrame({"position": ["first", "middle", "last"]}))
        with plt.rc_context({} if run == "one" else {"font.size": 30, "savefig.dpi": 10, "svg.hashsalt": None}):  # somebody's own style
            figure = draw_tradeoff(again, "position", "block")
            save_picture(tmp_path / run, "dial", draw_dial(again[again["position"] == "first"]), again)
            save_figure(tmp_path / run, "tradeoff", figure, again, compare_published(again, None, BY), "A caption.", provenance)
        save_table(tmp_path / run, "table_3", summary, compare_published(summary, None, ["position"]), "A caption.", provenance)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {*(f"tradeoff.{kind}" for kind in ("csv", "md", "svg", "png", "json")), *(f"dial.{kind}" for kind in ("csv", "svg", "png")), *(f"table_3.{kind}" for kind in ("csv", "md", "json"))}
    same = {name for name in names if (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()}
    assert names - same == {"tradeoff.json", "table_3.json"}
