"""T-REx in LAMA's layout: what loads, and where a bad line is said to be."""
import copy
import json
import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modmem.facts import MASK, benchmark_statistics
from modmem.files import DataError
from modmem.trex import load_trex

TEMPLATES = [
    {"relation": "P19", "template": "[X] was born in [Y] ."},
    {"relation": "P20", "template": "[X] died in [Y] ."},
    {"relation": "P279", "template": "[X] is a subclass of [Y] ."},
]


def make_record(relation="P19", subject_id="Q1", object_id="Q10", texts=("Ada left [MASK] early.",), **fields):
    return {
        "uuid": "not looked at",
        "predicate_id": relation,
        "sub_uri": subject_id,
        "sub_label": "Ada Ash",
        "obj_uri": object_id,
        "obj_label": "Paris",
        "evidences": [{"sub_surface": "Ada", "obj_surface": "Paris", "masked_sentence": text} for text in texts],
    } | fields


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_folder(folder, records=None, templates=TEMPLATES):
    write_lines(folder / "relations.jsonl", templates)
    records = [make_record(), make_record("P20")] if records is None else records
    for relation in dict.fromkeys(record["predicate_id"] for record in records):
        write_lines(folder / "TREx" / f"{relation}.jsonl", [record for record in records if record["predicate_id"] == relation])
    return folder


def test_sentences_train_and_the_filled_template_tests(tmp_path):
    benchmark = load_trex(write_folder(tmp_path, [make_record(texts=["Ada left [MASK].", "[MASK] saw Ada."])]))
    (fact,) = benchmark.facts
    assert (fact.id, fact.subject, fact.relation, fact.object) == ("P19/Q1/Q10", "Ada Ash", "P19", "Paris")
    assert (fact.subject_id, fact.object_id) == ("Q1", "Q10")
    assert [(evidence.text, evidence.subject_surface) for evidence in benchmark.train] == [("Ada left [MASK].", "Ada"), ("[MASK] saw Ada.", "Ada")]
    assert [(evidence.text, evidence.subject_surface) for evidence in benchmark.test] == [("Ada Ash was born in [MASK] .", "Ada Ash")]
    assert (benchmark.name, benchmark.drawn_from) == ("T-REx", "answered")


def test_facts_with_equal_labels_stay_apart(tmp_path):
    benchmark = load_trex(write_folder(tmp_path, [make_record(), make_record(subject_id="Q2"), make_record(object_id="Q11")]))
    assert len(set(benchmark.facts)) == len(benchmark.test) == 3


def test_an_id_does_not_depend_on_the_uuid_or_on_other_facts(tmp_path):
    bare = make_record(subject_id="Q2")
    del bare["uuid"]
    alone = load_trex(write_folder(tmp_path / "alone", [bare]))
    among = load_trex(write_folder(tmp_path / "among", [make_record(), make_record("P20"), make_record(subject_id="Q2")]))
    assert alone.facts[0] in among.facts


def test_repeated_sentences_train_once_unless_kept(tmp_path):
    folder = write_folder(tmp_path, [make_record(texts=["b [MASK]", "a [MASK]", "b [MASK]"]), make_record("P20", texts=["b [MASK]"])])
    assert [evidence.text for evidence in load_trex(folder).train] == ["b [MASK]", "a [MASK]", "b [MASK]"]
    statistics = benchmark_statistics(load_trex(folder, keep_duplicates=True))
    assert statistics.loc["T-REx (training)"].tolist() == [4, 2, 3]


def test_max_evidences_caps_distinct_sentences_of_each_fact(tmp_path):
    folder = write_folder(tmp_path, [make_record(texts=["b [MASK]", "b [MASK]", "a [MASK]", "c [MASK]"]), make_record("P20")])
    benchmark = load_trex(folder, max_evidences=2)
    assert [evidence.text for evidence in benchmark.train] == ["b [MASK]", "a [MASK]", "Ada left [MASK] early."]
    assert len(benchmark.test) == 2
    with pytest.raises(ValueError, match="max_evidences must be None or at least 1, not 0"):
        load_trex(folder, max_evidences=0)


def test_a_subject_that_looks_like_a_slot_is_left_alone(tmp_path):
    benchmark = load_trex(write_folder(tmp_path, [make_record(sub_label="The [Y] Files [X]")]))
    assert benchmark.test[0].text == "The [Y] Files [X] was born in [MASK] ."


def test_relations_choose_files_in_the_order_given(tmp_path):
    folder = write_folder(tmp_path)
    assert [fact.relation for fact in load_trex(folder).facts] == ["P19", "P20"]
    assert [fact.relation for fact in load_trex(folder, ["P20", "P19", "P20"]).facts] == ["P20", "P19"]
    assert [fact.relation for fact in load_trex(folder, ["P20"]).facts] == ["P20"]


def expect_error(folder, *parts, **options):
    with pytest.raises(DataError) as caught:
        load_trex(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_an_unknown_relation_is_named(tmp_path):
    expect_error(write_folder(tmp_path), "no relation 'P0'; there are P19, P20", relations=["P19", "P0"])


def test_a_relation_without_its_file_is_an_error_only_when_asked_for(tmp_path):
    expect_error(write_folder(tmp_path), "P279.jsonl: no such file", relations=["P279"])


def test_a_file_without_a_template_is_an_error(tmp_path):
    expect_error(write_folder(tmp_path, templates=TEMPLATES[:1]), "relations.jsonl: no template for relation 'P20'")


@pytest.mark.parametrize("template", ["was born in [Y]", "[X] was born", "[X] [X] in [Y]", "[X] in [Y] [Y]"])
def test_a_template_needs_each_slot_once(tmp_path, template):
    expect_error(write_folder(tmp_path, templates=[{"relation": "P19", "template": template}]), "relations.jsonl:1: field 'template'")


def test_a_relation_has_one_template(tmp_path):
    expect_error(write_folder(tmp_path, templates=TEMPLATES + TEMPLATES[:1]), "relations.jsonl:4: field 'relation'", "'P19'")


def test_folders_without_data(tmp_path):
    expect_error(tmp_path / "nowhere", "relations.jsonl: no such file")
    expect_error(tmp_path, "relations.jsonl: no such file")
    (tmp_path / "file").write_text("{}")
    expect_error(tmp_path / "file", "relations.jsonl: no such file")
    write_lines(tmp_path / "relations.jsonl", TEMPLATES)
    expect_error(tmp_path, "TREx: expected a folder with files P*.jsonl")
    write_lines(tmp_path / "TREx" / "P19.jsonl", [])
    expect_error(tmp_path, "TREx: expected at least one fact")


BAD_RECORDS = {
    "no mask": (make_record(texts=["Ada left Paris."]), "field 'masked_sentence'", "found 0"),
    "two masks": (make_record(texts=["fine [MASK]", "[MASK] [MASK]"]), "field 'masked_sentence'", "found 2"),
    "mask in the subject": (make_record(sub_label="Ada [MASK]"), "field 'sub_label'", "found 2"),
    "empty object": (make_record(obj_label=" "), "field 'obj_label'", "not empty"),
    "no evidence": (make_record(texts=[]), "field 'evidences'", "not empty"),
    "subject is a number": (make_record(sub_label=3), "field 'sub_label'", "expected str, found int"),
    "evidence is text": (make_record(evidences=["Ada [MASK]"]), "field 'evidences'", "expected dict, found str"),
    "sentence is missing": (make_record(evidences=[{"sub_surface": "Ada"}]), "field 'masked_sentence'", "missing"),
    "surface is missing": (make_record(evidences=[{"masked_sentence": "Ada [MASK]"}]), "field 'sub_surface'", "missing"),
    "the fact again": (make_record(), "is on line 1 too", "'P19/Q1/Q10'"),
}


@pytest.mark.parametrize("record, field, reason", BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_bad_record_names_file_line_and_field(tmp_path, record, field, reason):
    expect_error(write_folder(tmp_path, [make_record(), record]), "P19.jsonl:2: ", field, reason)


@pytest.mark.parametrize("key", ["predicate_id", "sub_uri", "sub_label", "obj_uri", "obj_label", "evidences"])
def test_a_missing_key_is_named(tmp_path, key):
    record = make_record(subject_id="Q2")
    del record[key]
    folder = write_folder(tmp_path)
    write_lines(folder / "TREx" / "P19.jsonl", [make_record(), record])
    expect_error(folder, f"P19.jsonl:2: field '{key}': missing")


def test_a_fact_in_the_wrong_file_is_named(tmp_path):
    folder = write_folder(tmp_path)
    write_lines(folder / "TREx" / "P19.jsonl", [make_record("P20")])
    expect_error(folder, "P19.jsonl:1: field 'predicate_id'", "expected 'P19'", "found 'P20'")


@pytest.mark.parametrize("damage, reason", [(lambda raw: raw[:-20], "expected one JSON object"), (lambda raw: raw.replace(b"left", b"l\xff"), "UTF-8")])
def test_a_cut_line_and_another_encoding_are_told_apart(tmp_path, damage, reason):
    path = write_folder(tmp_path) / "TREx" / "P20.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    expect_error(tmp_path, "P20.jsonl:1: ", reason)


def loads_or_says_why(raw):
    with tempfile.TemporaryDirectory() as folder:
        folder = write_folder(Path(folder))
        (folder / "TREx" / "P19.jsonl").write_bytes(raw)
        try:
            assert all(evidence.text.count(MASK) == 1 for evidence in load_trex(folder).train)
        except DataError as error:
            assert "P19.jsonl" in str(error) and "\n" not in str(error)


VALID = (json.dumps(make_record()) + "\n" + json.dumps(make_record(subject_id="Q2")) + "\n").encode()
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=4)
KEYS = [("predicate_id",), ("sub_uri",), ("sub_label",), ("obj_uri",), ("obj_label",), ("evidences",), ("evidences", 0)]
KEYS += [("evidences", 0, "masked_sentence"), ("evidences", 0, "sub_surface")]


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


@pytest.mark.skipif("MODMEM_TREX" not in os.environ, reason="MODMEM_TREX names no folder with LAMA's T-REx")
def test_the_real_data_loads():
    benchmark = load_trex(os.environ["MODMEM_TREX"], keep_duplicates=True)
    facts = benchmark.facts
    assert len(facts) == len(set(facts)) == len(benchmark.test) == 19_642
    assert len({fact.relation for fact in facts}) == 24
    assert len(facts) - len(Counter((fact.subject, fact.relation, fact.object) for fact in facts)) == 13
    assert all(evidence.text.count(MASK) == 1 for evidence in (*benchmark.train, *benchmark.test))
    assert benchmark_statistics(benchmark).loc["T-REx (training)"].tolist() == [120_915, 19_642, 93_585]
    assert len(load_trex(os.environ["MODMEM_TREX"]).train) == 93_585
