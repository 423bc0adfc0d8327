"""From a number back to its rows, and to the command that computes them again."""
import json
import math
import shlex

import pandas as pd
import pytest
from mini_notebooks import here, notebooks  # noqa: F401

from modmem import cli
from modmem.artefacts import choose_artefacts, list_runs
from modmem.why import check_mean, explain_line, find_lines, find_rows, narrow_parameters, read_artefact, write_command

TABLE = pd.DataFrame([
    {"start": start, "method": "FT+FTM", "blocks": block, "position": position, "modified_accuracy": accuracy, "radius": "inf"}
    for start, block, position, accuracy in (("FT", "0", "first", "75"), ("FT", "3", "last", "98.754"), ("pretrained", "3", "last", "50"))
])
ROWS = pd.DataFrame([
    {"key": f"{start}{block}{seed}", "start": start, "method": "edit", "blocks": block, "seed": seed, "facts": facts, "radius": math.inf,
     "modified_accuracy": accuracy, "start_hash": start.lower()}
    for start in ("FT", "pretrained") for block in ("0", "3") for seed, facts, accuracy in ((0, "reported", 97.508), (1, "reported", 100.0), (0, "heldout", 0.0))
])


@pytest.mark.parametrize(
    "text, lines",
    [("FT, last block", [1]), ("ft", [0, 1]), ("last", [1, 2]), ("98.75", [1]), ("98.754", [1]), ("FTM", []), ("FT nowhere", []), ("", [0, 1, 2]), ("3 inf radius", [1, 2])],
)
def test_a_line_is_found_by_all_words_of_a_text(text, lines):
    assert find_lines(TABLE, text).index.tolist() == lines


def test_rows_have_the_settings_that_the_line_names_in_words_of_theirs():
    rows = find_rows(TABLE.loc[1], ROWS)
    assert rows["key"].tolist() == ["FT30", "FT31", "FT30"], "method and position have words of their own"
    assert check_mean(TABLE.loc[1], rows) and not check_mean(TABLE.loc[0], rows)


def test_a_line_of_facts_with_many_evidences_has_other_rows_than_one_of_any_facts():
    many = ROWS.assign(key="9" + ROWS["key"], min_evidences=9.0)
    rows = pd.concat([ROWS, many])  # none is missing, not 0
    found = {least: find_rows(pd.concat([TABLE.loc[1], pd.Series(named)]), rows)["key"].tolist() for least, named in ((None, {}), ("0", {"evidences": "0"}), ("9", {"evidences": "9"}))}
    assert found["0"] == ["FT30", "FT31", "FT30"] and found["9"] == ["9FT30", "9FT31", "9FT30"] and found[None] == found["0"] + found["9"]


def test_where_a_line_has_settings_in_words_of_its_own_the_mean_says_which_rows_are_its():
    rows = pd.concat([ROWS.assign(unmodified_per_modified=0.0), ROWS.assign(key="A" + ROWS["key"], unmodified_per_modified=1.0, modified_accuracy=ROWS["modified_accuracy"] - 9)])
    for line, keys in ((TABLE.loc[1], ["FT30", "FT31", "FT30"]), (TABLE.loc[1].replace("98.754", "89.754"), ["AFT30", "AFT31", "AFT30"])):
        assert find_rows(line, rows)["key"].tolist() == keys and explain_line(line, rows)["mean_agrees"]
    nowhere = explain_line(TABLE.loc[1].replace("98.754", "1.0"), rows)
    assert len(nowhere["rows"]) == 6 and not nowhere["mean_agrees"]


def test_a_word_of_some_cell_is_no_beginning_of_a_column():
    table = pd.DataFrame({"chosen_on": ["reported", "held out"], "unmodified_accuracy_reported": ["1", "2"]})
    assert find_lines(table, "reported").index.tolist() == [0] and find_lines(table, "chosen").index.tolist() == [0, 1]


def test_what_all_rows_have_in_common_is_told_apart_from_what_each_has():
    told = explain_line(TABLE.loc[1], ROWS)
    assert told["seeds"] == [0, 1] and told["hashes"] == {"start_hash": "ft"} and told["mean_agrees"]
    assert told["settings"]["blocks"] == "3" and set(told["rows"][0]) == {"key", "seed", "facts", "modified_accuracy"}


def test_blocks_that_a_table_knows_by_their_position_only_are_read_from_its_parameters(tmp_path):
    TABLE.drop(columns="blocks").to_csv(tmp_path / "when.csv", index=False)
    (tmp_path / "when.json").write_text(json.dumps({"parameters": {"positions": {"0": "first", "3": "last"}}}), encoding="utf-8")
    table, _ = read_artefact(tmp_path, "when")
    assert table["blocks"].tolist() == TABLE["blocks"].tolist()
    assert find_rows(table.loc[1], ROWS)["key"].tolist() == ["FT30", "FT31", "FT30"]


def test_parameters_are_shortened_as_long_as_the_rows_are_asked_for():
    def list_keys(given):
        if len(given["blocks"]) != len(given["positions"]):
            return set()
        return {(block, seed, model) for block in given["blocks"] for seed in given["seeds"] for model in given["models"]}

    given = {"blocks": [0, 1, 3], "positions": ["first", "middle", "last"], "seeds": [0, 1, 2], "models": {"a": 1, "b": 2}, "steps": 7}
    short = narrow_parameters(given, {(3, 0, "b"), (3, 2, "b")}, list_keys)
    assert short == {"blocks": [3], "positions": ["last"], "seeds": [0, 2], "models": {"b": 2}, "steps": 7}
    assert given["blocks"] == [0, 1, 3]


def test_a_command_says_what_is_not_as_usual_and_which_data_it_needs():
    words = shlex.split(write_command("table_3", {"steps": 7, "norms": ["linf"], "radii": [math.inf], "benchmark": "trex", "model": "mine"}, {"steps": 7}))
    assert words[:3] == ["modmem", "reproduce", "table_3"] and "--trex" in words and "steps" not in words
    assert words[words.index("norms") + 1] == '["linf"]' and words[words.index("radii") + 1] == "[inf]"


@pytest.mark.parametrize("models", [{"model": "mine"}, {"models": ["mine"]}, {"models": {"mine": "BERT-Base"}}])
def test_a_command_asks_for_the_folder_of_a_real_model(models):
    words = shlex.split(write_command("table_3", {"benchmark": "zsre", **models}, {}))
    assert words[words.index("folders") + 1] == '{"mine": "FOLDER"}' and "--zsre" in words
    assert "folders" not in shlex.split(write_command("table_3", {"benchmark": "world", **models}, {}))


@pytest.fixture
def folder(tmp_path):
    "Results of a notebook of the least size, with invented numbers."
    runs = list_runs(choose_artefacts(["table_3"], options={"store": "store"})[0]).runs
    rows = pd.DataFrame([{"key": run.key, "status": "done", **run.settings, "modified_accuracy": 50.0 + place, "seconds": 1.0} for place, run in enumerate(runs)])
    rows.to_csv(tmp_path / "rows.csv", index=False)
    rows[["blocks", "radius", "seed", "status", "modified_accuracy"]].to_csv(tmp_path / "table_3.csv", index=False)
    return str(tmp_path)


def test_the_command_leads_to_rows_and_these_to_a_command_that_asks_for_them(folder, capsys):
    rows = pd.read_csv(f"{folder}/rows.csv")
    assert cli.main(["why", "table_3", "blocks seed 1", "--results", folder, "--json"]) == 0
    lines = [line for line in json.loads(capsys.readouterr().out)["lines"] if line["line"]["seed"] == "1"]
    assert len(lines) == 2
    for line in lines:
        (row,) = line["rows"]
        assert line["mean_agrees"] and row["key"] in set(rows["key"]) and row["seconds"] > 0 and line["seeds"] == [1]
    assert cli.main([*shlex.split(lines[0]["command"])[1:], "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 2, "one seed; the two blocks are no parameter of this notebook"
    assert cli.main(["why", "table_3", "1", "--results", folder]) == 0 and "modmem reproduce table_3" in capsys.readouterr().out


def test_what_is_not_there_is_one_line_that_says_what_is(folder, capsys):
    assert cli.main(["why", "table_3", "--results", folder]) == 0 and capsys.readouterr().out.splitlines()[0] == "0 inf 0 done 50.0"
    for arguments, reason in ((("table_3", "nowhere"), "no line of table_3 has all of 'nowhere'; there are: 0 inf 0 done 50.0; "), (("table_9",), "table_9.csv: no such file")):
        assert cli.main(["why", *arguments, "--results", folder]) == 2
        output, errors = capsys.readouterr()
        assert not output and reason in errors and errors.count("\n") == 1
