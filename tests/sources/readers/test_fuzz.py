"""Whatever bytes a file holds, a reader gives rows or a UserError that names the file; never
another error.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from llm import params
from llm.errors import UserError
from llm.sources.download import write_raw
from llm.sources.raw import FIELDS, read
from llm.sources.readers import compression, paths
from llm.sources.readers import json as json_files
from llm.sources.readers import open as readers
from llm.sources.record_schema import RecordSchema, Rejected

SQUAD = {"data": [{"title": "T", "paragraphs": [{"context": "a cat sat", "qas": [
    {"id": "1", "question": "What sat?", "answers": [{"text": "cat", "answer_start": 2}]}]}]}]}  # fmt: skip
ROWS = [{"text": f"text {i} é", "label": i % 2, "document": "d", "summary": "s"} for i in range(20)]


def parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), out, row_group_size=7)
    return out.getvalue()


LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)
GOOD = {
    "a.txt": b"one\n<|endoftext|>\ntwo\n\nparts<|endoftext|>" + "drei ä".encode(),
    "a.jsonl": LINES,
    "a.json": json.dumps(ROWS).encode(),
    "squad.json": json.dumps(SQUAD).encode(),
    "a.csv": b'text,label\n"a ""quoted"" one",1\nb,0\n',
    "a.tsv": b"text\tlabel\na\t1\nb\t0\n",
    "a.parquet": parquet(),
    "a.jsonl.gz": gzip.compress(LINES),
    "a.jsonl.zst": zstandard.compress(LINES),
    "a.jsonl.bz2": bz2.compress(LINES),
    "a.jsonl.xz": lzma.compress(LINES),
    "utf16.jsonl": LINES.decode().encode("utf-16"),
}
KINDS = sorted(FIELDS)
EDIT = st.tuples(
    st.sampled_from(["cut", "flip", "insert", "repeat", "zero"]),
    st.floats(0, 1),
    st.binary(max_size=12),
)
quick = settings(max_examples=60)


def edited(data: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    for how, where, piece in edits:
        at = int(where * len(data))
        if how == "cut":
            data = data[:at]
        elif how == "flip":
            data = data[:at] + bytes(b ^ 0x55 for b in data[at : at + 3]) + data[at + 3 :]
        elif how == "insert":
            data = data[:at] + piece + data[at:]
        elif how == "repeat":
            data = data[:at] + data[at // 2 :]
        else:
            data = data[:at] + bytes(40) + data[at + 40 :]
    return data


def rows(path: Path, kind: str, format: str = "auto", encoding: str = "auto") -> int:
    """Rows that are read and shaped; every failure is a UserError that names the file."""
    schema = RecordSchema("mine", kind, {}, None)
    count = 0
    try:
        with readers.open_table(
            paths.find([str(path)], "paths")[0], format, kind, list, encoding
        ) as table:
            for row in table.rows:
                assert row.line >= 1
                assert (row.record is None) == bool(row.reason)
                count += 1
                if row.record is not None:
                    try:
                        shaped = schema.convert(row.record, table.labels)
                    except Rejected:
                        continue
                    assert tuple(shaped) == FIELDS[kind]
    except UserError as error:
        said = str(error)
        assert path.name in said
    return count


@pytest.mark.parametrize("name", GOOD)
@quick
@given(edits=st.lists(EDIT, max_size=4), kind=st.sampled_from(KINDS))
def test_a_damaged_file_of_any_format_gives_rows_or_a_message(
    tmp_path: Path, name: str, edits: list[tuple[str, float, bytes]], kind: str
) -> None:
    path = tmp_path / name
    path.write_bytes(edited(GOOD[name], edits))
    rows(path, kind)


FORMATS = st.sampled_from(["auto", "text", "jsonl", "parquet", "csv", "tsv", "squad", "alpaca"])


@settings(quick, max_examples=400)
@given(
    data=st.binary(max_size=200) | st.sampled_from(list(GOOD.values())),
    name=st.sampled_from([*GOOD, "unnamed"]),
    kind=st.sampled_from(KINDS),
    format=FORMATS,
    encoding=st.sampled_from(["auto", "cp1252", "utf-16", "shift_jis", "utf-32-be"]),
)
def test_any_bytes_under_any_name_give_rows_or_a_message(
    tmp_path: Path, data: bytes, name: str, kind: str, format: str, encoding: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    rows(path, kind, format, encoding)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["text", "label", "context", "question", "answers", "answer_start", "paragraphs", "qas", "data", "id", "split"]
    ) | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(quick, max_examples=300)
@given(
    value=JSON,
    name=st.sampled_from(["a.json", "a.jsonl"]),
    kind=st.sampled_from(KINDS),
    format=FORMATS,
)
def test_any_json_gives_rows_or_a_message(
    tmp_path: Path, value: object, name: str, kind: str, format: str
) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(value))
    rows(path, kind, "auto" if format in ("csv", "tsv", "text", "parquet") else format)


@quick
@given(
    documents=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).filter(str.strip),
                       min_size=1, max_size=5),
    codec=st.sampled_from(["", ".gz", ".zst", ".bz2", ".xz"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    chunk=st.integers(1, 50),
)  # fmt: skip
def test_text_comes_through_every_compression_and_encoding_wherever_its_chunks_end(
    tmp_path: Path, documents: list[str], codec: str, encoding: str, chunk: int
) -> None:
    data = "".join(json.dumps({"text": d}, ensure_ascii=False) + "\n" for d in documents).encode(
        encoding
    )
    packed = {
        "": lambda: data, ".gz": lambda: gzip.compress(data), ".zst": lambda: zstandard.compress(data),
        ".bz2": lambda: bz2.compress(data), ".xz": lambda: lzma.compress(data),
    }[codec]()  # fmt: skip
    path = tmp_path / f"a.jsonl{codec}"
    path.write_bytes(packed)
    sizes = compression.CHUNK, json_files.CHUNK
    compression.CHUNK = max(8, chunk)
    try:
        source = params.FilesSource(source="files", paths=[str(path)])
        write_raw("mine", "pretrain", source, tmp_path / "out")
    finally:
        compression.CHUNK, json_files.CHUNK = sizes
    assert [record["text"] for record in read(tmp_path / "out")] == documents
