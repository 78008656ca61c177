"""Files with columns: CSV, TSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, BinaryIO

from llm.errors import UserError, first_line
from llm.sources.readers.paths import MAX_RECORD, Row, short

BUFFER = 1 << 20  # bytes of a parquet column read at a time
BATCH_BYTES = 64 << 20  # limit for the parquet rows in memory
SNIFFED = 1 << 20  # bytes from which the meaning of a TSV's quotes is guessed
_FIELD = re.compile(r'("[^"]*(?:""[^"]*)*"|[^"\t\n]*)([\t\n])')
Keep = Callable[[list[str]], list[str]]  # column names -> those to read


def table(
    file: BinaryIO, title: str, name: str, head: bytes, kind: str, header: bool, notes: list[str]
) -> tuple[list[str], Iterator[Row]]:
    """Return columns and rows of CSV (RFC 4180, also with ; or tabs) or of TSV with quotes as text.

    Args:
        name: csv, tsv, or "" for a TSV whose quotes are guessed from its beginning.
        head: the beginning of the file.
        kind: kind of the data set; some published files have no header.
        header: the first line holds the names; else columns are called 0, 1, …
        notes: a line is appended where the file is ambiguous.
    """
    csv.field_size_limit(MAX_RECORD)
    quotes = guess_quotes(head) if name == "" else "marks" if name == "csv" else "text"
    newline = "" if quotes == "marks" else None
    lines = _Lines(
        io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=newline),
        title,
    )
    if quotes == "marks":
        if name == "":
            notes.append(
                f"{title}: quotes around fields are read as CSV's; format: tsv would keep them as text"
            )
        first = head.split(b"\n", 1)[0].decode("utf-8", "replace")
        records = _csv(lines, "\t" if name == "" else max(",;\t", key=first.count), title)
    else:
        records = _tsv(lines, title, unsure=quotes == "none")
    number, names = next(records, (1, []))
    if header and (known := headerless(kind, names)):
        notes.append(
            f"{title} has no header; its columns are read as {', '.join(known)}, as its publisher has them"
        )
    elif not header:
        known = [str(position) for position in range(len(names))]
    if known:
        records, names = chain([(number, names)], records), known
    return names, (_fields(line, fields, names) for line, fields in records)


def headerless(kind: str, first: list[str]) -> list[str]:
    """Return the columns of a data set that is published without a header, or [].

    Args:
        first: the first record of the file.
    """
    if kind != "classification":
        return []
    cola = len(first) == 4 and re.fullmatch(r"[a-z]+[-_]?\d\d", first[0]) and first[2] in ("", "*")
    if cola and first[1] in ("0", "1"):
        return ["source_code", "label", "annotation", "sentence"]
    # AG News and others of Zhang et al. 2015: class from 1, title, text. The names are those of
    # the versions with a header.
    if (
        len(first) == 3
        and re.fullmatch(r"[1-9]\d?", first[0])
        and all(" " in text.strip() for text in first[1:])
    ):
        return ["Class Index", "Title", "Description"]
    return []


def guess_quotes(head: bytes) -> str:
    """Return the role of quotes in a TSV: "marks" around fields, "text" as in GLUE, or "none".

    They are marks if the beginning parses as CSV, and a field holds a doubled quote, the header is
    quoted, or the lines have different numbers of tabs.
    """
    text = head.decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n")
    complete = len(head) < SNIFFED
    if not re.search(r'(?m)(?:^|\t)"', text):
        return "none"
    lines = [line for line in text.split("\n")[: None if complete else -1] if line]
    even = len({line.count("\t") for line in lines}) < 2
    at = count = 0
    counts, doubled = set(), text.startswith('"')
    text += "\n" if complete and not text.endswith("\n") else ""
    while field := _FIELD.match(text, at):
        doubled |= '""' in field[1][1:-1]
        at, count = field.end(), count + 1
        if field[2] == "\n":
            counts |= {count} if count > 1 or field[1] else set()
            count = 0
    rest = len(text) - at  # length of the last, truncated record
    fits = len(counts) < 2 and (rest == 0 if complete else rest < SNIFFED // 16)
    return "marks" if fits and (doubled or not even) else "text"


class _Lines:
    """Lines of a table; refuses lines, and records over several lines, above MAX_RECORD."""

    def __init__(self, stream: io.TextIOWrapper, title: str) -> None:
        self.stream, self.title, self.number, self.record_length = stream, title, 0, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.stream.readline(MAX_RECORD + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.record_length += len(line)
        if self.record_length > MAX_RECORD:
            raise UserError(
                f"{self.title}:{self.number}: a record of more than {MAX_RECORD >> 20} MB. Is a quote left open, or is "
                "this no table?"
            )
        return line


def _tsv(lines: _Lines, title: str, unsure: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield number and fields of each line.

    Args:
        unsure: no field at the beginning was quoted, so that a later quoted one is ambiguous.
    """
    for number, line in enumerate(lines, 1):
        lines.record_length = 0
        if number > 1 and not line.strip("\n"):
            continue
        fields = line.rstrip("\n").split("\t")
        if unsure and any(field[:1] == '"' for field in fields):
            raise UserError(
                f"{title}:{number}: a field in quotes, the first one of the file: {short(line)}. Say what "
                "they are, download.<name>.format: csv (marks around it, as of pandas) or tsv (a part of the text)."
            )
        yield number, fields


def _csv(lines: _Lines, delimiter: str, title: str) -> Iterator[tuple[int, list[str]]]:
    reader: Any = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        lines.record_length = 0
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{title}:{number}: broken CSV up to line {reader.line_num} ({error}); expected quotes that are "
                "closed and doubled inside a field. Fix it, or, where tabs divide the fields and quotes are plain "
                "text, set download.<name>.format: tsv."
            ) from None
        if fields is None:
            return
        if fields:
            yield number, fields


def _fields(number: int, fields: list[str], names: list[str]) -> Row:
    if len(fields) != len(names):
        what = f"{len(fields)} fields, expected {len(names)} ({', '.join(names)}): {short(' | '.join(fields))}"
        return Row(number, None, "wrong number of fields", what)
    return Row(number, dict(zip(names, fields, strict=True)))


def parquet(
    file: BinaryIO, title: str, keep: Keep
) -> tuple[list[str], dict[str, list[str]], Iterator[Row]]:
    """Return columns, class names (from the metadata of `datasets`) and rows of a parquet file.

    Small buffers let a row group be larger than memory. The batch size keeps the rows below
    `BATCH_BYTES`, even if each value were as long as its column's whole dictionary."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
        names = list(opened.schema_arrow.names)
        groups = [opened.metadata.row_group(i) for i in range(opened.num_row_groups)]
        sizes = [
            group.column(i).total_uncompressed_size
            for group in groups
            for i in range(group.num_columns)
        ]
    except (pa.ArrowException, OSError) as error:
        raise _damaged(title, error) from None

    def rows() -> Iterator[Row]:
        number, batch_size = 0, max(1, min(256, BATCH_BYTES // max([1, *sizes])))
        try:
            for batch in opened.iter_batches(
                batch_size=batch_size, columns=keep(names), use_threads=False
            ):
                for record in batch.to_pylist():
                    number += 1
                    if any(
                        isinstance(value, str) and len(value) > MAX_RECORD
                        for value in record.values()
                    ):
                        yield Row(number, None, f"a text of more than {MAX_RECORD >> 20} MB")
                    else:
                        yield Row(number, record)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _damaged(title, error, f" after row {number}") from None

    return names, class_names(opened.schema_arrow.metadata), rows()


def class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return names of integer classes by column, from the metadata that `datasets` writes."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: list(f["names"]) for name, f in features.items() if f.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}  # not written by `datasets`


def _damaged(title: str, error: BaseException, position: str = "") -> UserError:
    return UserError(
        f"{title}: truncated or damaged parquet{position} ({first_line(error)}). Copy or download it again."
    )
