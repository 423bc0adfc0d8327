"""Means and tables: what is shown, and that nothing is left out."""
import json
import math
import re
import subprocess

import pandas as pd
import pytest
from invented_rows import BY, RADII, PROVENANCE, invent, rows, summary  # noqa: F401

from modmem import tables
from modmem.tables import compare_published, describe_errors, describe_run, format_mean_error, load_published, put_heldout_beside, save_table, summarize, write_table


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


def test_what_a_run_may_lack_is_averaged_over_those_that_have_it():
    rows = pd.DataFrame(invent(values=[70.0, 76.0, 79.0])).assign(matched=[1.0, math.nan, 3.0])
    (row,) = summarize(rows, BY, also=["matched"]).to_dict("records")
    assert row["runs"] == 3 and row["matched"] == 2 and row["matched_se"] == 1 and row["modified_accuracy"] == 75
    assert summarize(rows, BY, columns=["modified_accuracy", "matched"])["runs"].tolist() == [2]


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
    monkeypatch.setattr(tables.modmem, "__file__", str(tmp_path / "__init__.py"))
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


def test_a_table_is_saved_as_numbers_as_text_and_with_its_origin(tmp_path, summary):
    shown = compare_published(summary, load_published("table_3").query("start == 'FT'"), ["position"])
    path = save_table(tmp_path, "table_3", summary, shown, "What it shows.", PROVENANCE)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Table 3: ") and "| middle | 0 | not run | 77.50 (1.37) | not run | 15.09 (1.94) | not run |" in text
    assert "In parentheses: standard error, 3 runs." in text and "- 3 runs, not 5" in text
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "table_3.csv"), summary, check_dtype=False)
    saved = json.loads((tmp_path / "table_3.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert saved["seeds"] == [0, 1, 2] and saved["parameters"]["radii"] == [0.001, 0.002, "Infinity"]


def test_a_table_in_markdown_marks_the_papers_last_number_and_takes_a_bar_for_a_bar():
    table = pd.DataFrame({"what": ["x|y", "z"], "A, paper": ["1.00", "-"], "B, paper": ["2.00 (0.10)", "3.00"], "note": ["a slip", ""]})
    assert write_table(table).split("\n") == [
        "| what | A, paper | B, paper |", "| --- | ---: | ---: |", r"| x\|y | 1.00 | 2.00 (0.10)[^1] |", "| z | - | 3.00 |", "", "[^1]: a slip",
    ]  # fmt: skip


@pytest.mark.parametrize(("runs", "said"), [([3, 3], "± standard error, 3 runs"), ([2, 5, 0], "± standard error, 2 to 5 runs"), ([1], "single runs: no errors"), ([0], "")])
def test_errors_are_said_with_the_number_of_runs(runs, said):
    assert describe_errors(pd.DataFrame({"runs": runs, "modified_accuracy_se": 1.0})) == said


def test_the_choice_on_held_out_facts_stands_beside_the_one_on_reported_facts():
    shown = pd.DataFrame({"block": ["0", "0", "1"], "radius": ["0.1", "0.2", "0.3"], "mean (%)": ["50", "40", "30"], "chosen on": ["reported", "held out", "reported"]})
    both = put_heldout_beside(shown, ["block"])
    assert list(both) == ["block", "radius", "mean (%)", "radius, held out", "mean (%), held out"]
    assert both.to_numpy().tolist() == [["0", "0.1", "50", "0.2", "40"], ["1", "0.3", "30", "", ""]]


def test_a_run_is_described_with_versions_and_the_commit_of_our_own_checkout(tmp_path, monkeypatch):
    described = describe_run({"steps": 3}, range(2), "cpu", 1.234, ["less"])
    assert {**described, "versions": 0, "commit": 0} == {
        "parameters": {"steps": 3}, "seeds": [0, 1], "device": "cpu", "seconds": 1.2, "cuts": ["less"], "versions": 0, "commit": 0
    }  # fmt: skip
    assert {"python", "modmem", "torch", "transformers", "matplotlib"} <= set(described["versions"])
    package = tmp_path / "modmem"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(tables.modmem, "__file__", str(package / "__init__.py"))
    assert tables._find_commit() is None

    def git(folder, *arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one", "--no-verify")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", commit) and tables._find_commit() == commit
    (package / "__init__.py").write_text("changed = True")
    assert tables._find_commit() == f"{commit}-dirty"
    monkeypatch.setattr(tables.modmem, "__file__", str(tmp_path / "site-packages" / "modmem" / "__init__.py"))
    (tmp_path / "site-packages").mkdir()
    assert tables._find_commit() is None  # installed inside somebody else's checkout
