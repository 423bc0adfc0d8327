"""Which notebooks, with which parameters, and the rows that these ask for."""
import math

import pytest
from mini_notebooks import PLACES, RUNS, SETTINGS, here, notebooks, write_notebook  # noqa: F401

from modmem import paper
from modmem.artefacts import OPTIONS, Artefact, _check_value, _read_value, choose_artefacts, list_artefacts, list_runs, read_defaults
from modmem.files import DataError
from modmem.starts import Places

def test_artefacts_share_rows_and_come_in_order_with_the_claims_last(notebooks):
    assert list_artefacts() == ["table_3", "tradeoff", "edit_synthetic", "claims"]
    table_3, tradeoff, edit, claims = map(list_runs, choose_artefacts([]))
    assert [artefact.name for artefact in choose_artefacts(["claims", "table_3"])] == ["table_3", "claims"]
    assert len({run.key for run in (*table_3.runs, *tradeoff.runs)}) == 6 < len(table_3.runs) + len(tradeoff.runs)
    assert edit.runs == claims.runs == () and edit.places is claims.places is None


def test_a_parameter_reaches_every_artefact_that_has_it_in_its_type():
    given = ["num_modified=8", "learning_rate=1e-3", "radii=[0.5, 1]", "steps=7"]
    values = {artefact.name: dict(artefact.parameters) for artefact in choose_artefacts([], given)}
    assert values["table_3"] == {"num_modified": 8, "learning_rate": 0.001}
    assert values["tradeoff"] == values["table_3"] | {"radii": [0.5, 1]}
    assert values["edit_synthetic"] == {"radii": [0.5, 1], "steps": 7} and values["claims"] == {}
    assert {run.sample.num_modified for run in list_runs(choose_artefacts(["table_3"], given[:1])[0]).runs} == {8}


def test_own_values_may_be_any_expression(tmp_path):
    write_notebook(tmp_path / "x.ipynb", parameters='radii: list = [0.1, float("inf")]  # inf: no constraint\nsteps = 3')
    assert read_defaults(tmp_path / "x.ipynb") == {"radii": [0.1, math.inf], "steps": 3}


# Options

LESSON = SETTINGS.replace("folders: dict = {}", 'folders: dict = {"mine": "models/mine"}') + "radii: list = [0.1]  # of the ball\n" + PLACES
ONE_BLOCK = RUNS.replace("RADII", "radii").replace("BLOCKS", "[0]")


def test_options_reach_a_notebook_as_it_has_them(tmp_path):
    assert set(OPTIONS) == set(paper._PLACES)
    options = dict.fromkeys(OPTIONS, "x") | {"threads": 2}
    for name, parameters, filled in (
        ("together", PLACES, {"places": options}),
        ("none", "radii: list = [0.1]", {}),
    ):
        write_notebook(tmp_path / f"{name}.ipynb", parameters=parameters)
        assert Artefact(name, tmp_path / f"{name}.ipynb", {"radii": [1.0]}, options).filled == {"radii": [1.0]} | filled


def test_places_of_the_runs_follow_from_options_and_folders(tmp_path):
    write_notebook(tmp_path / "lesson.ipynb", parameters=LESSON, runs=ONE_BLOCK, save="raise RuntimeError('computed')")
    options = {"store": "rows", "trex": "LAMA", "zsre": "", "device": "cuda:1", "threads": 2}
    artefact = list_runs(Artefact("lesson", tmp_path / "lesson.ipynb", {"radii": [0.5]}, options))
    assert [(run.method.radius, run.sample.seed) for run in artefact.runs] == [(0.5, 0), (0.5, 1)]
    assert artefact.places == Places("rows/cache", "LAMA", None, {"mine": "models/mine"}, "cuda:1", 2)
    assert list_runs(Artefact("lesson", tmp_path / "lesson.ipynb")).places == Places("_runs/paper/cache", models={"mine": "models/mine"})


def test_keys_are_text_and_infinity_has_a_word():
    assert _read_value("{3: [0.1, inf], 'all': [1e-3]}", dict) == {"3": [0.1, math.inf], "all": [0.001]}
    assert _check_value([{"radii": {3: [0.1]}}], list) == [{"radii": {"3": [0.1]}}] and _read_value("[inf]", list) == [math.inf]
    assert _read_value(' {"a": "/data/inf/true"}', dict) == {"a": "/data/inf/true"} and _read_value("[-inf, true]", list) == [-math.inf, True]


@pytest.mark.parametrize("radii, reason", [([-1.0], "radius must be a number above 0"), (["x"], "radius"), (3, "not iterable"), ([], "one of the lists is empty")])
def test_parameters_that_make_no_rows_are_told(tmp_path, radii, reason):
    write_notebook(tmp_path / "lesson.ipynb", parameters=LESSON, runs=ONE_BLOCK)
    with pytest.raises(ValueError, match=f"lesson: these parameters make no rows: .*{reason}"):
        list_runs(Artefact("lesson", tmp_path / "lesson.ipynb", {"radii": radii}))


@pytest.mark.parametrize("runs, reason", [("runs = radii.items()", "'list' object has no attribute 'items'"), ("runs = {}['FTX']", "there is no 'FTX'")])
def test_whatever_goes_wrong_with_parameters_is_one_line(tmp_path, runs, reason):
    write_notebook(tmp_path / "lesson.ipynb", parameters=LESSON, runs=runs)
    with pytest.raises(ValueError, match=f"lesson: these parameters make no rows: {reason}"):
        list_runs(Artefact("lesson", tmp_path / "lesson.ipynb"))


# Parameter files

def choose_by(tmp_path, text, given=()):
    (tmp_path / "small.yaml").write_text(text, encoding="utf-8")
    return {artefact.name: dict(artefact.parameters) for artefact in choose_artefacts([], given, tmp_path / "small.yaml")}


def test_a_file_sets_parameters_of_all_and_of_each(tmp_path):
    text = "all: {seeds: [0, 1, 2], learning_rate: 0.5, radii: [.inf]}\ntable_3:\n  num_modified: 8\n  learning_rate: 1\n"
    values = choose_by(tmp_path, text, ["num_modified=9"])
    assert values["table_3"] == {"seeds": [0, 1, 2], "learning_rate": 1.0, "num_modified": 9}
    assert values["tradeoff"] == {"seeds": [0, 1, 2], "learning_rate": 0.5, "num_modified": 9, "radii": [math.inf]}
    assert values["edit_synthetic"] == {"radii": [math.inf]} and choose_by(tmp_path, "")["table_3"] == {}


@pytest.mark.parametrize(
    "text, reason",
    [
        ("table_3: {learning_rate: 1e-3}", "field 'table_3.learning_rate': '1e-3' is text, not a number: write 0.001"),
        ("tradeoff: {radii: [0.1, 1e-5]}", "field 'tradeoff.radii': '1e-5' is text, not a number: write 0.00001"),
        ("tradeoff: {radii: [{best: 1e-3}]}", "field 'tradeoff.radii': '1e-3' is text"),
        ("tradeoff: {radii: [inf]}", "'inf' is text, not a number: write .inf"),
        ("table_3: {num_modified: 0.5}", "field 'table_3.num_modified': expected int, found 0.5"),
        ("table_3: {num_modified: true}", "field 'table_3.num_modified': expected int, found True"),
        ("table_3: {benchmark: 3}", "field 'table_3.benchmark': expected str, found 3"),
        ("all: {seeds: 3}", "field 'all.seeds': expected list, found 3"),
        ("tabel_3: {seeds: [1]}", "field 'tabel_3': there is no such artefact; did you mean table_3"),
        ("table_3: {seed: [1]}", "field 'table_3.seed': there is no parameter 'seed'; did you mean seeds"),
        ("table_3: {radii: [1]}", "field 'table_3.radii': there is no parameter 'radii'; there are batch_size, benchmark"),
        ("all: {output: here}", "field 'all.output': there is no parameter 'output': where things are"),
        ("all: {trex: here}", "field 'all.trex': there is no parameter 'trex': where things are"),
        ("all: {places: {output: here}}", "field 'all.places': there is no parameter 'places': where things are"),
        ("table_3: [1]", "field 'table_3': expected artefacts with their parameters, found [1]"),
        ("- 1", "expected artefacts with their parameters"),
        ("all: {}\ntable_3: {", "small.yaml:2: expected YAML"),
        ("all: {1: 2}", "field 'all.1': there is no parameter 1; there are"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path, text, reason):
    with pytest.raises(ValueError) as caught:
        choose_by(tmp_path, text)
    assert "small.yaml" in str(caught.value) and reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_scale_chooses_its_artefacts_unless_others_are_named(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("artefacts: [table_3]\nall: {num_modified: 8}\n", encoding="utf-8")
    assert [artefact.name for artefact in choose_artefacts([], file=file)] == ["table_3"]
    assert [artefact.name for artefact in choose_artefacts(["tradeoff"], file=file)] == ["tradeoff"]
    for wrong in ("[table_33]", "table_3"):
        file.write_text(f"artefacts: {wrong}\n", encoding="utf-8")
        with pytest.raises(DataError, match="mine.yaml.*artefacts.*expected a list of artefacts"):
            choose_artefacts([], file=file)
