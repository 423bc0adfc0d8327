"""Means, tables, figures and the page: what is shown, and that nothing is left out."""
import json
import math
import re
import subprocess
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from modmem import report
from modmem.report import (
    build_report,
    compare_published,
    describe_run,
    draw_bars,
    draw_tradeoff,
    format_mean_error,
    load_published,
    save_figure,
    save_table,
    summarize,
)

BY = ["position", "radius"]
RADII = [0.001, 0.002, math.inf]
PROVENANCE = {"parameters": {"radii": RADII}, "seeds": [0, 1, 2], "device": "cpu", "seconds": 1.0, "cuts": ["3 runs, not 5"], "versions": {}, "commit": None}


def invent(position="first", radius=0.001, values=(70.0, 76.0, 79.0)):
    for seed, value in enumerate(values):
        accuracies = {"modified_accuracy": value, "unmodified_accuracy": 100 - value, "average_accuracy": 50.0}
        yield {"position": position, "radius": radius, "seed": seed, "num_modified": 32, **accuracies}


@pytest.fixture
def rows():
    return pd.DataFrame([row for position in ("first", "last") for radius in RADII for row in invent(position, radius)])


@pytest.fixture
def summary(rows):
    return summarize(rows[rows["radius"] == 0.001], ["position"], pd.DataFrame({"position": ["first", "middle", "last"]}))


@pytest.fixture
def curves(rows):
    return summarize(rows, BY, pd.DataFrame({"position": ["first", "middle", "last"]}))


def test_mean_standard_error_and_standard_deviation_divide_by_n_minus_1():
    rows = pd.DataFrame(invent())
    for error, expected in (("se", math.sqrt(21 / 3)), ("sd", math.sqrt(21))):  # deviations -5, 1, 4: squares sum to 42
        (row,) = summarize(rows, BY, error=error).to_dict("records")
        assert row["modified_accuracy"] == 75 and row["runs"] == 3
        assert row[f"modified_accuracy_{error}"] == pytest.approx(expected)
        assert row[f"average_accuracy_{error}"] == 0
    with pytest.raises(ValueError, match="'ci'"):
        summarize(rows, BY, error="ci")


def test_a_single_run_has_no_error():
    (row,) = summarize(pd.DataFrame(invent(values=[70.0])), BY).to_dict("records")
    assert row["runs"] == 1 and row["modified_accuracy"] == 70 and math.isnan(row["modified_accuracy_se"])


def test_a_row_without_an_accuracy_does_not_count():
    rows = pd.DataFrame([*invent(values=[70.0, 76.0, math.nan]), *invent("last", values=[math.nan])], dtype=object)
    summary = summarize(rows, BY).set_index("position")
    assert summary["runs"].tolist() == [2, 0] and summary.loc["first", "modified_accuracy"] == 73
    assert math.isnan(summary.loc["last", "modified_accuracy"])


def test_rows_that_all_failed_are_groups_without_runs():
    failed = pd.DataFrame({"position": ["last", "first"], "seed": 0, "status": "failed"})  # a store leaves out empty columns
    assert summarize(failed, ["position"])[["position", "runs"]].to_numpy().tolist() == [["first", 0], ["last", 0]]
    with pytest.raises(KeyError):
        summarize(failed.assign(status="done"), ["position"])


def test_the_order_of_the_rows_does_not_matter(rows):
    rows["modified_accuracy"] /= 3
    first = summarize(rows, BY)
    for seed in range(5):
        pd.testing.assert_frame_equal(summarize(rows.sample(frac=1, random_state=seed), BY), first, check_exact=True)
    mixed = pd.DataFrame({"blocks": ["all", 5, 0, "0"], "modified_accuracy": 1.0})
    assert summarize(mixed, ["blocks"], columns=["modified_accuracy"])["blocks"].map(str).tolist() == ["0", "0", "5", "all"]


def test_a_seed_that_stands_twice_in_a_group_is_refused(rows):
    with pytest.raises(ValueError, match=r"'position': 'first', 'seed': 0.*missing in `by`"):
        summarize(rows, ["position"])


def test_expected_settings_come_in_order_and_missing_ones_have_no_runs(rows):
    expected = pd.DataFrame({"num_modified": [32.0, 32.0, 8.0], "position": ["last", "first", "first"]})  # 32.0 meets 32
    summary = summarize(rows, ["num_modified", *BY], expected)
    assert list(zip(summary["position"], summary["num_modified"], summary["runs"])) == [("last", 32, 3)] * 3 + [("first", 32, 3)] * 3 + [("first", 8, 0)]
    assert summarize(pd.DataFrame([]), BY, expected[["position"]].drop_duplicates())["runs"].tolist() == [0, 0]


def test_rows_that_were_not_expected_are_refused(rows):
    with pytest.raises(ValueError, match="'last', which is not expected"):
        summarize(rows, BY, pd.DataFrame({"position": ["first"]}))


def test_a_setting_without_a_value_is_a_group_like_others():
    rows = pd.DataFrame([*invent(None), *invent("last")])
    assert summarize(rows, ["position"])["runs"].tolist() == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((75, 3.194), "75.00 (3.19)"), ((75,), "75.00"), ((75, 0.0), "75.00 (0.00)"), ((math.nan, 1.0), "not run"), ((34039, math.nan, 0), "34,039")],
)
def test_means_and_errors_are_written_as_in_the_paper(arguments, expected):
    assert format_mean_error(*arguments) == expected


def test_published_numbers_are_found_and_figures_have_none(tmp_path):
    assert load_published("table_2").loc[0, ["blocks", "average_accuracy"]].tolist() == ["0", 47.47]
    assert load_published("table_1")["note"].tolist() == [""] * 4
    with pytest.raises(ValueError, match="'figure_1': there are table_1, .*figures print no values"):
        load_published("figure_1")
    with pytest.raises(ValueError, match="there are none"):
        load_published("table_1", tmp_path)


def test_an_installed_package_looks_beside_itself(tmp_path, monkeypatch):
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "table_1.csv").write_text("blocks,note\n7,\n")
    monkeypatch.setattr(report.modmem, "__file__", str(tmp_path / "__init__.py"))
    assert load_published("table_1")["blocks"].tolist() == ["7"]


def test_what_only_one_side_has_stays(summary):
    paper = pd.DataFrame({"position": ["last", "middle", "other"], "modified_accuracy": [80.0, 70.0, 60.0], "note": ["", "a slip", ""]})
    shown = compare_published(summary, paper, ["position"]).set_index("position")
    assert shown["A_M (%)"].tolist() == ["75.00 (2.65)", "not run", "75.00 (2.65)", "not run"]
    assert shown["A_M (%), paper"].tolist() == ["-", "70.00", "80.00", "60.00"]
    assert shown.loc["middle", "note"] == "a slip" and shown["runs"].tolist() == ["3", "0", "3", "0"]
    assert "A_F\\S (%), paper" not in shown and "mean (%)" in shown


def test_settings_that_match_several_rows_are_refused(summary):
    paper = pd.DataFrame({"position": ["last", "last"], "modified_accuracy": [80.0, 70.0]})
    with pytest.raises(ValueError, match="several of the paper's have position of 'last'"):
        compare_published(summary, paper, ["position"])
    with pytest.raises(ValueError, match="several of ours have runs of '3'"):
        compare_published(summary, None, ["runs"])


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
    band = report._sweep(np.array([[10.0, 20.0], [30.0, 20.0]]), np.array([[2.0, 1.0], [4.0, 3.0]]))
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


def test_a_table_is_saved_as_numbers_as_text_and_with_its_origin(tmp_path, summary):
    shown = compare_published(summary, load_published("table_3").query("start == 'FT'"), ["position"])
    path = save_table(tmp_path, "table_3", summary, shown, "What it shows.", PROVENANCE)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Table 3: ") and "| middle | 0 | not run | 77.50 (1.37) | not run | 15.09 (1.94) | not run |" in text
    assert "In parentheses: standard error, 3 runs." in text and "- 3 runs, not 5" in text
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "table_3.csv"), summary, check_dtype=False)
    saved = json.loads((tmp_path / "table_3.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert saved["seeds"] == [0, 1, 2] and saved["parameters"]["radii"] == [0.001, 0.002, "Infinity"]


def test_a_run_is_described_with_versions_and_the_commit_of_our_own_checkout(tmp_path, monkeypatch):
    described = describe_run({"steps": 3}, range(2), "cpu", 1.234, ["less"])
    assert {**described, "versions": 0, "commit": 0} == {
        "parameters": {"steps": 3}, "seeds": [0, 1], "device": "cpu", "seconds": 1.2, "cuts": ["less"], "versions": 0, "commit": 0
    }  # fmt: skip
    assert {"python", "modmem", "torch", "transformers", "matplotlib"} <= set(described["versions"])
    package = tmp_path / "modmem"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(report.modmem, "__file__", str(package / "__init__.py"))
    assert report._find_commit() is None

    def git(folder, *arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one", "--no-verify")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", commit) and report._find_commit() == commit
    (package / "__init__.py").write_text("changed = True")
    assert report._find_commit() == f"{commit}-dirty"
    monkeypatch.setattr(report.modmem, "__file__", str(tmp_path / "site-packages" / "modmem" / "__init__.py"))
    (tmp_path / "site-packages").mkdir()
    assert report._find_commit() is None  # installed inside somebody else's checkout


class Page(HTMLParser):
    "Collect what a page shows and what it asks for."

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open += [tag] * (tag not in ("meta", "img"))
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        assert tag not in ("script", "link", "iframe")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_holds_everything_and_needs_nothing_else(tmp_path, summary, curves):
    folder = tmp_path / "tiny <world>"
    save_table(folder, "table_3", summary, compare_published(summary, load_published("table_3").query("start == 'FT'"), ["position"]), "A.", PROVENANCE)
    save_figure(folder, "tradeoff", draw_tradeoff(curves, "position", "block"), curves, compare_published(curves, None, BY), "B.", PROVENANCE)
    save_table(folder, "ablation", summary, compare_published(summary, None, ["position"]), "Ours alone.", PROVENANCE)
    (folder / "claims.md").write_text("# Claims\n\n| claim | verdict |\n| --- | --- |\n| a\\|b & <c> | **contradicted** |\n", encoding="utf-8")
    page = Page(build_report(folder).read_text(encoding="utf-8"))
    text = "".join(page.words)
    assert not page.open and all(source.startswith(("data:image/svg+xml;base64,", "#")) for source in page.sources)
    assert "tiny <world>" in text and "a|b & <c>" in text and "contradicted" in text and "Ours alone." in text
    assert "77.50 (1.37)" in text and "75.00 (2.65)" in text and "3 runs, not 5" in text
    for title in report._TITLES.values():
        assert title in text
    assert text.count("not run, and the paper prints no values") == 4
    assert "47.47" in text and "slip: " in text and "1,282,567" in text  # tables that were not run


def test_the_page_of_an_empty_folder_says_so(tmp_path):
    page = Page(build_report(tmp_path).read_text(encoding="utf-8"))
    text = "".join(page.words)
    assert "".join(text.split()).count("notrun,andthepaperprintsnovalues") == 4 and "Nothing." in text


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("# A\ntext\nmore", "<h2>A</h2>\n<p>text more</p>"),
        ("- a\n  b\n- *c*", "<ul><li>a\n  b</li><li><em>c</em></li></ul>"),
        ("`a*b*c <d>` **e** A_M*", "<p><code>a*b*c &lt;d&gt;</code> <strong>e</strong> A_M*</p>"),
        ("[a](#b) & <script>", '<p><a href="#b">a</a> &amp; &lt;script&gt;</p>'),
    ],
)
def test_markdown_becomes_html(tmp_path, markdown, expected):
    assert report._render_markdown(markdown, tmp_path) == expected
