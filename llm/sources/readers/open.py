"""A file opened as a table: decompressed, its format detected, its rows as a stream.

The formats are in `llm.sources.readers.text`, `llm.sources.readers.tables` and
`llm.sources.readers.json`.

A reader yields `Row`s in file order: a record, or the reason why there is none. Faults that make
the rest of a file unreadable (damage, an open quote, a list without an end) raise a UserError. Text
is UTF-8 at this point; invalid bytes become lone surrogates, and `llm.sources.record_schema`
rejects the records that hold them."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from llm.errors import UserError
from llm.sources.readers import tables
from llm.sources.readers.compression import Counting, decompress, in_utf8, prepend
from llm.sources.readers.file_types import HEAD, refuse_foreign
from llm.sources.readers.json import json_list, jsonl, squad
from llm.sources.readers.paths import MAX_RECORD, Input, Row, reading
from llm.sources.readers.tables import Keep
from llm.sources.readers.text import text

CHUNK = 1 << 20  # stored bytes read at a time
TABULAR = {".csv": "csv", ".tsv": "tsv"}
LINES = {".jsonl": "jsonl", ".ndjson": "jsonl"}


class Table(NamedTuple):
    """An opened file."""

    format: str
    columns: list[str] | None  # the same for all rows, or None
    labels: dict[str, list[str]]  # class names in the file, by column
    rows: Iterator[Row]
    position: Callable[[], int]  # stored bytes read so far
    notes: list[str]  # complete when the rows are exhausted


@contextmanager
def open_table(
    source: Input,
    format: str,
    kind: str,
    keep: Keep = list,
    encoding: str = "auto",
    header: bool = True,
) -> Iterator[Table]:
    """Open a file as a Table, closed at the end of the block.

    Args:
        format: as `params.FilesSource.format`; auto: by extension and content.
        kind: kind of the data set; plain text is read for `pretrain` only.
        keep: chooses the columns to read from those of a columnar file.
        encoding: as `params.FilesSource.encoding`.
        header: as `params.FilesSource.header`.

    Raises:
        UserError: the file is empty, damaged, or not of the stated format.
    """
    with reading(source):
        if source.size() == 0:
            raise UserError(
                f"{source.title}: the file is empty. Put the data there, or take it out of the paths."
            )
        raw = source.open()
    counter = Counting(raw)
    stored = io.BufferedReader(counter, CHUNK)
    notes: list[str] = []
    columns: list[str] | None = None
    labels: dict[str, list[str]] = {}
    with stored:
        with reading(source):
            content = decompress(stored, counter, source)
            packed = content is not stored
            refuse_foreign(content.peek(HEAD)[:HEAD], source.title, packed)
            if not content.peek(4).startswith(b"PAR1"):
                content = in_utf8(content, encoding, source.title)
            head = content.peek(CHUNK)
            _check_head(head, source)
            name = detect(head, source, format, kind)
            if name == "json" and head.lstrip()[:1] == b"{" and b"\n" not in head:
                # The first line is longer than `head`; if another object follows, it is a record.
                line = content.readline(MAX_RECORD + 1)
                if content.peek(1).lstrip()[:1] == b"{" and line.endswith(b"\n"):
                    name = "jsonl"
                content = prepend(line, content)
        if not header and name not in ("csv", "tsv"):
            raise UserError(
                f"{source.title}: is {name}; `header: false` is for csv and tsv. Take it out."
            )
        if name == "parquet":
            if packed:
                raise UserError(
                    f"{source.title}: parquet inside another compression cannot be read. Decompress it."
                )
            columns, labels, rows = tables.parquet(content, source.title, keep)
        elif name in ("csv", "tsv"):
            quoting = "" if name == "tsv" and format == "auto" else name
            columns, rows = tables.table(content, source.title, quoting, head, kind, header, notes)
        elif name == "text":
            rows = text(content, source.title, notes)
        elif name == "jsonl":
            rows = jsonl(content)
        else:
            rows = json_list(content, source.title)
        if name not in ("text", "parquet", "csv", "tsv"):
            rows = squad(rows, only=format == "squad")
        yield Table(name, columns, labels, _guarded(rows, source), lambda: counter.count, notes)


def _guarded(rows: Iterator[Row], source: Input) -> Iterator[Row]:
    with reading(source):
        iterator = iter(rows)
    while True:  # translates the reader's errors, not those of the code that uses the rows
        with reading(source):
            row = next(iterator, None)
        if row is None:
            return
        yield row


def _check_head(head: bytes, source: Input) -> None:
    title = source.title
    if not head:
        raise UserError(
            f"{title}: nothing is left after decompression; it is empty. Copy or download it again."
        )
    if not head.strip(b"\0"):
        raise UserError(
            f"{title}: holds only NUL bytes, as after a copy that broke off. Copy or download it again."
        )
    if not head.startswith(b"PAR1"):
        _check_width(head[: 1 << 12], title)
    if not head.strip() and len(head) < CHUNK:
        raise UserError(
            f"{title}: holds only white space. Put the data there, or take it out of the paths."
        )


def _check_width(head: bytes, title: str) -> None:
    """Refuse UTF-16 and UTF-32 without a byte order mark, recognised by their many NUL bytes."""
    head = head[: len(head) // 4 * 4]
    for guess in (
        ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
        if head.count(0) * 5 > len(head)
        else ()
    ):
        try:
            decoded = head.decode(guess)
        except UnicodeDecodeError:
            continue
        if "\0" not in decoded and sum(map(str.isascii, decoded)) * 2 > len(decoded):
            raise UserError(
                f"{title}: looks like {guess} without a byte order mark; expected UTF-8. "
                f"Say so: download.<name>.encoding: {guess}."
            )


def detect(head: bytes, source: Input, format: str, kind: str) -> str:
    """Return text, jsonl, json, parquet, csv or tsv, from the extension and the first bytes."""
    suffix, start = source.suffix, head.removeprefix(codecs.BOM_UTF8).lstrip()
    if head.startswith(b"PAR1"):
        detected = "parquet"
    elif suffix == ".parquet" or format == "parquet":
        raise UserError(
            f"{source.title}: is not parquet (it begins with {head[:4]!r}). Download it again, or rename it."
        )
    elif format in ("squad", "alpaca"):
        detected = _json_container(start)
    elif format != "auto":
        detected = format
    elif suffix in TABULAR or suffix in LINES:
        detected = (TABULAR | LINES)[suffix]
    elif suffix == ".json":
        detected = _json_container(start)
    elif kind == "pretrain":
        detected = _json_container(start) if suffix == "" and start[:1] in (b"{", b"[") else "text"
    elif start[:1] in (b"{", b"["):
        detected = _json_container(start)
    else:
        detected = "tsv" if b"\t" in head.split(b"\n", 1)[0] else "text"
    if detected == "text" and kind != "pretrain":
        raise UserError(
            f"{source.title}: is plain text; {kind} needs records with columns: .jsonl, .json, .parquet, .csv or .tsv "
            "(a tab in its first line). Convert it, or name its format."
        )
    if detected == "jsonl" and start[:1] == b"[":
        says, more = ("name", "") if format == "auto" else ("format", " and take out format: jsonl")
        raise UserError(
            f"{source.title}: is a JSON list, though its {says} says one JSON object a line. Rename it to .json{more}."
        )
    return detected


def _json_container(start: bytes) -> str:
    """Return json for one list or object in the file, jsonl for one object a line."""
    if start[:1] != b"{":
        return "json"
    try:
        first = json.loads(start.split(b"\n", 1)[0])
    except ValueError:
        return "json"
    return "json" if isinstance(first.get("data"), list) else "jsonl"
