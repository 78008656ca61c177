"""JSON files (one object a line, a list, or SQuAD's articles), read record by record."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from llm.errors import UserError
from llm.sources.readers.paths import MAX_RECORD, Row, short

CHUNK = 1 << 20
SPACE = re.compile(r"[ \t\r\n]*")


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; a key must not occur twice with different values."""
    record = dict(pairs)
    if len(record) < len(pairs):
        for key, value in pairs:
            if record[key] != value:
                raise ValueError(
                    f"the key {key!r} stands twice in an object, with different values"
                )
    return record


DECODER = json.JSONDecoder(object_pairs_hook=_object_of)


def jsonl(file: BinaryIO) -> Iterator[Row]:
    """Yield one JSON object a line; blank lines are skipped."""
    number = 0
    while line := file.readline(MAX_RECORD + 1):
        number += 1
        if len(line) > MAX_RECORD:
            yield Row(
                number,
                None,
                f"a line of more than {MAX_RECORD >> 20} MB; expected a JSON object a line",
            )
            while line and not line.endswith(b"\n"):
                line = file.readline(CHUNK)
            continue
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        try:
            yield _object(number, DECODER.decode(line.decode("utf-8", "surrogateescape")))
        except (ValueError, RecursionError) as error:
            message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            yield Row(
                number,
                None,
                "not valid JSON",
                f"{message}{column}: {short(line.decode('utf-8', 'replace'))}",
            )


def json_list(file: BinaryIO, title: str) -> Iterator[Row]:
    """Yield the items of a JSON list, or of the list `data` of an object, one at a time."""
    window = _Window(file, title)
    opening = window.peek()
    if opening == "{":
        record: dict[str, Any] = {}
        for key in window:
            if key == "data" and window.peek() == "[":
                break
            value = window.value()
            record[key] = value if window.line == 1 else None
        else:
            if window.line == 1:  # one object on one line: a file of one record
                yield _object(1, record)
                return
            raise UserError(
                f"{title}: a JSON object with {first_keys(list(record))}; expected a list of records, or an object "
                "whose `data` is a list (SQuAD). Convert it to one JSON object a line (.jsonl)."
            )
    elif opening != "[":
        raise UserError(
            f"{title}:{window.line}: expected a JSON list or object, found {short(window.rest())}."
        )
    for line, item in window.items():
        yield _object(line, item)
    if opening == "[" and window.peek():
        raise UserError(
            f"{title}:{window.line}: text after the end of the JSON list: {short(window.rest())}."
        )


class _Window:
    """A JSON text in a stream; only the current value is in memory."""

    def __init__(self, file: BinaryIO, title: str) -> None:
        self.file, self.title = file, title
        self.decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self.buffer, self.at, self.line, self.ended = "", 0, 1, False

    def _fill(self, size: int = CHUNK) -> None:
        data = self.file.read(size)
        self.ended = not data
        self.buffer, self.at = self.buffer[self.at :] + self.decode(data, self.ended), 0

    def _advance(self, end: int) -> None:
        self.line += self.buffer.count("\n", self.at, end)
        self.at = end

    def peek(self) -> str:
        """Return the next character that is not white space; "" at the end."""
        while True:
            match = SPACE.match(self.buffer, self.at)
            self._advance(match.end() if match else self.at)
            if self.at < len(self.buffer) or self.ended:
                return self.buffer[self.at : self.at + 1]
            self._fill()

    def rest(self) -> str:
        return self.buffer[self.at : self.at + 200]

    def expect(self, expected: str) -> str:
        character = self.peek()
        if not character or character not in expected:
            what = (
                short(self.rest())
                if character
                else "the end of the file: it is incomplete; copy or download it again"
            )
            raise UserError(
                f"{self.title}:{self.line}: expected {' or '.join(expected)} in the JSON, found {what}."
            )
        self._advance(self.at + 1)
        return character

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.buffer, self.at)
                if end < len(self.buffer) or self.ended:  # else a number may continue
                    self._advance(end)
                    return value
                problem = ""
            except json.JSONDecodeError as error:
                problem = f"{error.msg} at line {self.line + self.buffer.count(chr(10), self.at, error.pos)}"
            except ValueError as error:  # raised by `_object_of`
                raise UserError(
                    f"{self.title}:{self.line}: {error}. Take one of them out."
                ) from None
            except RecursionError:
                raise UserError(
                    f"{self.title}:{self.line}: JSON nested too deeply; expected flat records."
                ) from None
            buffered = len(self.buffer) - self.at
            if self.ended or buffered > MAX_RECORD:
                rule = (
                    f"no record may be longer than {MAX_RECORD >> 20} MB"
                    if buffered > MAX_RECORD
                    else "it is damaged"
                )
                raise UserError(
                    f"{self.title}:{self.line}: not valid JSON ({problem}); {rule}. "
                    "Fix that place, or copy the file again."
                )
            self._fill(max(CHUNK, buffered))

    def items(self) -> Iterator[tuple[int, Any]]:
        """Yield line and value of each item of the list that begins at the current position."""
        self.expect("[")
        if self.peek() == "]":
            self.expect("]")
            return
        while True:
            self.peek()
            line = self.line
            yield line, self.value()
            if self.expect(",]") == "]":
                return

    def __iter__(self) -> Iterator[str]:
        """Yield the keys of the object that begins here; the caller reads each value."""
        self.expect("{")
        if self.peek() == "}":
            return
        while True:
            if self.peek() != '"':
                self.expect('"')  # raises
            key = self.value()
            self.expect(":")
            yield key
            if self.expect(",}") == "}":
                return


def squad(rows: Iterator[Row], only: bool) -> Iterator[Row]:
    """Split articles of SQuAD v1.1 or v2.0 into one record a question; yield other records unchanged.

    Args:
        only: reject records that are neither an article nor have a context.
    """
    for row in rows:
        if row.record is None or "paragraphs" not in row.record:
            if only and row.record is not None and "context" not in row.record:
                yield Row(
                    row.line,
                    None,
                    "not SQuAD",
                    f"no `paragraphs`; found {first_keys(list(row.record))}",
                )
            else:
                yield row
            continue
        title = row.record.get("title", "")
        paragraphs = row.record["paragraphs"]
        if not isinstance(paragraphs, list):
            yield Row(row.line, None, "not SQuAD", f"`paragraphs` of {title!r} is not a list")
            continue
        for i, paragraph in enumerate(paragraphs):
            location = f"paragraph {i} of article {title!r}"
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(questions, list) or "context" not in paragraph:
                yield Row(
                    row.line, None, "not SQuAD", f"{location} lacks `context` or a list `qas`"
                )
                continue
            for question in questions:
                if not isinstance(question, dict):
                    yield Row(
                        row.line, None, "not SQuAD", f"a question in {location} is not an object"
                    )
                    continue
                yield Row(row.line, {"title": title, "context": paragraph["context"], **question})


def _object(line: int, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(line, value)
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return Row(
        line,
        None,
        "not a JSON object",
        f"found {names.get(type(value), 'a number')}: {short(json.dumps(value))}",
    )


def first_keys(keys: list[str]) -> str:
    """Return the first keys of an object as text."""
    return (
        f"the keys {', '.join(map(repr, keys[:6]))}{', …' if len(keys) > 6 else ''}"
        if keys
        else "no keys"
    )
