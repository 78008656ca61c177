"""Remote files: resumed where they broke off, whole or not at all, and never another version's
bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from llm import params
from llm.errors import UserError
from llm.sources import remote_files
from llm.sources.download import write_raw
from llm.sources.raw import read
from llm.sources.readers.paths import Input, find

WHOLE = 1 << 30  # an answer that is not cut
CONTENT = random.Random(0).randbytes(3_000_000)


class Server:
    """Files over HTTP, with a connection that breaks where it is told to."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges, self.says_size = True, True
        self.break_after: list[
            int
        ] = []  # bytes of the next answers after which the connection is cut
        self.etag = "v1"
        self.sent = 0
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(False)

            def do_GET(self) -> None:
                self._answer(True)

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _answer(self, body: bool) -> None:
                data = outer.files.get(self.path.split("?")[0])
                if data is None:
                    self.send_error(404)
                    return
                start, end = 0, len(data)
                asked = (
                    re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                    if outer.ranges
                    else None
                )
                if asked:
                    start, end = int(asked[1]), min(len(data), int(asked[2] or len(data)) + 1)
                self.send_response(206 if asked else 200)
                if asked:
                    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
                if outer.says_size:
                    self.send_header("Content-Length", str(end - start))
                self.send_header("Accept-Ranges", "bytes" if outer.ranges else "none")
                self.send_header("ETag", outer.etag)
                self.end_headers()
                if not body:
                    return
                outer.asked.append(self.headers.get("Range", ""))
                cut = outer.break_after.pop(0) if outer.break_after else end - start
                self.wfile.write(data[start : min(end, start + cut)])
                outer.sent += min(end - start, cut)
                self.close_connection = True

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote_files, "PAUSE", 0.01)
    monkeypatch.setattr(remote_files, "BLOCK", 1 << 18)
    monkeypatch.setattr(remote_files, "CHUNK", 1 << 18)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    server.files["/a.bin"] = CONTENT
    yield server
    server.http.shutdown()
    server.http.server_close()


def one(server: Server, path: str = "/a.bin") -> Input:
    (found,) = find([server.url + path], "paths")
    return found


def copied(source: Input) -> bytes:
    with source.open() as file:
        return file.read()


def test_a_file_comes_whole_and_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    assert copied(remote_files.fetch(one(server), tmp_path)) == CONTENT
    sent = server.sent
    again = remote_files.fetch(one(server), tmp_path)
    assert copied(again) == CONTENT
    assert again.title == server.url + "/a.bin"
    assert server.sent - sent < 1000
    assert not list(tmp_path.glob("*.part"))


def test_a_download_that_breaks_off_goes_on_from_there(server: Server, tmp_path: Path) -> None:
    source = one(server)
    server.sent, server.break_after = 0, [1000, WHOLE, 0, 0, WHOLE, 77]
    assert copied(remote_files.fetch(source, tmp_path)) == CONTENT
    assert server.sent < 1.4 * len(CONTENT)


def test_after_a_kill_only_the_missing_bytes_come_and_no_half_file_has_the_final_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = one(server)
    seen: list[int] = []

    def killed(count: int) -> None:
        seen.append(count)
        if sum(seen) > 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remote_files.fetch(source, tmp_path, killed)
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".part", ".stamp"]
    server.sent = 0
    assert copied(remote_files.fetch(one(server), tmp_path)) == CONTENT
    assert server.sent < len(CONTENT) - 500_000


def test_a_server_that_cannot_skip_is_read_from_the_beginning(
    server: Server, tmp_path: Path
) -> None:
    server.ranges = False
    source = one(server)
    server.break_after = [500_000]
    assert copied(remote_files.fetch(source, tmp_path)) == CONTENT


def test_a_network_that_stays_away_is_named_with_what_came_and_nothing_has_the_final_name(
    server: Server, tmp_path: Path
) -> None:
    source = one(server)
    server.break_after = [WHOLE, *[0] * 50]
    with pytest.raises(
        UserError, match=r"a\.bin: broke off after [\d,]+ of 3,000,000 bytes, 5 times.*resumes"
    ):
        remote_files.fetch(source, tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".part", ".stamp"}
    server.break_after = []
    assert copied(remote_files.fetch(source, tmp_path)) == CONTENT


def test_another_version_is_begun_anew_and_one_that_changes_is_refused(
    server: Server, tmp_path: Path
) -> None:
    source = one(server)
    with pytest.raises(KeyboardInterrupt):
        remote_files.fetch(source, tmp_path, lambda count: (_ for _ in ()).throw(KeyboardInterrupt))
    other = CONTENT[::-1]
    server.files["/a.bin"], server.etag = other, "v2"
    assert copied(remote_files.fetch(one(server), tmp_path)) == other

    def changing(count: int) -> None:
        server.etag = "v4"

    server.etag = "v3"
    with pytest.raises(UserError, match="changed while it was downloaded"):
        remote_files.fetch(one(server), tmp_path, changing)
    assert not list(tmp_path.glob("*.part"))


def test_what_does_not_fit_on_the_disk_is_refused_before_it_is_begun(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(
        UserError,
        match=r"a\.bin: the bytes that are missing will take about 0\.00 GB, and .* has 0\.00 GB free",
    ):
        remote_files.fetch(one(server), tmp_path)
    assert server.sent < 10


def load(out: Path, *paths: str, **options: Any) -> tuple[list[str], dict[str, Any]]:
    source = params.FilesSource(source="files", paths=list(paths), **options)
    manifest = write_raw("set", "pretrain", source, out)
    return [record["text"] for record in read(out)], manifest


def test_records_of_a_server_and_of_a_memory_bucket_have_the_bytes_of_local_ones(
    server: Server, tmp_path: Path
) -> None:
    lines = b"".join(json.dumps({"text": f"line {i}"}).encode() + b"\n" for i in range(2000))
    packed = gzip.compress(lines, mtime=0)
    server.files["/deep/a.jsonl.gz"] = packed
    fsspec.filesystem("memory").pipe("/fetched/a.jsonl.gz", packed)
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    server.break_after = [100]
    results = [
        load(tmp_path / "http", f"{server.url}/deep/a.jsonl.gz?version=3"),
        load(tmp_path / "memory", "memory://fetched/a.jsonl.gz"),
        load(tmp_path / "file", f"file://{tmp_path}/a.jsonl.gz"),
        load(tmp_path / "local", str(tmp_path / "a.jsonl.gz")),
    ]
    assert all(texts == results[-1][0] for texts, _ in results)
    assert len(results[-1][0]) == 2000
    digest = hashlib.sha256(packed).hexdigest()
    assert {manifest["inputs"][0]["sha256"] for _, manifest in results} == {digest}


def test_a_password_in_an_address_is_not_shown(server: Server, tmp_path: Path) -> None:
    address = server.url.replace("http://", "http://jane:secret@")
    with pytest.raises(UserError, match="nothing found there") as caught:
        load(tmp_path / "out", f"{address}/absent.txt")
    assert "secret" not in str(caught.value)
    server.files["/a.txt"] = b"some text"
    _, manifest = load(tmp_path / "out", f"{address}/a.txt")
    assert "secret" not in json.dumps(manifest["inputs"])


def test_a_file_system_that_is_not_installed_is_named() -> None:
    with pytest.raises(
        UserError, match=r"paths: s3://bucket/x needs another package .*s3fs|cannot be opened"
    ):
        find(["s3://bucket/x"], "paths")
    with pytest.raises(UserError, match=r"paths: nonsense://x cannot be opened .*nonsense"):
        find(["nonsense://x"], "paths")
