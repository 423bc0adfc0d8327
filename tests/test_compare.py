"""Two folders of results: what counts, what does not, and what is said."""
import json

import pandas as pd
import pytest

from modmem import cli
from modmem.compare import compare_results, describe_comparison
from modmem.files import DataError

SPREAD, EQUAL = [90.0, 92.0, 94.0, 96.0, 98.0], [100.0] * 5


@pytest.fixture
def results(tmp_path):
    "Make a folder of results: two settings of five seeds each, changed as asked, and perhaps an artefact."

    def results(name, changes=(), drop=(), parameters=None, cells=None, **columns):
        rows = pd.DataFrame([
            {"key": f"{radius}-{seed}", "status": "done", "radius": radius, "seed": seed, "modified_accuracy": value, "max_change": 0.1, "seconds": 1.0,
             "peak_gb": 0.5, "warning": "", "start_hash": "aa", "device": "cpu", "torch_version": "2.13"}
            for radius, values in ((0.1, SPREAD), (0.2, EQUAL)) for seed, value in enumerate(values)
        ]).assign(**columns).set_index("key", drop=False)
        for key, column, value in changes:
            rows.loc[key, column] = value
        folder = tmp_path / name
        folder.mkdir()
        rows.drop(index=list(drop)).to_csv(folder / "rows.csv", index=False)
        if cells is not None:
            pd.DataFrame(cells).to_csv(folder / "table_3.csv", index=False)
            (folder / "table_3.json").write_text(json.dumps({"parameters": parameters}))
        return folder

    return results


def test_equal_folders_are_said_to_be_so_in_the_first_line(results):
    table = {"start": ["FT"], "modified_accuracy": [94.0], "modified_accuracy_se": [1.4]}
    found = compare_results(results("a", cells=table), results("b", cells=table))
    assert found["same"] and found["agree"] and describe_comparison(found).splitlines() == ["10 rows, 10 equal", "1 artefacts, 1 equal"]


@pytest.mark.parametrize("tolerance", ["exact", "se"])
def test_costs_warnings_and_versions_do_not_count_and_versions_are_told_first(results, tolerance):
    other = results("b", seconds=7.0, peak_gb=2.0, warning="hot", torch_version="2.14", device="cuda")
    found = compare_results(results("a"), other, tolerance)
    assert found["same"] and not found["columns"] and not found["reasons"]
    assert describe_comparison(found).splitlines()[:2] == ["device: cpu and cuda", "torch_version: 2.13 and 2.14"]


def test_a_csv_without_the_columns_of_costs_is_as_good(results):
    a, b = results("a"), results("b")
    pd.read_csv(b / "rows.csv").drop(columns=["seconds", "peak_gb"]).to_csv(b / "rows.csv", index=False)
    assert compare_results(a, b)["same"]


def test_what_only_one_has_measured_is_told_and_does_not_count(results):
    found = compare_results(results("a", lost=3.0), results("b", penalty=""))
    assert found["same"] and found["equal"] == 10 and "columns of shared rows: lost and " in describe_comparison(found).splitlines()[0]


def test_a_difference_is_counted_measured_and_has_a_likely_reason(results):
    other = results("b", [("0.1-2", "modified_accuracy", 91.0), ("0.1-3", "modified_accuracy", 96.5), ("0.1-2", "start_hash", "bb"), ("0.2-0", "start_hash", "bb")])
    found = compare_results(results("a"), other)
    assert (found["rows"], found["equal"], found["agree"]) == (10, 8, False)
    assert [(one["column"], one["rows"], one["largest"]) for one in found["columns"]] == [("modified_accuracy", 2, 3.0)]
    assert found["reasons"] == {"start_hash": 1}, "of the rows that differ, not of all"
    assert "modified_accuracy: other in 2 rows, by at most 3" in describe_comparison(found)


def test_within_se_a_mean_may_move_by_its_error_over_seeds(results):
    a = results("a")  # the error of the mean is 1.41
    near = compare_results(a, results("near", [("0.1-2", "modified_accuracy", 88.0)]), "se")
    far = compare_results(a, results("far", [(f"0.1-{seed}", "modified_accuracy", value - 2.0) for seed, value in enumerate(SPREAD)]), "se")
    assert near["agree"] and near["equal"] == 10 and near["columns"][0]["largest_se"] < 1
    assert not far["agree"] and far["equal"] == 5 and far["columns"][0]["largest_se"] == pytest.approx(2 / 2**0.5)
    assert "its mean by 1.4 standard errors" in describe_comparison(far)


def test_the_error_is_the_larger_of_both_and_of_rows_that_are_done(results):
    even = results("even", [(f"0.1-{seed}", "modified_accuracy", 95.0) for seed in range(5)])
    assert compare_results(even, results("a"), "se")["agree"] and compare_results(results("b"), even, "se")["agree"]
    odd = [("0.1-4", "status", "failed"), ("0.1-4", "modified_accuracy", 0.0)]
    moved = [(f"0.1-{seed}", "modified_accuracy", value - 2.0) for seed, value in enumerate(SPREAD[:4])]
    assert not compare_results(results("c", odd), results("d", odd + moved), "se")["agree"]


def test_artefacts_of_other_rows_are_not_compared_where_no_parameters_are_kept(results):
    a, b = results("a", cells={"A_M": [1.0]}), results("b", cells={"A_M": [2.0]}, drop=["0.1-4"])
    assert compare_results(a, b)["artefacts"] == [{"artefact": "table_3.csv", "outcome": "other", "note": "made from other rows"}]


def test_what_no_seed_moves_has_no_error_to_move_by_but_a_millionth_is_nothing(results):
    a = results("a")
    assert not compare_results(a, results("b", max_change=0.11), "se")["agree"]
    close = results("c", max_change=0.1 + 1e-9)
    assert compare_results(a, close, "se")["agree"] and not compare_results(a, close)["agree"]


def test_rows_that_only_one_has_are_told_and_what_both_have_may_agree(results):
    found = compare_results(results("quick", drop=["0.1-3", "0.1-4"]), results("full"))
    assert found["agree"] and not found["same"] and (found["rows"], found["only_a"], found["only_b"]) == (8, 0, 2)
    assert describe_comparison(found).startswith("rows: 8 and 10\n8 rows, 8 equal")


def test_a_row_that_failed_in_one_is_another_row(results):
    assert compare_results(results("a"), results("b", [("0.1-0", "status", "failed")]))["equal"] == 9


def test_nothing_in_common_is_no_agreement(results):
    a = results("a", drop=[f"0.1-{seed}" for seed in range(5)])
    b = results("b", drop=[f"0.2-{seed}" for seed in range(5)])
    for tolerance in ("exact", "se"):
        assert not compare_results(a, b, tolerance)["agree"]


def test_artefacts_are_compared_if_their_parameters_are_the_same(results):
    table = {"start": ["FT", "RI"], "runs": [5, 5], "modified_accuracy": [94.0, 50.0], "modified_accuracy_se": [1.4, 2.0], "seconds": [1.0, 2.0]}
    moved = table | {"modified_accuracy": [95.0, 50.0], "seconds": [3.0, 4.0]}
    a = results("a", cells=table, parameters={"seeds": [0]})
    other, b = results("other", cells=moved, parameters={"seeds": [0, 1]}), results("b", cells=moved, parameters={"seeds": [0]})
    (one,) = compare_results(a, b)["artefacts"]
    assert one == {"artefact": "table_3.csv", "outcome": "differs", "note": "1 of 8 cells, modified_accuracy by 1"}
    assert compare_results(a, b, "se")["agree"] and not compare_results(a, b)["agree"]
    assert compare_results(a, other)["agree"] and not compare_results(a, other)["same"]
    assert "not compared, made with other parameters: table_3.csv" in describe_comparison(compare_results(a, other))
    far = results("far", cells=table | {"modified_accuracy": [97.0, 50.0]}, parameters={"seeds": [0]})
    named = results("named", cells=table | {"start": ["FT", "pretrained"]}, parameters={"seeds": [0]})
    shorter = results("shorter", cells={name: cells[:1] for name, cells in table.items()}, parameters={"seeds": [0]})
    assert not any(compare_results(a, folder, "se")["agree"] for folder in (far, named, shorter))


def test_the_command_exits_with_0_or_1_and_names_what_is_no_folder_of_results(results, capsys, tmp_path):
    a, b = results("a"), results("b", [("0.1-0", "modified_accuracy", 91.0)])
    assert cli.main(["compare", str(a), str(a)]) == 0 and capsys.readouterr().out.startswith("10 rows, 10 equal")
    assert cli.main(["compare", str(a), str(b), "--json"]) == 1 and json.loads(capsys.readouterr().out)["equal"] == 9
    assert cli.main(["compare", str(a), str(b), "--tolerance", "se"]) == 0
    capsys.readouterr()
    assert cli.main(["compare", str(a), str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"modmem: {tmp_path / 'rows.csv'}: no such file\n"
    with pytest.raises(DataError):
        compare_results(tmp_path, a)


@pytest.mark.parametrize("tolerance", ["exact", "se"])
def test_a_number_that_one_folder_lacks_is_a_difference(results, tolerance):
    a, b = results("a"), results("b", [("0.1-2", "modified_accuracy", float("nan"))])
    assert not compare_results(a, b, tolerance)["agree"] and not compare_results(b, a, tolerance)["agree"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00a", b"a,b\n1,2,3\n4\n5,6,7,8\n"])
def test_a_file_that_is_no_csv_is_named(results, content):
    a, b = results("a"), results("b")
    for folder in (a, b):
        (folder / "own.csv").write_bytes(content)
    with pytest.raises(DataError, match="own.csv: expected a csv"):
        compare_results(a, b)
