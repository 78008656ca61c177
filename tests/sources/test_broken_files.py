"""Files as they are found broken in the world: each is read as far as it goes or refused by name,
in bounded memory.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from llm import params
from llm.errors import UserError
from llm.sources import changed_files, download
from llm.sources.download import write_raw
from llm.sources.raw import read
from llm.sources.readers import compression
from llm.sources.readers import open as readers
from llm.sources.readers import paths as inputs
from llm.sources.readers.paths import Input, find


def load(
    folder: Path, *paths: str | Path, kind: str = "pretrain", **options: Any
) -> tuple[list[Any], dict[str, Any]]:
    source = params.FilesSource(source="files", paths=[str(path) for path in paths], **options)
    manifest = write_raw("mine", kind, source, folder / "out.d")
    return list(read(folder / "out.d")), manifest


def texts(folder: Path, path: Path, **options: Any) -> list[str]:
    return [record["text"] for record in load(folder, path, **options)[0]]


def put(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


# -- encodings

SAMPLE = 'Grüße aus München, "wörtlich": naïve café, 50 £.'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.txt.gz"])
def test_encodings_with_a_mark_are_read_in_every_format(
    tmp_path: Path, encoding: str, name: str
) -> None:
    documents = [SAMPLE, "zweiter"]
    content = {
        ".txt": "\n<|endoftext|>\n".join(documents),
        ".jsonl": "".join(json.dumps({"text": d}, ensure_ascii=False) + "\n" for d in documents),
        ".json": json.dumps([{"text": d} for d in documents], ensure_ascii=False),
        ".csv": "text\n" + "".join('"' + d.replace('"', '""') + '"\n' for d in documents),
    }[Path(name.removesuffix(".gz")).suffix]
    data = content.encode(encoding)
    path = put(tmp_path, name, gzip.compress(data) if name.endswith(".gz") else data)
    assert texts(tmp_path, path) == documents


def test_other_encodings_are_read_where_they_are_named_and_guessed_where_not(
    tmp_path: Path,
) -> None:
    lines = "".join(
        json.dumps({"text": f"{SAMPLE} {i}"}, ensure_ascii=False) + "\n" for i in range(30)
    )
    path = put(tmp_path, "a.jsonl", lines.encode("cp1252"))
    assert texts(tmp_path, path, encoding="windows-1252")[3] == f"{SAMPLE} 3"
    with pytest.raises(
        UserError, match=r"(?s)not UTF-8: byte 0xfc.*looks like cp1252.*mine\.encoding: cp1252"
    ):
        load(tmp_path, path)
    greek = put(tmp_path, "b.txt", ("Καλημέρα κόσμε " * 20).encode("utf-16-be"))
    assert texts(tmp_path, greek, encoding="utf-16-be") == [("Καλημέρα κόσμε " * 20)]
    with pytest.raises(UserError, match=r"is not utf-32 after byte 0"):
        load(tmp_path, greek, encoding="utf-32")
    data = _default()
    data["download"]["pretrain"] = {"source": "files", "paths": ["x"], "encoding": "utf-99"}
    with pytest.raises(UserError, match=r"encoding: 'utf-99' is not an encoding that Python knows"):
        params.parse(data)


def _default() -> dict[str, Any]:
    import yaml

    loaded: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    return loaded


def test_a_file_of_several_encodings_loses_only_the_lines_that_are_not_utf8(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"ä {i}"}, ensure_ascii=False).encode("latin-1" if i % 10 == 3 else "utf-8")
             for i in range(40)]  # fmt: skip
    records, manifest = load(
        tmp_path, put(tmp_path, "a.jsonl", b"\n".join(lines)), max_rejected_fraction=0.2
    )
    assert [r["text"] for r in records] == [f"ä {i}" for i in range(40) if i % 10 != 3]
    assert [e["line"] for e in manifest["rejected"]["examples"]] == [4, 14, 24, 34]


# -- compression

LINES = b"".join(
    json.dumps({"text": f"line {i} {os.urandom(20).hex()}"}).encode() + b"\n" for i in range(2000)
)
PACKED = {
    "gz": gzip.compress(LINES),
    "bz2": bz2.compress(LINES[:9000]) + bz2.compress(LINES[9000:]),
    "xz": lzma.compress(LINES[:9000]) + b"\0" * 8 + lzma.compress(LINES[9000:]) + b"\0" * 4,
    "zst": b"".join(
        zstandard.ZstdCompressor(write_checksum=True).compress(x)
        for x in (LINES[:9000], LINES[9000:])
    ),
}


@pytest.mark.parametrize("suffix", PACKED)
def test_compressed_files_of_several_streams_are_read_whole_and_cut_ones_refused(
    tmp_path: Path, suffix: str
) -> None:
    assert len(texts(tmp_path, put(tmp_path, f"a.jsonl.{suffix}", PACKED[suffix]))) == 2000
    assert len(texts(tmp_path, put(tmp_path, "unnamed.jsonl", PACKED[suffix]))) == 2000
    cut = put(tmp_path, f"cut.jsonl.{suffix}", PACKED[suffix][:-2000])
    with pytest.raises(UserError, match=r"cut\.jsonl\.\w+: ends in the middle of its \w+ data"):
        load(tmp_path, cut)
    at = len(PACKED[suffix]) // 2
    damaged = put(
        tmp_path,
        f"bad.jsonl.{suffix}",
        PACKED[suffix][:at] + b"\xff" * 900 + PACKED[suffix][at + 900 :],
    )
    with pytest.raises(
        UserError, match=r"bad\.jsonl\.\w+: (corrupt|cannot be read|ends in the middle)"
    ):
        load(tmp_path, damaged)
    with pytest.raises(
        UserError, match=r"page\.jsonl\.\w+: is not \w+ data, though its name says so"
    ):
        load(tmp_path, put(tmp_path, f"page.jsonl.{suffix}", b"<html>404 not found</html>"))


def bombs() -> Iterator[tuple[str, bytes]]:
    zeros = (b'{"text": "' + b"a" * 60_000 + b'"}\n') * 16
    for suffix, compressor in (
        ("gz", lambda data: gzip.compress(data, 9)),
        ("bz2", bz2.compress),
        ("xz", lambda data: lzma.compress(data, preset=0)),
        ("zst", zstandard.ZstdCompressor(level=19).compress),
    ):
        yield suffix, compressor(zeros) * 50  # 48 MB, 800 lines


@pytest.mark.parametrize(
    ("suffix", "data"), bombs(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_bomb_is_refused_after_little_and_honest_compression_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, data: bytes
) -> None:
    monkeypatch.setattr(compression, "BOMB_BYTES", 8 << 20)
    path = put(tmp_path, f"bomb.jsonl.{suffix}", data)
    with pytest.raises(
        UserError,
        match=r"bomb\.jsonl\.\w+: [\d,]+ stored bytes unpack to more than .* that is no text",
    ):
        load(tmp_path, path)
    monkeypatch.setattr(compression, "BOMB_BYTES", 1 << 30)
    assert len(texts(tmp_path, path, max_documents=3)) == 3


# -- size: in a process that may not have more memory
#   ------------------------------------------------------------------

READ = """
import resource, sys, json
from llm.sources.readers import paths as inputs, open as readers
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = bad = size = 0
with readers.open_table(inputs.find([sys.argv[1]], "paths")[0], "auto", "pretrain") as table:
    for row in table.rows:
        rows += row.record is not None
        bad += row.record is None
        size += len(row.record["text"]) if row.record else 0
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([rows, bad, size, (peak - base) / 1024]))
"""


def measured(path: Path) -> tuple[int, int, int, float]:
    """Rows, rows set aside, characters, and MiB that reading took."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], env=environment, capture_output=True, check=True
    )
    rows, bad, size, memory = json.loads(done.stdout)
    return rows, bad, size, memory


def test_a_file_of_one_line_is_cut_into_documents(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    with open(path, "wb") as file:
        for _ in range(200):
            file.write(b"word " * 200_000)  # 1 MB
    rows, bad, size, memory = measured(path)
    assert rows > 5000
    assert bad == 0
    assert size >= 199_000_000
    assert memory < 200


def test_a_document_of_a_hundred_megabytes_is_set_aside_and_those_around_it_stay(
    tmp_path: Path,
) -> None:
    path = tmp_path / "long.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"first\n<|endoftext|>\n")
        block = os.urandom(500_000).hex().encode()
        for _ in range(100):
            file.write(block)
        file.write(b"\n<|endoftext|>\nlast")
    rows, bad, size, memory = measured(path)
    assert (rows, bad, size) == (2, 1, len("firstlast"))
    assert memory < 500


def test_a_row_group_larger_than_memory_may_be_is_read_a_page_at_a_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pa.table(
        {"text": [rng.bytes(5000).hex() for _ in range(30_000)]}
    )  # 300 MB in one row group
    pq.write_table(
        table,
        tmp_path / "big.parquet",
        compression="none",
        row_group_size=10**9,
        use_dictionary=False,
    )
    del table
    assert pq.ParquetFile(tmp_path / "big.parquet").num_row_groups == 1
    rows, _, size, memory = measured(tmp_path / "big.parquet")
    assert (rows, size) == (30_000, 300_000_000)
    assert memory < 150


def test_a_large_piece_is_read_in_time_that_grows_with_its_size_alone(tmp_path: Path) -> None:
    """Four KiB of zstd may hold 128 MiB: to copy the rest at each read took minutes."""
    compressor = zstandard.ZstdCompressor().compressobj()
    zeros = b"a" * (1 << 24)
    data = b"".join(compressor.compress(zeros) for _ in range(20)) + compressor.flush()
    path = put(tmp_path, "bomb.jsonl.zst", data)
    begun = time.process_time()
    with pytest.raises(
        UserError,
        match=r"bomb\.jsonl\.zst: [\d,]+ stored bytes unpack to more than .* that is no text",
    ):
        load(tmp_path, path)
    assert time.process_time() - begun < 10


def test_a_parquet_bomb_is_held_row_by_row(tmp_path: Path) -> None:
    """2,000 rows of 10 MB each, all one word of a dictionary: 20 GB in a megabyte."""
    repeated = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(2000, np.int32)), pa.array(["z" * 10_000_000])
    )
    pq.write_table(pa.table({"text": repeated}), tmp_path / "bomb.parquet", store_schema=False)
    with readers.open_table(
        find([str(tmp_path / "bomb.parquet")], "paths")[0], "auto", "pretrain"
    ) as table:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for row, _ in zip(table.rows, range(60), strict=False):
            assert row.record is not None
            assert len(row.record["text"]) == 10_000_000
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 400


# -- NUL, types, ids


def test_a_file_that_ends_in_nuls_as_after_a_crash_keeps_what_came_before(tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "line %d"}\n' % i for i in range(500))
    records, manifest = load(tmp_path, put(tmp_path, "a.jsonl", lines + b"\0" * 50_000))
    assert len(records) == 500
    assert manifest["rejected"]["examples"][0]["line"] == 501
    records, manifest = load(tmp_path, put(tmp_path, "b.txt", b"one\n<|endoftext|>\ntwo" + b"\0" * 50_000),
                             max_rejected_fraction=0.5)  # fmt: skip
    assert [r["text"] for r in records] == ["one"]
    assert manifest["rejected"]["by_reason"] == {"NUL characters": 1}


@pytest.mark.parametrize(
    ("values", "type", "reason"),
    [
        ([1, 2], pa.int64(), "text is not a string: found int"),
        ([b"a", b"b"], pa.binary(), "text is not a string: found bytes"),
        ([["a"], []], pa.list_(pa.string()), "text is not a string: found list"),
        ([{"a": 1}, {"a": 2}], pa.struct([("a", pa.int64())]), "text is not a string: found dict"),
        ([None, None], pa.null(), "no text: null"),
        ([1.5, float("nan")], pa.float32(), "text is not a string: found float"),
    ],
)
def test_a_column_of_another_type_is_named(
    tmp_path: Path, values: list[Any], type: pa.DataType, reason: str
) -> None:
    pq.write_table(pa.table({"text": pa.array(values, type)}), tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match=rf"2 of 2 records have the wrong shape(.|\n)*a\.parquet:1: {reason}"
    ):
        load(tmp_path, tmp_path / "a.parquet")


def test_columns_whose_type_changes_from_line_to_line_lose_only_the_wrong_ones(
    tmp_path: Path,
) -> None:
    lines = [
        '{"text": "a"}',
        '{"text": ["a"]}',
        '{"text": "b", "extra": 1}',
        '{"text": {"a": 1}}',
        '{"text": "c"}',
    ]
    records, manifest = load(
        tmp_path, put(tmp_path, "a.jsonl", "\n".join(lines).encode()), max_rejected_fraction=0.5
    )
    assert [r["text"] for r in records] == ["a", "b", "c"]
    assert manifest["rejected"]["by_reason"] == {"text is not a string": 2}


# -- places


def test_a_path_upwards_is_read_and_leaves_no_trace_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "repository/deep").mkdir(parents=True)
    put(tmp_path / "data", "a.txt", b"text")
    monkeypatch.chdir(tmp_path / "repository/deep")
    records, manifest = load(tmp_path, "../../data/../data/a.txt")
    assert records[0]["id"] == "a.txt:1"
    assert str(tmp_path) not in json.dumps(manifest["inputs"])


@pytest.mark.parametrize(
    "name", ["a\nb.txt", "a\x1b[31m.txt", "a\u2028b.txt", os.fsdecode(b"caf\xe9.txt")]
)
def test_a_name_with_a_line_end_or_bytes_that_are_no_text_is_refused(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("text")
    with pytest.raises(
        UserError, match=r"download\.mine\.paths: the name .* holds a line end or .* Rename it"
    ) as caught:
        load(tmp_path, tmp_path)
    assert str(caught.value).isprintable()


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    put(tmp_path / "a/b", "x.txt", b"text")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    assert texts(tmp_path, tmp_path / "a") == ["text"]
    for pattern in ("one", "one/*.txt", "one/**"):
        with pytest.raises(UserError, match="one"):
            load(tmp_path, tmp_path / pattern)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match=r"pipe\.txt: is no file"):
        load(tmp_path, tmp_path / "pipe.txt")
    put(tmp_path, "a.txt", b"text")
    assert texts(tmp_path, tmp_path) == ["text"]


# -- change


@pytest.mark.parametrize("how", ["appended", "replaced", "cut"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    path = put(tmp_path, "log.jsonl", b'{"text": "line"}\n' * 1000)
    add = download.RecordFilter.add

    def changing(self: download.RecordFilter, row: readers.Row, *args: Any) -> None:
        if row.line == 500 and how == "appended":
            with open(path, "ab") as file:
                file.write(b'{"text": "late"}\n')
        elif row.line == 500 and how == "replaced":
            (tmp_path / "other").write_bytes(b'{"text": "LINE"}\n' * 1000)
            os.replace(tmp_path / "other", path)
        elif row.line == 500:
            os.truncate(path, 17)
        add(self, row, *args)

    monkeypatch.setattr(download.RecordFilter, "add", changing)
    with pytest.raises(UserError, match=r"log\.jsonl: changed while it was read\. Rerun"):
        load(tmp_path, path)


def test_a_pinned_file_must_have_its_digest(tmp_path: Path) -> None:
    path = put(tmp_path, "a.txt", b"text")
    digest = Input(str(path)).sha256()
    _, manifest = load(tmp_path, path, sha256={str(path): digest}, licence="CC0-1.0", revision="v7")
    assert (manifest["licence"], manifest["revision"].split(";")[0]) == ("CC0-1.0", "v7")
    put(tmp_path, "a.txt", b"tixt")
    with pytest.raises(
        UserError,
        match=rf"a\.txt: its SHA-256 is \w+, expected {digest}: it is damaged, or another",
    ):
        load(tmp_path, path, sha256={str(path): digest})
    with pytest.raises(
        UserError, match=r"sha256: b\.txt is not among the files found \(.*a\.txt\)"
    ):
        load(tmp_path, path, sha256={"b.txt": digest})


def test_a_file_of_the_same_name_with_other_bytes_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for name in ("a.txt", "b.txt"):
        put(tmp_path, name, b"some text")
    data = _default()
    data["download"]["pretrain"] = {"source": "files", "paths": ["*.txt"]}
    p = params.parse(data)
    manifest = write_raw("pretrain", "pretrain", p.download["pretrain"], Path("data/raw/pretrain"))
    assert changed_files.note(manifest) == []
    assert changed_files.changes(p) == []
    os.utime("a.txt")  # touched, not changed
    assert changed_files.changes(p) == []
    put(tmp_path, "a.txt", b"SOME TEXT")
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    assert changed_files.changes(p) == [
        "pretrain: a.txt has other bytes", "pretrain: c.txt is new", "pretrain: b.txt is gone"
    ]  # fmt: skip
    Path("params.yaml").write_text(json.dumps(data))
    changed_files.show()
    printed = capsys.readouterr().out
    assert "a.txt has other bytes" in printed
    assert "dvc repro -f download" in printed
    again = write_raw("pretrain", "pretrain", p.download["pretrain"], Path("data/raw/pretrain"))
    (line,) = changed_files.note(again)
    assert line.startswith("a.txt: same name, other bytes than when it was last read (SHA-256 ")
    changed_files.notes_path().write_text("{broken")
    assert changed_files.changes(p) == []


# -- any bytes at all


def test_a_stream_that_ends_early_is_not_taken_for_a_whole_one() -> None:
    class Short(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            return 0

    source = Input("x.jsonl.xz")
    for data in (PACKED["xz"][:400], PACKED["xz"][:12]):
        raw = io.BufferedReader(compression.Counting(io.BytesIO(data)))  # type: ignore[arg-type]
        with (
            pytest.raises(UserError, match="ends in the middle of its xz data"),
            inputs.reading(source),
        ):
            compression.decompress(raw, compression.Counting(io.BytesIO()), source).read()
    assert io.BufferedReader(Short()).read() == b""
