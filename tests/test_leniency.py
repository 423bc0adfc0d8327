"""One bad piece of a dataset: it stops the reading, or is left out alone and counted."""
import json
import warnings
from pathlib import Path

import pytest

from modmem import cli
from modmem.files import DataError
from modmem.leniency import LeftOut
from modmem.trex import load_trex
from modmem.zsre import load_zsre


def trex_record(number, **changes):
    sentences = [{"masked_sentence": f"Ada {number} was born in [MASK].", "sub_surface": f"Ada {number}"}, {"masked_sentence": f"[MASK] saw Ada {number}.", "sub_surface": f"Ada {number}"}]
    return {"predicate_id": "P19", "sub_label": f"Ada {number}", "obj_label": "Oslo", "sub_uri": f"Q{number}", "obj_uri": "Q585", "evidences": sentences} | changes


def write_trex(folder, records, templates=()):
    (folder / "TREx").mkdir(parents=True)
    (folder / "TREx" / "P19.jsonl").write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in records), encoding="utf-8")
    lines = [{"relation": "P19", "template": "[X] was born in [Y] ."}, *templates]
    (folder / "relations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


NO_MASK = [{"masked_sentence": "no slot", "sub_surface": "Ada"}, {"masked_sentence": "Ada 3 is from [MASK].", "sub_surface": "Ada 3"}]
BAD_TREX = {  # what stands at the end of the file -> facts and training evidence beyond the good ones, kind
    "an evidence without a slot": ([trex_record(3, evidences=NO_MASK)], (1, 1), "field 'masked_sentence': an evidence needs exactly one [MASK]"),
    "no good evidence": ([trex_record(3, evidences=NO_MASK[:1])], (0, 0), "field 'evidences': expected at least one evidence that is not bad"),
    "a fact twice": ([trex_record(2)], (0, 0), "expected one line a fact"),
    "an empty answer": ([trex_record(3, obj_label=" ")], (0, 0), "field 'obj_label': expected a str that is not empty"),
    "a missing key": ([{"predicate_id": "P19"}], (0, 0), "field 'sub_label': missing"),
    "a line that was cut": (['{"predicate_id": "P1\n'], (0, 0), "expected one JSON object"),
    "a list": (["[]\n"], (0, 0), "expected one JSON object"),
}


@pytest.mark.parametrize("kind", BAD_TREX)
def test_a_bad_piece_of_trex_is_left_out_alone(tmp_path, kind):
    bad, (facts, evidence), said = BAD_TREX[kind]
    folder = write_trex(tmp_path / "data", [trex_record(1), trex_record(2), *bad])
    with pytest.raises(DataError) as caught:
        load_trex(folder)
    assert caught.value.skippable
    with pytest.warns(UserWarning, match="left out") as warned:
        benchmark = load_trex(folder, on_error="skip")
    assert (len(benchmark.facts), len(benchmark.train), len(benchmark.test)) == (2 + facts, 4 + evidence, 2 + facts)
    assert len(warned) == 1 and f"1 x {said}" in str(warned[0].message) and "\n" not in str(warned[0].message)


@pytest.mark.parametrize("template", [{"relation": "P1", "template": "[X] is"}, {"relation": "P1"}, {"relation": "P19", "template": "[X] in [Y]"}])
def test_a_bad_template_is_left_out(tmp_path, template):
    folder = write_trex(tmp_path / "data", [trex_record(1)], [template])
    with pytest.raises(DataError):
        load_trex(folder)
    with pytest.warns(UserWarning, match="left out 1 pieces of bad input"):
        benchmark = load_trex(folder, on_error="skip")
    assert [question.text for question in benchmark.test] == ["Ada 1 was born in [MASK] ."]


def test_what_is_not_there_at_all_is_not_left_out(tmp_path):
    folder = write_trex(tmp_path / "data", [trex_record(1)])
    for options in ({"relations": ["P20"]}, {"relations": ["nosuch"]}):
        with pytest.raises(DataError, match="no relation"):
            load_trex(folder, on_error="skip", **options)
    with pytest.raises(DataError, match="expected at least one fact"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_trex(write_trex(tmp_path / "bad", [{}]), on_error="skip")
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'skip'"):
        load_trex(folder, on_error="ignore")


def zsre_record(number, answer="Oslo", questions=("Where was {} born?", "What is the birthplace of {}?", "Where is {} from?", "From where is {}?")):
    return {
        "id": f"f{number}", "input": f"Ada {number} [SEP] birthplace", "output": [{"answer": answer}],
        "meta": {"template_questions": [question.format(f"Ada {number}") for question in questions]},
    }


@pytest.mark.parametrize("bad, questions", [(zsre_record(1), 0), (zsre_record(2, answer=""), 0), (zsre_record(2, questions=["a [MASK]", "b", "c"]), 2), (zsre_record(2, questions=[" "]), 0)])
def test_a_bad_piece_of_zsre_is_left_out_alone(tmp_path, bad, questions):
    path = tmp_path / "zsre.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in (zsre_record(1), bad)))
    with pytest.raises(DataError):
        load_zsre(path)
    with pytest.warns(UserWarning, match="left out"):
        benchmark = load_zsre(path, on_error="skip")
    path.write_text(json.dumps(zsre_record(1)) + "\n")
    alone = load_zsre(path)
    assert benchmark.train[:2] == alone.train and benchmark.test[:2] == alone.test
    assert len(benchmark.train) + len(benchmark.test) == 4 + questions


def test_nothing_is_said_where_nothing_is_left_out(tmp_path):
    folder = write_trex(tmp_path / "data", [trex_record(1), trex_record(2)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_trex(folder, on_error="skip").train == load_trex(folder).train
        LeftOut("skip").warn(folder)


def test_the_command_names_the_option_and_obeys_it(tmp_path, capsys):
    folder = write_trex(tmp_path / "LAMA" / "data", [trex_record(1), trex_record(1), trex_record(2)])
    for place in (folder, tmp_path / "LAMA", tmp_path):  # as a download, or an unpacked zip file, has it
        assert cli.main(["statistics", "--trex", str(place)]) == 2
        output, error = capsys.readouterr()
        assert output == "" and error.endswith("(--lenient leaves it out)\n") and len(error.splitlines()) == 1
        assert cli.main(["statistics", "--trex", str(place), "--lenient", "--relations", " P19, P19"]) == 0
        output, error = capsys.readouterr()
        assert "T-REx (training)" in output and error == f"modmem: warning: {folder}: left out 1 pieces of bad input: 1 x expected one line a fact\n"
    assert cli.main(["statistics", "--trex", str(folder), "--relations", "P20"]) == 2
    assert "--lenient" not in capsys.readouterr().err


def test_a_list_of_edits_is_never_read_leniently(tmp_path, capsys):
    assert cli.main(["evaluate", "synthetic", str(Path(tmp_path) / "edits.jsonl"), "--lenient"]) == 2
    assert "--lenient goes with a dataset" in capsys.readouterr().err
