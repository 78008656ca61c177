"""Files with columns: CSV, TSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from llm.data.inputs import MAX_RECORD, Row, short
from llm.errors import UserError

BUFFER = 1 << 20  # bytes of a parquet column that are read at a time
HELD = 64 << 20  # bytes of the parquet rows that are held at a time
Keep = Callable[[list[str]], list[str]]  # given the names of the columns, those to read


def table(file: BinaryIO, shown: str, name: str) -> tuple[list[str], Iterator[Row]]:
    """CSV as RFC 4180 says (also with ; for a comma), or TSV as GLUE writes it: quotes are text."""
    csv.field_size_limit(MAX_RECORD)
    stream = io.TextIOWrapper(
        file, encoding="utf-8-sig", errors="surrogateescape", newline="" if name == "csv" else None
    )
    lines = _Lines(stream, shown)
    head = next(lines, "")
    if name == "tsv":
        names = head.rstrip("\n").split("\t")
        return names, _tsv(lines, names)
    delimiter = max(",;\t", key=head.count)
    names = next(csv.reader([head], delimiter=delimiter), [])
    return names, _csv(lines, delimiter, names, shown)


class _Lines:
    """Lines of a table, none of them, and no record over several, longer than any record may be."""

    def __init__(self, stream: io.TextIOWrapper, shown: str) -> None:
        self.stream, self.shown, self.number, self.held = stream, shown, 0, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.stream.readline(MAX_RECORD + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.held += len(line)
        if self.held > MAX_RECORD:
            raise UserError(
                f"{self.shown}:{self.number}: a record of more than {MAX_RECORD >> 20} MB. Is a quote left open, or is "
                "this no table?"
            )
        return line


def _tsv(lines: _Lines, names: list[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 2):
        lines.held = 0
        if line.strip("\n"):
            yield _fields(number, line.rstrip("\n").split("\t"), names)


def _csv(lines: _Lines, delimiter: str, names: list[str], shown: str) -> Iterator[Row]:
    reader: Any = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 2
        lines.held = 0
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{shown}:{number}: broken CSV up to line {reader.line_num + 1} ({error}); expected quotes that are "
                "closed and doubled inside a field. Mend it, or, where quotes are plain text, write it as .tsv."
            ) from None
        if fields is None:
            return
        if fields:
            yield _fields(number, fields, names)


def _fields(number: int, fields: list[str], names: list[str]) -> Row:
    if len(fields) != len(names):
        what = f"{len(fields)} fields, expected {len(names)} ({', '.join(names)}): {short(' | '.join(fields))}"
        return Row(number, None, "wrong number of fields", what)
    return Row(number, dict(zip(names, fields, strict=True)))


def parquet(file: BinaryIO, shown: str, keep: Keep) -> tuple[list[str], dict[str, list[str]], Iterator[Row]]:
    """Rows of a parquet file, with the class names that `datasets` writes into its metadata.

    Columns are read through small buffers, so that a row group may be larger than memory; and so many rows at a time
    that they cannot be more than `HELD` bytes even where each is as long as its column's whole dictionary.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
        names = list(opened.schema_arrow.names)
        groups = [opened.metadata.row_group(i) for i in range(opened.num_row_groups)]
        sizes = [group.column(i).total_uncompressed_size for group in groups for i in range(group.num_columns)]
    except (pa.ArrowException, OSError) as error:
        raise _damaged(shown, error) from None

    def rows() -> Iterator[Row]:
        number, batch_size = 0, max(1, min(256, HELD // max([1, *sizes])))
        try:
            for batch in opened.iter_batches(batch_size=batch_size, columns=keep(names), use_threads=False):
                for record in batch.to_pylist():
                    number += 1
                    if any(isinstance(value, str) and len(value) > MAX_RECORD for value in record.values()):
                        yield Row(number, None, f"a text of more than {MAX_RECORD >> 20} MB")
                    else:
                        yield Row(number, record)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _damaged(shown, error, f" after row {number}") from None

    return names, class_names(opened.schema_arrow.metadata), rows()


def class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Names of integer classes by column, from the metadata of a file that `datasets` wrote."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: list(f["names"]) for name, f in features.items() if f.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}  # not written by `datasets`: there are no names to find


def _damaged(shown: str, error: BaseException, place: str = "") -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"{shown}: truncated or damaged parquet{place} ({reason}). Copy or download it again.")
