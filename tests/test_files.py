"""Errors that name their place; files and folders that are whole or absent; tensors with a record."""
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modmem.files import (
    DataError, check_choice, check_whole, get_field, load_record, read_jsonl, save_record, write_atomically, write_folder_atomically,
)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({}, "a.jsonl: expected text"),
        ({"line": 7}, "a.jsonl:7: expected text"),
        ({"field": "object"}, "a.jsonl: field 'object': expected text"),
        ({"line": 7, "field": "object"}, "a.jsonl:7: field 'object': expected text"),
    ],
)
def test_an_error_reads_file_line_field_expected(place, message):
    assert str(DataError("expected text", "a.jsonl", **place)) == message
    assert issubclass(DataError, ValueError)


def test_lines_come_with_their_numbers_and_empty_ones_are_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"a": 1}\n  \n{"a": "é\u2028"}', encoding="utf-8")
    assert list(read_jsonl(path)) == [(2, {"a": 1}), (4, {"a": "é\u2028"})]
    path.write_bytes(b'{"a": 1}\r\n{"a": 2}\r\n')
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (2, {"a": 2})]


BAD_LINES = {
    "cut": (b'{"a": "Syd', "expected one JSON object"),
    "not UTF-8": ('{"a": "Köln"}'.encode("latin-1"), "expected UTF-8 text, found byte 0xf6"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "expected UTF-8 text, found byte 0xff"),
    "a list": (b'["a"]', "expected one JSON object, found list"),
    "a number": (b"3", "expected one JSON object, found int"),
    "two objects": (b'{"a": 1} {"a": 2}', "expected one JSON object"),
    "too deep": (b"[" * 100_000, "expected one JSON object"),
    "huge number": (b'{"a": ' + b"9" * 5000 + b"}", "expected one JSON object"),
    "byte order mark": (b'\xef\xbb\xbf{"a": 1}', "expected one JSON object"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named_in_one_line(tmp_path, case):
    content, expected = BAD_LINES[case]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"fine": 1}\n' + content)
    lines = read_jsonl(path)
    assert next(lines) == (1, {"fine": 1})
    with pytest.raises(DataError) as caught:
        next(lines)
    assert str(caught.value).startswith(f"{path}:2: {expected}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_missing_file_and_a_folder_are_no_files(tmp_path):
    for path in (tmp_path / "nowhere.jsonl", tmp_path):
        with pytest.raises(DataError) as caught:
            next(read_jsonl(path))
        assert str(caught.value) == f"{path}: no such file"


@given(st.lists(st.binary(max_size=12)))
def test_any_bytes_are_read_or_reported(lines):

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl")
        path.write_bytes(b"\n".join(lines))
        try:
            assert all(isinstance(record, dict) for _, record in read_jsonl(path))
        except DataError as error:
            assert str(error).startswith(f"{path}:")


def test_a_field_is_looked_up_with_its_type():
    record = {"text": "a", "list": [0], "dict": {"a": 0}}
    assert get_field(record, "text", str, "a", 1) == "a"
    assert get_field(record, "list", list, "a", 1) == [0]
    assert get_field(record, "dict", dict, "a", 1) == {"a": 0}


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (None, str, "expected str, found NoneType"),
        (3, str, "expected str, found int"),
        ("abc", list, "expected list, found str"),
        ([], dict, "expected dict, found list"),
        ("", str, "expected a str that is not empty"),
        (" \t", str, "expected a str that is not empty"),
        ([], list, "expected a list that is not empty"),
        ({}, dict, "expected a dict that is not empty"),
        ("a\ud800", str, "expected text, found half of a surrogate pair"),
    ],
)
def test_a_bad_field_names_its_place(value, kind, expected):
    with pytest.raises(DataError) as caught:
        get_field({"object": value}, "object", kind, "a.jsonl", 3)
    assert str(caught.value) == f"a.jsonl:3: field 'object': {expected}"


def test_a_missing_field_names_its_place():
    with pytest.raises(DataError, match="a.jsonl:3: field 'object': missing"):
        get_field({}, "object", str, "a.jsonl", 3)


def test_a_written_file_appears_at_the_end_in_a_folder_made_for_it(tmp_path):
    path = tmp_path / "new" / "folder" / "row.json"
    with write_atomically(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent and temporary.suffix == ".json"  # writers that go by the suffix
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644  # others may read it, unlike a temporary file


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_no_litter(tmp_path, error):
    path = tmp_path / "row.txt"
    path.write_text("old")
    with pytest.raises(error):
        with write_atomically(path) as temporary:
            temporary.write_text("half a n")
            raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_rename_leaves_no_litter(tmp_path):
    path = tmp_path / "taken"
    path.mkdir()
    with pytest.raises(OSError):
        with write_atomically(path) as temporary:
            temporary.write_text("new")
    assert list(tmp_path.iterdir()) == [path]


def test_of_two_writers_the_last_to_finish_wins_whole(tmp_path):
    path = tmp_path / "row.txt"
    with write_atomically(path) as outer:
        outer.write_text("outer")
        with write_atomically(path) as inner:
            inner.write_text("inner, which is longer")
        assert path.read_text() == "inner, which is longer"
    assert path.read_text() == "outer"
    assert list(tmp_path.iterdir()) == [path]


def test_readers_among_writers_see_whole_files_only(tmp_path):
    path, sizes = tmp_path / "row.txt", {"a": 100_000, "b": 200_000}
    path.write_text("a" * sizes["a"])

    def write(letter):
        for _ in range(20):
            with write_atomically(path) as temporary, temporary.open("w") as content:
                for _ in range(10):
                    content.write(letter * (sizes[letter] // 10))
                    content.flush()

    writers = [threading.Thread(target=write, args=letter) for letter in sizes]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        text = path.read_text()
        assert text == text[0] * sizes[text[0]]
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import sys, time
from modmem.files import write_atomically
with write_atomically(sys.argv[1]) as temporary, temporary.open("w") as content:
    content.write("half a res")
    content.flush()
    print("written", flush=True)
    time.sleep(60)
"""


def test_an_error_goes_from_one_process_to_another():
    error = DataError("expected text", "facts.jsonl", 3, "evidence[0]")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "facts.jsonl:3: field 'evidence[0]': expected text" and vars(again) == vars(error)


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL there")
@pytest.mark.parametrize("older", [None, "old"])
def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path, older):
    path = tmp_path / "row.txt"
    if older:
        path.write_text(older)
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "written\n"
        writer.send_signal(signal.SIGKILL)
    assert (path.read_text() if path.exists() else None) == older


@pytest.mark.parametrize("value", [0, -1, 1.0, True, False, "3", None])
def test_a_setting_that_is_no_whole_number_is_refused_by_name_and_value(value):
    with pytest.raises(ValueError, match=f"batch_size must be a whole number from 1, not {value!r}"):
        check_whole("batch_size", value)
    check_whole("batch_size", 1)
    check_whole("seed", 0, least=0)


def test_a_setting_that_is_no_choice_is_refused_with_the_choices():
    check_choice("norm", "l2", {"linf": 1, "l2": 2})
    with pytest.raises(ValueError, match="norm must be 'linf' or 'l2', not None"):
        check_choice("norm", None, ("linf", "l2"))


def test_a_folder_appears_whole_and_replaces_one_of_its_kind_only(tmp_path):
    folder = tmp_path / "new" / "model"
    for content in ("first", "second"):
        with write_folder_atomically(folder, marker="config.json") as temporary:
            (temporary / "config.json").write_text(content)
        assert (folder / "config.json").read_text() == content and list(folder.parent.iterdir()) == [folder]
    with pytest.raises(KeyboardInterrupt), write_folder_atomically(folder, marker="config.json") as temporary:
        (temporary / "config.json").write_text("half")
        raise KeyboardInterrupt
    assert (folder / "config.json").read_text() == "second" and list(folder.parent.iterdir()) == [folder]
    (folder / "config.json").rename(folder / "todo.txt")
    with pytest.raises(DataError, match="model: expected a new folder, or one with config.json"):
        with write_folder_atomically(folder, marker="config.json"):
            pytest.fail("never gets here")
    assert (folder / "todo.txt").read_text() == "second"


def test_tensors_come_back_with_their_record(tmp_path):
    import torch

    path, tensors = tmp_path / "a.safetensors", {"weight": torch.tensor([[1.0, -0.0]]), "bits": torch.tensor([3], dtype=torch.int32)}
    save_record(path, tensors, "example", {"steps": 70, "name": "x"})
    found, record = load_record(path, "example", frozenset({"steps"}))
    assert record == {"steps": 70, "name": "x"} and found.keys() == tensors.keys()
    assert all(found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(DataError, match="a.safetensors: expected the record of modmem's edit in the header, found none"):
        load_record(path, "edit")
    with pytest.raises(DataError, match="found an incomplete one"):
        load_record(path, "example", frozenset({"seed"}))


@pytest.mark.parametrize("megabytes", [2, 120])
def test_a_record_that_no_header_holds_comes_back(tmp_path, megabytes):
    import torch

    path, tensors = tmp_path / "a.safetensors", {"bits": torch.tensor([3], dtype=torch.int32)}
    record = {"evidence": ["\u00e4 \"" * (1 << 17)] * megabytes, "steps": 70}
    save_record(path, tensors, "example", record)
    for with_tensors in (True, False):
        found, read = load_record(path, "example", frozenset({"steps"}), with_tensors)
        assert read == record and list(found) == ["bits"] * with_tensors
    with path.open("rb") as file:
        assert int.from_bytes(file.read(8), "little") < 1000, "the header stays small"
    if megabytes == 2:
        data = bytearray(path.read_bytes())
        place = data.index(b'"steps"')
        data[place] = 0xFF
        path.write_bytes(data)
        with pytest.raises(DataError, match="found none that can be read"):
            load_record(path, "example")
