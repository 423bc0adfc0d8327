"""Downloads from a server of our own, which cuts, corrupts and refuses; archives that try to get out."""
import hashlib
import http.server
import io
import tempfile
import threading
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import modmem.download
from modmem.download import download, download_trex, download_zsre, unzip
from modmem.files import DataError
from modmem.trex import load_trex

LINES = b'{"id": "train-1"}\n' * 20_000
RECORD = (
    b'{"predicate_id": "P19", "sub_uri": "Q1", "sub_label": "Ada", "obj_uri": "Q2", "obj_label": "Paris", '
    b'"evidences": [{"sub_surface": "Ada", "masked_sentence": "Ada left [MASK]."}]}\n'
)
MEMBERS = {"data/relations.jsonl": b'{"relation": "P19", "template": "[X] was born in [Y] ."}\n', "data/TREx/P19.jsonl": RECORD}


def make_zip(members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return packed.getvalue()


class Server:
    "Serves `content` by path; `missing_bytes` are announced and not sent."

    def __init__(self):
        self.content, self.missing_bytes, self.requests = {}, 0, 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests += 1
                body = outer.content.get(self.path)
                if body is None:
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) - outer.missing_bytes])

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    server.content = {"/zsre.jsonl": LINES, "/data.zip": make_zip(MEMBERS)}
    yield server
    server.close()


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) if folder.exists() else []


def expect_error(call, *parts):
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_file_is_fetched_once_and_recorded(server, tmp_path):
    path = download_zsre(tmp_path / "new" / "folder", url=f"{server.url}/zsre.jsonl")
    assert path.read_bytes() == LINES
    record = path.with_name(path.name + ".sha256")
    assert record.read_text() == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
    assert names(path.parent) == [path.name, record.name] and path.stat().st_mode & 0o777 == 0o644
    assert download_zsre(path.parent, url=f"{server.url}/zsre.jsonl") == path
    assert server.requests == 1


def test_trex_is_unpacked_and_loads(server, tmp_path):
    folder = download_trex(tmp_path, url=f"{server.url}/data.zip")
    assert [fact.id for fact in load_trex(folder).facts] == ["P19/Q1/Q2"]
    server.content.clear()
    assert download_trex(tmp_path, url=f"{server.url}/data.zip") == folder
    assert names(tmp_path) == ["LAMA/data/TREx/P19.jsonl", "LAMA/data/relations.jsonl", "data.zip", "data.zip.sha256"]


def test_a_body_that_is_cut_leaves_nothing_and_the_next_call_is_whole(server, tmp_path):
    server.missing_bytes = 7
    for name, fetch in [("data.zip", download_trex), ("zsre.jsonl", download_zsre)]:
        expect_error(lambda: fetch(tmp_path, url=f"{server.url}/{name}"), f"{server.url}/{name}: ")
        assert list(tmp_path.iterdir()) == []
    server.missing_bytes = 0
    assert download_zsre(tmp_path, url=f"{server.url}/zsre.jsonl").read_bytes() == LINES


def test_a_cut_that_the_http_library_does_not_notice_is_noticed(tmp_path, monkeypatch):
    class Downloader:
        def __init__(self, progressbar, **options):
            self.bar = progressbar

        def __call__(self, url, path, pooch):
            self.bar.total = 10
            Path(path).write_bytes(b"{five")

    monkeypatch.setattr(modmem.download, "HTTPDownloader", Downloader)
    expect_error(lambda: download_zsre(tmp_path, url="http://server/zsre.jsonl"), "expected 10 bytes, the connection ended after 5")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(modmem.download, "HTTPDownloader", lambda **options: interrupt)
    with pytest.raises(KeyboardInterrupt):
        download_zsre(tmp_path, url="http://server/zsre.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_one_line(server, tmp_path):
    expect_error(lambda: download_zsre(tmp_path, url=f"{server.url}/nowhere"), "nowhere: cannot be downloaded, 404")
    expect_error(lambda: download_zsre(tmp_path, url="http://127.0.0.1:1/zsre"), "http://127.0.0.1:1/zsre: cannot be downloaded")
    expect_error(lambda: download_zsre(tmp_path, url="no url at all"), "no url at all: cannot be downloaded")
    assert list(tmp_path.iterdir()) == []


def test_a_login_page_is_not_data(server, tmp_path):
    server.content = dict.fromkeys(server.content, b"<html>Welcome to our hotel</html>")
    for name, fetch, start in [("data.zip", download_trex, "b'PK'"), ("zsre.jsonl", download_zsre, "b'{'")]:
        expect_error(lambda: fetch(tmp_path, url=f"{server.url}/{name}"), f"{name}: expected content that starts with {start}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changed_on_disk_is_fetched_again(server, tmp_path):
    path = download_zsre(tmp_path, url=f"{server.url}/zsre.jsonl")
    path.write_bytes(LINES[:-1])
    assert download_zsre(tmp_path, url=f"{server.url}/zsre.jsonl").read_bytes() == LINES


@pytest.mark.parametrize("on_disk", [None, b"{changed here}"])
def test_content_that_changed_at_the_source_is_refused(server, tmp_path, on_disk):
    path = download_zsre(tmp_path, url=f"{server.url}/zsre.jsonl")
    path.unlink()
    if on_disk:
        path.write_bytes(on_disk)
    before = names(tmp_path)
    server.content["/zsre.jsonl"] = b"{changed there}"
    expect_error(lambda: download_zsre(tmp_path, url=f"{server.url}/zsre.jsonl"), "zsre.jsonl: expected SHA-256", ".sha256")
    assert names(tmp_path) == before and (not on_disk or path.read_bytes() == on_disk)


def test_a_file_without_a_record_is_recorded_where_it_is(tmp_path):
    path = tmp_path / "structured_zeroshot-train-kilt.jsonl"
    path.write_bytes(LINES)
    assert download_zsre(tmp_path, url="http://127.0.0.1:1/") == path
    assert names(tmp_path) == [path.name, f"{path.name}.sha256"]


def test_a_damaged_record_is_named(server, tmp_path):
    path = tmp_path / "zsre.jsonl"
    path.with_name("zsre.jsonl.sha256").write_bytes(b"\xff not a checksum")
    expect_error(lambda: download(f"{server.url}/zsre.jsonl", path, b"{"), "zsre.jsonl.sha256:1: expected a SHA-256")
    assert not path.exists()


def expect_refusal(tmp_path, members, reason, **options):
    inner = tmp_path / "inner"
    inner.mkdir()
    archive = inner / "data.zip"
    archive.write_bytes(make_zip({"data/relations.jsonl": b"{}"} | members))
    expect_error(lambda: unzip(archive, inner / "LAMA", **options), "data.zip: ", reason)
    assert names(tmp_path) == ["inner/data.zip"] and sorted(inner.iterdir()) == [archive]


@pytest.mark.parametrize("name", ["../out", "data/../../out", "/out", "C:/out", "C:out", "..\\out", "\\\\server\\share\\out"])
def test_a_member_that_leaves_the_folder_is_refused_before_anything_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setattr(zipfile.ZipFile, "extractall", lambda *args, **options: pytest.fail("something was written"))
    expect_refusal(tmp_path, {name: b"gotcha"}, "expected members inside the folder")


@pytest.mark.parametrize("kind", [0o120777, 0o020666, 0o010666], ids=["link", "device", "pipe"])
def test_only_files_and_folders_are_unpacked(tmp_path, kind):
    member = zipfile.ZipInfo("data/thing")
    member.create_system, member.external_attr = 3, kind << 16
    expect_refusal(tmp_path, {member: b"/etc/passwd"}, "'data/thing' is neither")


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path):
    expect_refusal(tmp_path, {"zeros": bytes(1_000_000)}, "expected at most 999999 bytes", max_bytes=999_999)


def test_an_archive_of_nothing_is_refused(tmp_path):
    (tmp_path / "data.zip").write_bytes(make_zip({}))
    expect_error(lambda: unzip(tmp_path / "data.zip", tmp_path / "LAMA"), "data.zip: ", "expected files, found an empty archive")
    assert names(tmp_path) == ["data.zip"]


def test_an_interrupted_unpacking_leaves_nothing_and_starts_again(server, tmp_path, monkeypatch):
    def interrupted(archive, path):
        archive.extract(archive.namelist()[0], path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", interrupted)
        with pytest.raises(KeyboardInterrupt):
            download_trex(tmp_path, url=f"{server.url}/data.zip")
    assert names(tmp_path) == ["data.zip", "data.zip.sha256"]
    assert load_trex(download_trex(tmp_path, url=f"{server.url}/data.zip")).facts


VALID = make_zip(MEMBERS)


@given(st.lists(st.tuples(st.integers(0, len(VALID)), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=4))
def test_a_damaged_archive_unpacks_or_says_why(damages):
    raw = VALID
    for start, length, inserted in damages:
        raw = raw[:start] + inserted + raw[start + length :]
    with tempfile.TemporaryDirectory() as folder:
        archive, target = Path(folder) / "data.zip", Path(folder) / "LAMA"
        archive.write_bytes(raw)
        try:
            unzip(archive, target)
            assert target.is_dir()
        except DataError as error:
            assert "data.zip: " in str(error) and "\n" not in str(error)
            assert list(Path(folder).iterdir()) == [archive]
