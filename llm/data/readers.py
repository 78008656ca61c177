"""File formats: one reader each, all streams of rows; those of JSON are in `llm.data.json_files`.

A reader yields `Row`s in file order: a record as the file has it, or why there is none at that place. What makes the
rest of a file unreadable (damage, an open quote, a list that never ends) is a UserError. Text is UTF-8 by now; bytes
that are not become lone surrogates here and are refused, record by record, in `llm.data.shapes`.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

from llm.data.inputs import MAX_RECORD, Input, Row, reading, short
from llm.data.json_files import json_list, jsonl, squad
from llm.data.streams import Counting, decompress, in_utf8
from llm.errors import UserError

END_OF_TEXT = "<|endoftext|>"
HEAD = 1 << 20  # characters in which a plain-text file must show its first separator
WHOLE = 1 << 16  # characters to which a text file without separators stays one document
PIECE = 1 << 14  # characters of the documents that a longer one is cut into, at blank lines
CHUNK = 1 << 20
HELD = 64 << 20  # bytes of the parquet rows that are held at a time
TABULAR = {".csv": "csv", ".tsv": "tsv"}
LINES = {".jsonl": "jsonl", ".ndjson": "jsonl"}


class Table(NamedTuple):
    """An opened file."""

    format: str
    columns: list[str] | None  # the same for all rows, or None
    labels: dict[str, list[str]]  # class names that the file brings, by column
    rows: Iterator[Row]
    position: Callable[[], int]  # stored bytes read so far
    notes: list[str]  # complete when the rows are exhausted


Keep = Callable[[list[str]], list[str]]


@contextmanager
def open_table(source: Input, format: str, kind: str, keep: Keep = list, encoding: str = "auto") -> Iterator[Table]:
    """A file as a Table, closed at the end of the block.

    Args:
        format: as `params.FilesSource.format`; auto: by extension and content.
        kind: of the data set; plain text is read for `pretrain` only.
        keep: given the names of a columnar file, those to read.
        encoding: as `params.FilesSource.encoding`.

    Raises:
        UserError: the file is empty, damaged, or of another format than said.
    """
    with reading(source):
        if source.size() == 0:
            raise UserError(f"{source.shown}: the file is empty. Put the data there, or take it out of the paths.")
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
            if not content.peek(4).startswith(b"PAR1"):
                content = in_utf8(content, encoding, source.shown)
            head = content.peek(CHUNK)
            _check_head(head, source)
            name = detect(head, source, format, kind)
        if name == "parquet":
            if packed:
                raise UserError(f"{source.shown}: parquet inside another compression cannot be read. Decompress it.")
            columns, labels, rows = parquet(content, source.shown, keep)
        elif name in ("csv", "tsv"):
            columns, rows = table(content, source.shown, name)
        elif name == "text":
            rows = text(content, source.shown, notes)
        elif name == "jsonl":
            rows = jsonl(content)
        else:
            rows = json_list(content, source.shown)
        if name not in ("text", "parquet", "csv", "tsv"):
            rows = squad(rows, only=format == "squad")
        yield Table(name, columns, labels, _guarded(rows, source), lambda: counter.count, notes)


def _guarded(rows: Iterator[Row], source: Input) -> Iterator[Row]:
    with reading(source):
        iterator = iter(rows)
    while True:  # only the reader's own errors are translated, not those of who consumes the rows
        with reading(source):
            row = next(iterator, None)
        if row is None:
            return
        yield row


def _check_head(head: bytes, source: Input) -> None:
    shown = source.shown
    if not head:
        raise UserError(f"{shown}: nothing is left after decompression; it is empty. Copy or download it again.")
    if not head.strip(b"\0"):
        raise UserError(f"{shown}: holds only NUL bytes, as after a copy that broke off. Copy or download it again.")
    if not head.startswith(b"PAR1"):
        _check_width(head[: 1 << 12], shown)
    if not head.strip() and len(head) < CHUNK:
        raise UserError(f"{shown}: holds only white space. Put the data there, or take it out of the paths.")


def _check_width(head: bytes, shown: str) -> None:
    """UTF-16 and UTF-32 without a byte order mark, which a NUL in every few bytes gives away."""
    head = head[: len(head) // 4 * 4]
    for guess in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be") if head.count(0) * 5 > len(head) else ():
        try:
            text = head.decode(guess)
        except UnicodeDecodeError:
            continue
        if "\0" not in text and sum(map(str.isascii, text)) * 2 > len(text):
            raise UserError(
                f"{shown}: looks like {guess} without a byte order mark; expected UTF-8. "
                f"Say so: download.<name>.encoding: {guess}."
            )


def detect(head: bytes, source: Input, format: str, kind: str) -> str:
    """text, jsonl, json, parquet, csv or tsv, from the extension and the first bytes."""
    suffix, start = source.suffix, head.removeprefix(codecs.BOM_UTF8).lstrip()
    if head.startswith(b"PAR1"):
        found = "parquet"
    elif suffix == ".parquet" or format == "parquet":
        raise UserError(
            f"{source.shown}: is not parquet (it begins with {head[:4]!r}). Download it again, or rename it."
        )
    elif format in ("squad", "alpaca"):
        found = _json_container(start)
    elif format != "auto":
        found = format
    elif suffix in TABULAR or suffix in LINES:
        found = (TABULAR | LINES)[suffix]
    elif suffix == ".json":
        found = _json_container(start)
    elif kind == "pretrain":
        found = _json_container(start) if suffix == "" and start[:1] in (b"{", b"[") else "text"
    elif start[:1] in (b"{", b"["):
        found = _json_container(start)
    else:
        found = "tsv" if b"\t" in head.split(b"\n", 1)[0] else "text"
    if found == "text" and kind != "pretrain":
        raise UserError(
            f"{source.shown}: is plain text; {kind} needs records with columns: .jsonl, .json, .parquet, .csv or .tsv "
            "(a tab in its first line). Convert it, or name its format."
        )
    return found


def _json_container(start: bytes) -> str:
    """A list or object over the file, or one object a line."""
    if start[:1] != b"{":
        return "json"
    try:
        first = json.loads(start.split(b"\n", 1)[0])
    except ValueError:
        return "json"
    return "json" if isinstance(first.get("data"), list) else "jsonl"


# -- plain text ------------------------------------------------------------------------------------------------------


def text(file: BinaryIO, shown: str, notes: list[str]) -> Iterator[Row]:
    """Documents separated by <|endoftext|>; line ends become "\\n", a document loses blank lines around it.

    A file without a separator in its first MiB is one document, or, beyond 64 KiB, is cut at blank lines into
    documents of about 16 KiB: a single document would leave nothing to validate on.
    """
    stream = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
    buffer, line, count = stream.read(HEAD), 1, 0
    cut = END_OF_TEXT not in buffer and len(buffer) > WHOLE
    too_long = f"a document of more than {MAX_RECORD >> 20} MB; cut it with lines that hold {END_OF_TEXT}"
    ended = skipping = False  # skipping: what is left of a document that is too long
    while not ended:
        more = stream.read(CHUNK)
        ended = not more
        *documents, buffer = (buffer + more).split(END_OF_TEXT)
        if skipping and documents:
            line += documents.pop(0).count("\n")
            skipping = False
        pieces = [piece for document in documents for piece in (_pieces(document) if cut else [document])]
        if cut:  # all but the last piece, in which a separator may have begun
            *whole, buffer = _pieces(buffer)
            pieces += whole
        if ended and buffer.strip() and not skipping:  # blank after the last separator is no document
            pieces.append(buffer)
        for piece in pieces:
            blank = len(piece) - len(piece.lstrip("\n"))
            if len(piece) > MAX_RECORD:
                yield Row(line + blank, None, too_long)
            else:
                yield Row(line + blank, {"text": piece.strip("\n")})
            line += piece.count("\n")
            count += 1
        if skipping or len(buffer) > MAX_RECORD:
            if not skipping:
                yield Row(line, None, too_long)
            rest = buffer[-len(END_OF_TEXT) + 1 :]  # in which a separator may have begun
            line += buffer.count("\n") - rest.count("\n")
            buffer, skipping = rest, True
    if cut:
        notes.append(
            f"{shown} has no {END_OF_TEXT}: cut at blank lines or line ends into {count} documents of about 16 kB"
        )


def _pieces(document: str) -> list[str]:
    """Cut at a blank line, else a line end, else a space, else anywhere; nothing is lost."""
    pieces, start = [], 0
    while len(document) - start > 2 * PIECE:
        low, high = start + PIECE, start + 2 * PIECE
        at = next((i + len(mark) for mark in ("\n\n", "\n", " ") if (i := document.find(mark, low, high)) >= 0), high)
        pieces.append(document[start:at])
        start = at
    return [*pieces, document[start:]]


# -- tables ----------------------------------------------------------------------------------------------------------


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
        opened = pq.ParquetFile(file, buffer_size=CHUNK, pre_buffer=False)
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
