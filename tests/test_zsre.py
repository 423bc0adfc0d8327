"""zsRE in KILT's format: the split of Appendix A, and where a bad line is said to be."""
import copy
import json
import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modmem.facts import MASK, benchmark_statistics
from modmem.files import DataError
from modmem.zsre import load_zsre, split_questions


def make_record(name="train-1", num_questions=5, **fields):
    questions = [f"Question {i} about Ada Ash?" for i in range(num_questions)]
    return {"id": name, "input": "Ada Ash [SEP] employer", "output": [{"answer": "Acme Corp"}], "meta": {"template_questions": questions}} | fields


def write_file(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("two_from, tested", [(4, [0, 1, 1, 2, 2, 2]), (3, [0, 1, 2, 2, 2, 2])])
def test_the_rule_of_the_paper_and_of_the_authors_code(two_from, tested):
    for count, num_tested in enumerate(tested, start=1):
        questions = [str(i) for i in range(count)]
        train, test = split_questions(questions, random.Random(0), two_from)
        assert len(test) == num_tested
        assert sorted(train + test) == questions


@given(st.lists(st.text(max_size=2), max_size=8), st.integers(0, 99))
def test_no_question_is_on_both_sides_and_none_is_lost(questions, seed):
    train, test = split_questions(questions, random.Random(seed))
    assert not set(train) & set(test)
    assert sorted(train + test) == sorted(set(questions))
    assert train or not questions


def test_repeats_do_not_count():
    assert split_questions(["a", "a", "a", "a"], random.Random(0)) == (("a",), ())
    assert [len(side) for side in split_questions(["a", "b", "a", "c"], random.Random(0))] == [2, 1]


def test_every_question_is_tested_under_some_seed():
    tested = {question for seed in range(50) for question in split_questions("abcd", random.Random(seed))[1]}
    assert tested == set("abcd")


def test_a_rule_that_leaves_nothing_to_train_on_is_refused():
    with pytest.raises(ValueError, match="two_test_questions_from must be at least 3.*not 2"):
        split_questions(["a", "b"], random.Random(0), two_test_questions_from=2)


def test_a_question_becomes_evidence(tmp_path):
    record = make_record(num_questions=2, output=[{"answer": "Acme Corp"}, {"answer": "Ajax"}])
    record["meta"]["template_questions"][1] = "Who pays her? "
    benchmark = load_zsre(write_file(tmp_path / "zsre.jsonl", [record]))
    (fact,) = benchmark.facts
    assert (fact.id, fact.subject, fact.relation, fact.object) == ("train-1", "Ada Ash", "employer", "Acme Corp")
    assert (fact.subject_id, fact.object_id) == (None, None)
    surfaces = {evidence.text: evidence.subject_surface for evidence in benchmark.train + benchmark.test}
    assert surfaces == {"Question 0 about Ada Ash? [MASK]": "Ada Ash", "Who pays her? [MASK]": None}
    assert (benchmark.name, benchmark.drawn_from) == ("zsRE", "all")


def test_one_question_trains_and_is_not_tested(tmp_path):
    benchmark = load_zsre(write_file(tmp_path / "zsre.jsonl", [make_record(num_questions=1)]))
    assert (len(benchmark.facts), len(benchmark.train), len(benchmark.test)) == (1, 1, 0)


def test_a_facts_split_depends_on_seed_and_id_alone(tmp_path):
    records = [make_record(f"train-{i}") for i in range(20)]
    whole = load_zsre(write_file(tmp_path / "whole.jsonl", records))
    part = load_zsre(write_file(tmp_path / "part.jsonl", records[:4:-2]))
    assert set(part.test) == {evidence for evidence in whole.test if evidence.fact in part.facts}
    assert whole.test != load_zsre(tmp_path / "whole.jsonl", seed=1).test
    assert len({tuple(evidence.text for evidence in whole.test if evidence.fact == fact) for fact in whole.facts}) > 1


def test_the_split_of_a_seed_never_changes(tmp_path):
    benchmark = load_zsre(write_file(tmp_path / "zsre.jsonl", [make_record("train-1"), make_record("train-2", 3)]))
    assert [evidence.text.split()[1] for evidence in benchmark.test] == ["0", "2", "2"]


def test_the_rule_reaches_the_loader(tmp_path):
    path = write_file(tmp_path / "zsre.jsonl", [make_record(num_questions=3)])
    assert (len(load_zsre(path).test), len(load_zsre(path, two_test_questions_from=3).test)) == (1, 2)


def expect_error(path, *parts):
    with pytest.raises(DataError) as caught:
        load_zsre(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def with_questions(*questions):
    return make_record("train-2", meta={"template_questions": list(questions)})


BAD_RECORDS = {
    "no separator": (make_record("train-2", input="Ada Ash employer"), "input", "subject [SEP] relation"),
    "two separators": (make_record("train-2", input="a [SEP] b [SEP] c"), "input", "subject [SEP] relation"),
    "no subject": (make_record("train-2", input=" [SEP] employer"), "input", "subject [SEP] relation"),
    "no relation": (make_record("train-2", input="Ada Ash [SEP] "), "input", "subject [SEP] relation"),
    "no output": (make_record("train-2", output=[]), "output", "not empty"),
    "output is text": (make_record("train-2", output=["Acme"]), "output[0]", "expected dict, found str"),
    "no answer": (make_record("train-2", output=[{"provenance": []}]), "output[0].answer", "missing"),
    "empty answer": (make_record("train-2", output=[{"answer": ""}]), "output[0].answer", "not empty"),
    "answer is a number": (make_record("train-2", output=[{"answer": 3}]), "output[0].answer", "found int"),
    "no questions": (with_questions(), "meta.template_questions", "not empty"),
    "questions are missing": (make_record("train-2", meta={"aliases": []}), "meta.template_questions", "missing"),
    "an empty question": (with_questions("Who?", " "), "meta.template_questions", "not empty"),
    "a question is a number": (with_questions("Who?", 3), "meta.template_questions", "found int"),
    "a question with a mask": (with_questions("Who is [MASK]?"), "meta.template_questions", "expected no [MASK]"),
    "the id again": (make_record("train-1"), "id", "'train-1' is on line 1 too"),
    "id is a number": (make_record(2), "id", "expected str, found int"),
}


@pytest.mark.parametrize("record, field, reason", BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_bad_record_names_file_line_and_field(tmp_path, record, field, reason):
    expect_error(write_file(tmp_path / "zsre.jsonl", [make_record(), record]), f"zsre.jsonl:2: field '{field}'", reason)


@pytest.mark.parametrize("key", ["id", "input", "output", "meta"])
def test_a_missing_key_is_named(tmp_path, key):
    record = make_record("train-2")
    del record[key]
    expect_error(write_file(tmp_path / "zsre.jsonl", [make_record(), record]), f"zsre.jsonl:2: field '{key}': missing")


@pytest.mark.parametrize("damage, reason", [(lambda raw: raw[:-9], "expected one JSON object"), (lambda raw: raw.replace(b"Ash", b"\xff"), "UTF-8")])
def test_a_cut_line_and_another_encoding_are_told_apart(tmp_path, damage, reason):
    path = write_file(tmp_path / "zsre.jsonl", [make_record()])
    path.write_bytes(damage(path.read_bytes()))
    expect_error(path, "zsre.jsonl:1: ", reason)


def test_files_without_data(tmp_path):
    expect_error(tmp_path / "nowhere.jsonl", "nowhere.jsonl: no such file")
    expect_error(tmp_path, f"{tmp_path}: no such file")
    expect_error(write_file(tmp_path / "empty.jsonl", []), "empty.jsonl: expected at least one fact")


def loads_or_says_why(raw):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "zsre.jsonl"
        path.write_bytes(raw)
        try:
            benchmark = load_zsre(path)
            assert all(evidence.text.count(MASK) == 1 for evidence in benchmark.train + benchmark.test)
        except DataError as error:
            assert "zsre.jsonl" in str(error) and "\n" not in str(error)


VALID = (json.dumps(make_record()) + "\n" + json.dumps(make_record("train-2")) + "\n").encode()
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=4)
KEYS = [("id",), ("input",), ("output",), ("output", 0), ("output", 0, "answer"), ("meta",), ("meta", "template_questions"), ("meta", "template_questions", 0)]


@given(st.binary(max_size=200))
def test_random_bytes_load_or_say_why(raw):
    loads_or_says_why(raw)


@given(st.lists(st.tuples(st.integers(0, len(VALID)), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=4))
def test_damaged_bytes_load_or_say_why(damages):
    raw = VALID
    for start, length, inserted in damages:
        raw = raw[:start] + inserted + raw[start + length :]
    loads_or_says_why(raw)


@given(st.sampled_from(KEYS), JSON)
def test_any_value_in_any_field_loads_or_says_why(keys, value):
    record = copy.deepcopy(make_record())
    place = record
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    loads_or_says_why(json.dumps(record).encode())


@pytest.mark.skipif("MODMEM_ZSRE" not in os.environ, reason="MODMEM_ZSRE names no file in KILT's format")
def test_the_real_data_loads():
    benchmark = load_zsre(os.environ["MODMEM_ZSRE"])
    assert len(set(benchmark.facts)) == 3_203
    assert all(evidence.text.count(MASK) == 1 for evidence in benchmark.train + benchmark.test)
    assert benchmark_statistics(benchmark)["questions"].tolist() == [8_431, 4_031]
    assert benchmark_statistics(benchmark)["facts"].tolist() == [3_203, 3_203 - 854]
    assert not {evidence.text for evidence in benchmark.train} & {evidence.text for evidence in benchmark.test}
