"""Lists of edits: what a line means, and what no line may do."""
import json
import math
import tracemalloc
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modmem.edits import UNKNOWN, check_phrasings, read_edits
from modmem.facts import MASK
from modmem.files import DataError


def make_line(**fields):
    return {
        "subject": "Ada Ash",
        "relation": "birthplace",
        "object": "Paris",
        "new_object": "Oslo",
        "evidence": ["Ada Ash was born in [MASK].", "[MASK] is where she was born."],
        "test": ["Ada Ash comes from [MASK]."],
    } | fields


OTHER = make_line(subject="Ben Bay", evidence=["Ben Bay was born in [MASK]."], test=[])


def write(folder, *lines):
    path = folder / "edits.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def error_of(path):
    with pytest.raises(DataError) as caught:
        read_edits(path)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path.parent}/")


def test_a_line_becomes_a_modified_fact_with_its_evidence(tmp_path):
    modified = read_edits(write(tmp_path, make_line(), OTHER))
    (old, new), _ = modified.modified_facts.items()
    assert (old.subject, old.relation, old.object, new.object, new.id) == ("Ada Ash", "birthplace", "Paris", "Oslo", old.id)
    assert [(evidence.text, evidence.fact.object, evidence.subject_surface) for evidence in modified.modified_train[:2]] == [
        ("Ada Ash was born in [MASK].", "Oslo", "Ada Ash"),
        ("[MASK] is where she was born.", "Oslo", None),
    ]
    assert [evidence.text for evidence in modified.modified_test] == ["Ada Ash comes from [MASK]."]
    assert modified.unmodified_train == modified.unmodified_test == () and math.isnan(modified.majority_share)


def test_an_old_object_may_be_unknown_and_tests_may_be_absent(tmp_path):
    line = make_line(object=None)
    del line["test"]
    modified = read_edits(write(tmp_path, line))
    assert [old.object for old in modified.modified_facts] == [UNKNOWN]
    assert modified.modified_test == ()


def test_an_id_is_kept_and_tells_namesakes_apart(tmp_path):
    lines = [make_line(id="P19/Q1/Q2"), make_line(id="P19/Q3/Q2", evidence=["Ada Ash II is from [MASK]."], test=[])]
    assert [fact.id for fact in read_edits(write(tmp_path, *lines)).modified_facts] == ["P19/Q1/Q2", "P19/Q3/Q2"]


def test_a_repeated_sentence_counts_once(tmp_path):
    assert len(read_edits(write(tmp_path, make_line(evidence=["Ada Ash: [MASK]", "b [MASK]", "Ada Ash: [MASK]"]))).modified_train) == 2


BAD_LINES = {
    "empty object": ({"new_object": " "}, "field 'new_object': expected a str that is not empty"),
    "empty old object": ({"object": ""}, "field 'object': expected a str that is not empty"),
    "wrong type": ({"subject": 3}, "field 'subject': expected str, found int"),
    "the same object": ({"new_object": "Paris"}, "field 'new_object': expected another object than the old one, found 'Paris'"),
    "no evidence": ({"evidence": []}, "field 'evidence': expected a list that is not empty"),
    "evidence is text": ({"evidence": "Ada [MASK]"}, "field 'evidence': expected list, found str"),
    "sentence is a number": ({"evidence": ["a [MASK]", 3]}, "field 'evidence[1]': expected str, found int"),
    "no mask": ({"evidence": ["Ada was born."]}, "field 'evidence[0]': an evidence needs exactly one [MASK], found 0"),
    "two masks": ({"evidence": ["a [MASK]", "[MASK] [MASK]"]}, "field 'evidence[1]': an evidence needs exactly one [MASK], found 2"),
    "no mask in a test": ({"test": ["Ada was born."]}, "field 'test[0]': an evidence needs exactly one [MASK], found 0"),
    "test is text": ({"test": ""}, "field 'test': expected list, found str"),
    "test is null": ({"test": None}, "field 'test': expected list, found NoneType"),
    "id is a number": ({"id": 7}, "field 'id': expected str, found int"),
}


@pytest.mark.parametrize("fields, reason", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_names_file_line_and_field(tmp_path, fields, reason):
    assert error_of(write(tmp_path, OTHER, make_line(**fields))).startswith(f"edits.jsonl:2: {reason}")


@pytest.mark.parametrize("key", ["subject", "relation", "object", "new_object", "evidence"])
def test_a_missing_key_is_named(tmp_path, key):
    line = make_line()
    del line[key]
    assert error_of(write(tmp_path, OTHER, line)) == f"edits.jsonl:2: field '{key}': missing"


def test_files_that_are_no_lists_of_edits(tmp_path):
    path = write(tmp_path, make_line())
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert error_of(path).startswith("edits.jsonl:1: expected one JSON object")
    path.write_bytes(whole.replace(b"Ada", b"Ad\xe9"))
    assert error_of(path).startswith("edits.jsonl:1: expected UTF-8 text, found byte 0xe9")
    path.write_bytes(b"\n")
    assert error_of(path) == "edits.jsonl: expected at least one edit"
    path.unlink()
    assert error_of(path) == "edits.jsonl: no such file"


@pytest.mark.parametrize("new_object", ["Oslo", "Rome"])
def test_a_fact_has_one_line(tmp_path, new_object):
    again = make_line(new_object=new_object, evidence=["Ada is a native of [MASK]."], test=[])
    assert error_of(write(tmp_path, make_line(), OTHER, again)) == (
        "edits.jsonl:3: expected one line a fact, 'Ada Ash/birthplace' is on line 1 too"
    )


@pytest.mark.parametrize("side", ["evidence", "test"])
def test_a_sentence_has_one_answer(tmp_path, side):
    text = make_line()[side][0].replace(" ", "  ")
    rival = OTHER | {"new_object": "Rome", "evidence": ["fine [MASK]"], side: [text]}
    message = error_of(write(tmp_path, make_line(), rival))
    assert message.startswith(f"edits.jsonl:2: field '{side}': expected one answer") and message.endswith("'Rome', and 'Oslo' on line 1")


@pytest.mark.parametrize("lines", [[make_line(test=["Ada Ash  was born in [MASK]."])], [make_line(test=OTHER["evidence"]), OTHER]], ids=["own", "other"])
def test_what_is_trained_on_is_no_test(tmp_path, lines):
    message = error_of(write(tmp_path, *lines))
    assert message.startswith("edits.jsonl:1: field 'test': expected a phrasing that is not trained on")
    assert message.endswith(f"is evidence on line {len(lines)}")


@pytest.mark.parametrize(
    "text, leaks",
    [("Born in oslo: [MASK].", True), ("[MASK], Oslo", True), ("Osloer Str. is in [MASK].", False), ("Paris or [MASK]?", False)],
)
def test_a_sentence_with_its_own_answer_is_warned_about(tmp_path, text, leaks):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_edits(write(tmp_path, OTHER, make_line(evidence=[text, "Ada Ash is at home in [MASK]."])))
    messages = [str(warning.message).removeprefix(f"{tmp_path}/") for warning in caught]
    assert messages == ([f"edits.jsonl:2: field 'evidence': {text!r} contains its own answer, 'Oslo'"] if leaks else [])


def test_capitals_make_two_sentences_until_a_model_says_otherwise(tmp_path):
    path = write(tmp_path, make_line(subject="Turkey", evidence=["Turkey is in [MASK]."], test=["turkey is in [MASK]."]))
    assert [evidence.text for evidence in read_edits(path).modified_test] == ["turkey is in [MASK]."]


@pytest.mark.parametrize("pairs", [[("TCP", "IP/layer"), ("TCP/IP", "layer")], [("a\\", "b/c"), ("a/b", "c")], [("a\\/b", "c"), ("a/b", "c")], [("a\\", "b"), ("a", "\\b")]])
def test_two_facts_whose_labels_run_together_are_two(tmp_path, pairs):
    lines = [make_line(subject=subject, relation=relation, evidence=[f"{subject} {number} [MASK]"], test=[]) for number, (subject, relation) in enumerate(pairs)]
    assert len(read_edits(write(tmp_path, *lines)).modified_facts) == 2


@pytest.mark.parametrize("key", ["tests", "evidences", "Subject"])
def test_a_key_that_is_not_read_is_refused(tmp_path, key):
    assert error_of(write(tmp_path, OTHER, make_line(**{key: []}))).startswith(f"edits.jsonl:2: field {key!r}: expected one of subject, relation,")


def test_a_subject_that_is_in_no_sentence_is_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="edits.jsonl:2: field 'subject': 'Ada Ash' is in none of the evidence") as caught:
        read_edits(write(tmp_path, OTHER, make_line(evidence=["She is from [MASK]."])))
    assert len(caught) == 1


def test_a_key_given_twice_is_refused(tmp_path):
    path = write(tmp_path, make_line())
    path.write_text(path.read_text().replace('"relation"', '"new_object": "Rome", "relation"'))
    assert error_of(path) == "edits.jsonl:1: expected one JSON object, but the key 'new_object' is given twice"


def test_a_mark_before_the_text_and_letters_in_two_parts_are_read(tmp_path):
    path = write(tmp_path, make_line())
    path.write_text("\ufeff" + json.dumps(make_line(new_object="Malmo\u0308"), ensure_ascii=False) + "\n", encoding="utf-8")
    assert [fact.object for fact in read_edits(path).modified_facts.values()] == ["Malm\u00f6"]


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=4)


@given(st.sampled_from([*make_line(), "id"]), JSON | st.lists(st.text().map(lambda text: text + MASK)))
def test_any_value_in_any_field_reads_or_says_why(tmp_path_factory, key, value):
    path = write(tmp_path_factory.getbasetemp(), make_line(**{key: value}))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert all(evidence.text.count(MASK) == 1 for evidence in read_edits(path).modified_train)
    except DataError as error:
        assert str(error).startswith(f"{path}:1: ") and "\n" not in str(error)


@pytest.mark.parametrize("words", [800, 8000])  # the second are not even kept
def test_a_subject_that_the_window_cuts_off_is_warned_about(tmp_path, words):
    from tiny_models import tiny_bert

    masked_lm, far = tiny_bert(), "Ada Ash . " + "she was . " * (words // 2) + "born in [MASK] ."
    path = write(tmp_path, make_line(evidence=[far, far.replace(" born", " Ada Ash born")]))
    edits = read_edits(path)
    with pytest.warns(UserWarning, match="edits.jsonl:1: field 'evidence': the subject 'Ada Ash' is cut off") as told:
        check_phrasings(masked_lm, edits, path)
    assert len(told) == 1


def test_of_documents_only_what_a_model_can_read_is_held(tmp_path):
    words = "she was . " * 30_000  # 300 KB
    lines = [make_line(subject=f"Ada {number}", evidence=[f"{words} Ada {number} was born in [MASK] . {words}"], test=[]) for number in range(20)]
    path = write(tmp_path, *lines)
    tracemalloc.start()
    edits = read_edits(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(edits.modified_train) == 20 and all(len(evidence.text) < 12 * 512 for evidence in edits.modified_train)
    assert held < 20 * 15 * 512 and peak < 13 * len(words) < path.stat().st_size / 3
