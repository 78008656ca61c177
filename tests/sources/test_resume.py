"""A download that was killed goes on at its last finished part, and ends with the same bytes."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm import params
from llm.errors import UserError
from llm.runtime import disk
from llm.sources import download, raw
from llm.sources.download import write_raw
from tests import warm

SMALL = (3000, 700, None)  # bytes of a part and of a row group
CHILD = """
import json, os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from llm import params
from llm.sources import raw, download as sources; from llm.runtime import disk as room

kind, source, out, nth = sys.argv[1:]
raw.Writer.__init__.__defaults__ = (3000, 700, None)
calls, real = 0, sources.RecordFilter.add

def add(*args):
    global calls
    calls += 1
    if calls == int(nth):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)

sources.RecordFilter.add = add
kinds = {"files": params.FilesSource, "hub": params.HubSource, "mixture": params.MixtureSource}
given = json.loads(source)
copies = Path(out).with_name("copies") if "://" in source else None
sources.write_raw(kind, kind, kinds[given["source"]](**given), Path(out), copies)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three files of documents with ids, some of them repeated, and some lines that are none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(raw.Writer.__init__, "__defaults__", SMALL)
    Path("texts").mkdir()
    for number in range(3):
        with gzip.open(f"texts/{number}.jsonl.gz", "wt") as file:
            for i in range(60):
                record: dict[str, Any] = {
                    "text": f"text {i} of file {number}, " * (1 + i % 9),
                    "source": f"s{i % 2}",
                }
                if number:
                    record["id"] = str(i % 25)
                file.write("broken\n" if i % 20 == 7 else json.dumps(record) + "\n")
    return tmp_path


def files_source(**changes: Any) -> params.FilesSource:
    return params.FilesSource(
        **{"source": "files", "paths": ["texts"], "max_rejected_fraction": 0.5, **changes}
    )


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def killed(source: params.Source, out: Path, nth: int, kind: str = "pretrain") -> None:
    command = [warm.python(), "-c", CHILD, kind, source.model_dump_json(), str(out), str(nth)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("kills", [[3], [70], [100, 30], [171]])
@pytest.mark.parametrize("limit", [None, 95])
def test_a_killed_download_goes_on_and_gives_the_same_bytes(
    kills: list[int],
    limit: int | None,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if limit and kills != [70]:
        pytest.skip("one is enough")
    source = files_source(max_documents=limit)
    write_raw("pretrain", "pretrain", source, folder / "whole")
    for nth in kills:
        killed(source, folder / "out", nth)
    capsys.readouterr()
    rows = seen(monkeypatch)
    write_raw("pretrain", "pretrain", source, folder / "out")
    assert content(folder / "out") == content(folder / "whole")
    assert ("resumes after" in capsys.readouterr().out) == (kills != [3])
    if kills == [171]:
        assert len(rows) < 40, (
            "only what came after the last finished part is read into records again"
        )
    assert sorted(path.name for path in folder.iterdir()) == ["out", "texts", "whole"], (
        "no record is left behind"
    )


@pytest.mark.parametrize("damage", ["part", "record"])
def test_damaged_parts_and_records_are_written_again(damage: str, folder: Path) -> None:
    source = files_source()
    write_raw("pretrain", "pretrain", source, folder / "whole")
    killed(source, folder / "out", 150)
    if damage == "part":
        path = folder / "out" / "part-00000.parquet"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    else:
        os.truncate(folder / "out.part.json", 30)
    write_raw("pretrain", "pretrain", source, folder / "out")
    assert content(folder / "out") == content(folder / "whole")


def test_a_killed_download_of_a_hub_data_set_goes_on(folder: Path) -> None:
    import pandas as pd

    (folder / "set").mkdir()
    rows = [
        {"id": f"{i % 150}", "text": f"a text, number {i}, " * 3, "label": f"l{i % 3}"}
        for i in range(200)
    ]
    pd.DataFrame(rows).to_parquet(folder / "set" / "train-00000-of-00001.parquet")
    source = params.HubSource(source="hub", id=str(folder / "set"), revision="0000000")
    write_raw("classification", "classification", source, folder / "whole")
    killed(source, folder / "out", 180, kind="classification")
    assert (folder / "out.part.json").exists()
    write_raw("classification", "classification", source, folder / "out")
    assert content(folder / "out") == content(folder / "whole")


def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Yield the rows that pass the filter from now on."""
    rows: list[Any] = []
    real = download.RecordFilter.add

    def add(*args: Any) -> None:
        rows.append(args[1])
        real(*args)

    monkeypatch.setattr(download.RecordFilter, "add", add)
    return rows


def test_ids_that_the_params_name_stay_unique(folder: Path) -> None:
    source = files_source(columns={"id": "id"}, paths=["texts/1.jsonl.gz", "texts/2.jsonl.gz"])
    write_raw("pretrain", "pretrain", source, folder / "whole")
    killed(source, folder / "out", 100)
    write_raw("pretrain", "pretrain", source, folder / "out")
    assert content(folder / "out") == content(folder / "whole")
    ids = [record["id"] for record in raw.read(folder / "out", ["id"])]
    assert len(set(ids)) == len(ids)


def test_remote_files_go_on_with_the_copies_that_are_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(folder) as (url, asked):
        source = files_source(paths=[f"{url}/texts/{number}.jsonl.gz" for number in range(3)])
        write_raw("pretrain", "pretrain", source, folder / "whole", folder / "other")
        killed(source, folder / "out", 171)
        asked.clear()
        rows = seen(monkeypatch)
        write_raw("pretrain", "pretrain", source, folder / "out", folder / "copies")
        assert content(folder / "out") == content(folder / "whole")
        assert len(rows) < 40
        assert "GET" not in asked, "the copies are whole"
        killed(source, folder / "out", 171)
        rows.clear()
        write_raw("pretrain", "pretrain", source, folder / "out")  # copies of its own
        assert content(folder / "out") == content(folder / "whole")
        assert len(rows) == 180, "nothing says that they are the same files"


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a server of the folder's files, and the methods of what it was asked."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: Any) -> None:
            asked.append(self.command)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("change", ["done", "begun", "gone", "params"])
def test_other_files_or_params_begin_anew(
    change: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = files_source()
    killed(source, folder / "out", 171)
    assert (folder / "out.part.json").exists()
    if change == "gone":
        os.unlink("texts/1.jsonl.gz")
    elif change == "params":
        source = files_source(licence="CC0-1.0")
    else:
        with gzip.open(f"texts/{0 if change == 'done' else 2}.jsonl.gz", "wt") as file:
            file.write('{"text": "quite another text"}\n')
    rows = seen(monkeypatch)
    write_raw("pretrain", "pretrain", source, folder / "out")
    assert len(rows) == {"done": 121, "begun": 121, "gone": 120, "params": 180}[change]
    write_raw("pretrain", "pretrain", source, folder / "whole")
    assert content(folder / "out") == content(folder / "whole")


@pytest.mark.parametrize("limit", range(20, 40))
def test_a_limit_may_be_reached_with_the_last_record_of_a_part(limit: int, folder: Path) -> None:
    source = files_source(
        paths=["texts/0.jsonl.gz"], test_paths=["texts/1.jsonl.gz"], max_documents=limit
    )
    assert write_raw("pretrain", "pretrain", source, folder / "out")["rows"] == 2 * limit


def test_a_mixture_goes_on_in_the_source_that_was_being_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = {
        name: files_source(paths=[f"texts/{i}.jsonl.gz"]).model_dump()
        for i, name in enumerate(("web", "books"))
    }
    source = params.MixtureSource.model_validate(
        {"source": "mixture", "sources": inner, "max_repeats": 2}
    )
    write_raw("pretrain", "pretrain", source, folder / "whole")
    killed(source, folder / "out", 115)
    (folder / "out" / "part-00099.parquet").touch()
    rows = seen(monkeypatch)
    write_raw("pretrain", "pretrain", source, folder / "out")
    assert content(folder / "out") == content(folder / "whole")
    assert 60 < len(rows) < 100, (
        "the first source again, of the second only what came after its last part"
    )


def test_what_was_not_utf8_is_still_known(folder: Path) -> None:
    line = "größer und schöner, überall für Mädchen und Bäume"
    Path("foreign.jsonl").write_bytes(
        b"".join(f'{{"text": "{line} {i}"}}\n'.encode("cp1252") for i in range(40))
    )
    with open("foreign.jsonl", "ab") as file:
        file.write(
            b"".join(json.dumps({"text": f"plain {i} " * 20}).encode() + b"\n" for i in range(60))
        )
    source = params.FilesSource(source="files", paths=["foreign.jsonl"])
    told = []
    for out in ("whole", "out"):
        if out == "out":
            killed(source, folder / out, 95)
            assert (folder / "out.part.json").exists()
        with pytest.raises(UserError, match="looks like") as caught:
            write_raw("pretrain", "pretrain", source, folder / out)
        told.append(str(caught.value))
    assert told[0] == told[1]


def test_a_download_that_cannot_fit_is_refused_before_it_begins(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(
        UserError, match=r"download\.pretrain: the records will take about .*max_documents"
    ):
        write_raw("pretrain", "pretrain", files_source(), folder / "out")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    write_raw("pretrain", "pretrain", files_source(), folder / "out")
