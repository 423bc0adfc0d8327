"""Files that are not what they should be: each is refused in one line, with exit code 2, and nothing is written."""
import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modmem import cli

EDIT = {
    "subject": "Ada Ash", "relation": "birthplace", "object": "Paris", "new_object": "Oslo",
    "evidence": ["Ada Ash was born in [MASK]."], "test": ["Ada Ash comes from [MASK]."], "id": "1",
}
LAMA = {
    "predicate_id": "P19", "sub_label": "Ada Ash", "obj_label": "Paris", "sub_uri": "Q1", "obj_uri": "Q2",
    "evidences": [{"masked_sentence": "Ada Ash was born in [MASK].", "sub_surface": "Ada Ash"}],
}
KILT = {"id": "1", "input": "Ada Ash [SEP] birthplace", "output": [{"answer": "Paris"}], "meta": {"template_questions": ["Where was Ada Ash born?", "Whence is Ada Ash?"]}}
COMMANDS = {
    "edit": ["edit", "synthetic", "edits.jsonl", "--blocks", "0", "--radius", "0.1", "--output", "output"],
    "lama": ["finetune", "synthetic", "--trex", "data", "--steps", "1", "--output", "output"],
    "kilt": ["finetune", "synthetic", "--zsre", "kilt.jsonl", "--steps", "1", "--output", "output"],
}
GOOD, FILES = {"edit": EDIT, "lama": LAMA, "kilt": KILT}, {"edit": "edits.jsonl", "lama": "data/TREx/P19.jsonl", "kilt": "kilt.jsonl"}
LONG = "a" * 10_000_000


def line(record):
    return json.dumps(record).encode() + b"\n"


def replaced(record, path, value):
    "A copy with one value replaced: `path` leads to it."
    copy = json.loads(json.dumps(record))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def without(record, key):
    return {name: value for name, value in record.items() if name != key}


TEXTS = {  # kind of file -> what has to be text there
    "edit": [("subject",), ("relation",), ("object",), ("new_object",), ("evidence", 0), ("test", 0), ("id",)],
    "lama": [("predicate_id",), ("sub_label",), ("obj_label",), ("sub_uri",), ("obj_uri",), ("evidences", 0, "masked_sentence"), ("evidences", 0, "sub_surface")],
    "kilt": [("id",), ("input",), ("output", 0, "answer"), ("meta", "template_questions", 0)],
}
LISTS = {"edit": [("evidence",)], "lama": [("evidences",)], "kilt": [("output",), ("meta", "template_questions")]}
NO_TEXT = {"number": 3, "NaN": float("nan"), "true": True, "list": ["a"], "object": {"a": 1}, "empty": "", "blanks": " \t\n", "half a pair": "\ud800"}
NO_LIST = {"text": "Ada [MASK]", "null": None, "object": {"0": "[MASK]"}, "empty": [], "of null": [None], "of lists": [["[MASK]"]], "of numbers": [1]}


def damage_bytes(good):
    "What no JSON-lines file is."
    text = line(good)
    return {
        "empty file": b"", "blank lines": b"\n\r\n \n", "not JSON": b"subject: Ada\n", "cut": text[:-9], "cut in the middle": text[: len(text) // 2] + b"\n", "no object": b"[1, 2]\n",
        "a number": b"1\n", "null": b"null\n", "text": b'"Ada"\n', "two objects": text.strip() + text, "a list of lines": b"[" + text.strip() + b"]\n", "a comma behind": text.strip() + b",\n",
        "not UTF-8": text + b"\xff\xfe\n", "UTF-16": text.decode().encode("utf-16"), "Latin-1": text.replace(b"Ada", "Adá".encode("latin-1")), "NUL": text + b"\0\n", "NUL inside": text.replace(b"Ada", b"A\0da"),
        "zeros": b"\0" * 4096, "pickle": b"\x80\x04\x95\n", "zip": b"PK\x03\x04\n", "gzip": b"\x1f\x8b\x08\0\n", "deep": b"[" * 100_000 + b"\n", "deep object": b'{"a":' * 100_000 + b"\n",
        "huge number": b'{"a": ' + b"1" * 100_000 + b"}\n", "a key twice": text.rstrip()[:-1] + b', "' + list(good)[0].encode() + b'": "again"}\n', "Pretty printed": json.dumps(good, indent=1).encode(),
        "a mark in the middle": text + b"\xef\xbb\xbf" + text, "single quotes": text.replace(b'"', b"'"), "Old Mac line ends": text.replace(b"\n", b"\r") * 2, "the same line twice": text * 2,
        "a carriage return inside": text.replace(b"Ada", b"A\rda"), "a huge line": text + LONG.encode() + b"\n", "an unknown escape": text.replace(b"Ada", b"\\xda"),
    }


BY_HAND = {
    "edit": {
        "no evidence": without(EDIT, "evidence"), "keys of another tool": {"prompt": "Ada {}", "target_new": {"str": "Oslo"}}, "an unknown key": EDIT | {"tests": []}, "a key in capitals": without(EDIT, "subject") | {"Subject": "Ada"},
        "mask of another family": EDIT | {"evidence": ["Ada Ash was born in <mask>."]}, "two masks": EDIT | {"evidence": ["[MASK] [MASK]"]}, "a mask in small letters": EDIT | {"evidence": ["Ada was born in [mask]."]},
        "its test is its evidence": EDIT | {"test": EDIT["evidence"]}, "the same but for spaces": EDIT | {"test": ["Ada  Ash was born in [MASK]."]}, "the object it has": EDIT | {"new_object": "Paris"}, "the object it has, in parts": EDIT | {"object": "\u00c5s", "new_object": "A\u030as"},
        "a mask for an answer": EDIT | {"new_object": "[MASK]"}, "a mask in an answer": EDIT | {"new_object": "old [MASK]"}, "10 MB without a mask": EDIT | {"evidence": [LONG]}, "10 MB for a key": EDIT | {LONG: 1},
        "emoji without a mask": EDIT | {"evidence": ["\N{SNOWMAN}\U0001f600"]}, "right to left without a mask": EDIT | {"evidence": ["\u202eעדה נולדה ב"]}, "a test that is null": EDIT | {"test": None}, "a test that is text": EDIT | {"test": "[MASK]"},
        "line ends in an unknown key": EDIT | {"a\nb\r\u2028c": 1}, "nothing but a name": {"id": "1"}, "no key at all": {},
    },
    "lama": {
        "another relation": LAMA | {"predicate_id": "P20"}, "a mask for an answer": LAMA | {"obj_label": "[MASK]"}, "a mask in the subject": LAMA | {"sub_label": "[MASK]"}, "evidence of texts": LAMA | {"evidences": ["Ada [MASK]"]}, "10 MB without a mask": replaced(LAMA, ("evidences", 0, "masked_sentence"), LONG),
        "two masks": replaced(LAMA, ("evidences", 0, "masked_sentence"), "[MASK] [MASK]"), "mask of another family": replaced(LAMA, ("evidences", 0, "masked_sentence"), "in <mask>"), "KILT": KILT, "edits": EDIT,
    },
    "kilt": {
        "a mask for an answer": KILT | {"output": [{"answer": "[MASK]"}]}, "no relation": KILT | {"input": "Ada Ash"}, "three parts": KILT | {"input": "a [SEP] b [SEP] c"}, "no subject": KILT | {"input": " [SEP] b"}, "a mask in a question": replaced(KILT, ("meta", "template_questions", 0), "Where is [MASK]?"),
        "output of texts": KILT | {"output": ["Paris"]}, "no answer": KILT | {"output": [{"provenance": []}]}, "meta is a list": KILT | {"meta": ["Where?"]}, "no questions": KILT | {"meta": {"a": 1}}, "10 MB of input": KILT | {"input": LONG}, "LAMA": LAMA, "edits": EDIT,
    },
}


def make_cases():
    cases = {}
    for kind, good in GOOD.items():
        cases |= {(kind, name): content for name, content in damage_bytes(good).items()}
        cases |= {(kind, f"{'.'.join(map(str, path))}: {name}"): replaced(good, path, value) for path in TEXTS[kind] for name, value in (NO_TEXT | ({} if path == ("object",) else {"null": None})).items()}
        cases |= {(kind, f"{'.'.join(map(str, path))}: {name}"): replaced(good, path, value) for path in LISTS[kind] for name, value in NO_LIST.items()}
        cases |= {(kind, f"without {key}"): without(good, key) for key in good if (kind, key) not in (("edit", "test"), ("edit", "id"))}
        cases |= {(kind, name): record for name, record in BY_HAND[kind].items()}
    return cases


CASES = make_cases()
TEMPLATES = {
    "no file": None, "empty": b"", "not JSON": b"P19\n", "no template": b'{"relation": "P19"}\n', "of no text": b'{"relation": "P19", "template": 1}\n', "no slot": b'{"relation": "P19", "template": "born"}\n',
    "one slot": b'{"relation": "P19", "template": "[X] born"}\n', "three slots": b'{"relation": "P19", "template": "[X] [Y] [Y]"}\n', "another relation": b'{"relation": "P20", "template": "[X] [Y]"}\n',
    "twice": b'{"relation": "P19", "template": "[X] [Y]"}\n' * 2, "a mask in it": b'{"relation": "P19", "template": "[X] [MASK] [Y]"}\n',
}


def put(folder, kind, content, template=b'{"relation": "P19", "template": "[X] was born in [Y] ."}\n'):
    "Write a file, and for LAMA what belongs to it."
    path = folder / FILES[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else line(content))
    if kind == "lama" and template is not None:
        (folder / "data" / "relations.jsonl").write_bytes(template)


def assert_refused(code, output, errors, named=""):
    assert code == 2 and output == "", errors[:500]
    assert errors.startswith("modmem: ") and len(errors.splitlines()) == 1 and "Traceback" not in errors and named in errors, errors[:500]
    assert len(errors) < 1500, "too long to read"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_more_than_two_hundred():
    assert len(CASES) + len(TEMPLATES) > 250


@pytest.mark.parametrize("kind, name", CASES, ids=lambda part: part.replace(" ", "_"))
def test_a_malformed_file_is_refused_in_one_line(folder, capsys, kind, name):
    put(folder, kind, CASES[kind, name])
    code = cli.main(COMMANDS[kind])
    assert_refused(code, *capsys.readouterr(), named=FILES[kind].partition("/")[0])
    assert not (folder / "output").exists()


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_malformed_template_is_refused_in_one_line(folder, capsys, name):
    put(folder, "lama", LAMA, TEMPLATES[name])
    code = cli.main(COMMANDS["lama"])
    assert_refused(code, *capsys.readouterr(), named="data")
    assert not (folder / "output").exists()


@pytest.mark.parametrize("fields", [{"new_object": "[PAD]"}, {"evidence": ["Ada Ash [SEP] in [MASK]."]}, {"test": ["[CLS] Ada Ash in [MASK]."]}], ids=list)
def test_special_tokens_of_the_model_are_no_text(folder, capsys, fields):
    put(folder, "edit", EDIT | {"new_object": "calton"} | fields)
    code, (output, errors) = cli.main(COMMANDS["edit"]), capsys.readouterr()
    assert (code, output) == (2, "") and "a special token of this model" in errors.splitlines()[-1] and "edits.jsonl:1: " in errors
    assert not (folder / "output").exists()


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just("[MASK]"), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)


@pytest.mark.parametrize("kind", GOOD)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_in_a_file_is_read_or_refused(folder, kind, data):
    from modmem.edits import read_edits
    from modmem.files import DataError
    from modmem.trex import load_trex
    from modmem.zsre import load_zsre

    path = data.draw(st.sampled_from([*TEXTS[kind], *LISTS[kind]]))
    drawn = line(replaced(GOOD[kind], path, data.draw(JSON)))
    place = data.draw(st.integers(0, len(drawn)))
    content = data.draw(st.sampled_from([drawn, drawn[:place], drawn[:place] + data.draw(st.binary(max_size=4)) + drawn[place:]]))
    put(folder, kind, content)
    try:
        {"edit": read_edits, "lama": lambda _: load_trex("data"), "kilt": load_zsre}[kind](FILES[kind])
    except DataError as error:
        assert len(str(error).splitlines()) == 1 and FILES[kind].partition("/")[0] in str(error)


WHOLE = [("edit", "cut"), ("kilt", "deep")]
MORE = [("edit", "NUL"), ("edit", "10 MB for a key"), ("edit", "two masks"), ("edit", "not UTF-8"), ("lama", "zeros"), ("lama", "another relation"), ("lama", "a huge line"), ("kilt", "three parts"), ("kilt", "huge number"), ("kilt", "empty file")]


@pytest.mark.parametrize("kind, name", [*WHOLE, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)])
def test_a_whole_command_refuses_before_torch_is_imported(folder, kind, name):
    put(folder, kind, CASES[kind, name])
    script = "import sys; from modmem.cli import main; code = main(); assert not {'torch', 'transformers'} & set(sys.modules), code; sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", script, *COMMANDS[kind]], capture_output=True, text=True)
    assert_refused(done.returncode, done.stdout, done.stderr, FILES[kind].partition("/")[0])
    assert not (folder / "output").exists()
