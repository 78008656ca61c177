"""How far the writing of a data set came: on record at every finished part, so that a killed
download goes on there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from llm.runtime.io import sha256, write_bytes
from llm.sources.raw import Writer

T = TypeVar("T")


class Gate(Protocol):
    """The part of `llm.sources.record_filter.Gate` that this module needs."""

    writer: Writer

    def counted(self) -> dict[str, Any]:
        """What was counted until now, as JSON holds it."""


class Changed(Exception):  # noqa: N818 - says what happened
    """An input is not the file that the parts on record were made of."""


class Restart:
    """The record beside a data set's directory, `<directory>.part.json`; gone when the data set is
    whole.

    A record holds what was read (inputs that are done, rows of the next one), what the writer
    wrote, and `more`. Parts are compared with their digests before they are believed, inputs with
    their stamps."""

    def __init__(self, directory: Path, of: dict[str, Any]) -> None:
        """`of`: what is written, as JSON; a record of something else counts as none."""
        self.directory, self.of = Path(directory), of
        self.path = self.directory.with_name(f"{self.directory.name}.part.json")
        self.input = self.row = self.parts = (
            0  # inputs that are done, rows of the next one, parts on record
        )
        self.writer: dict[str, Any] | None = None
        self.more: dict[str, Any] = {}
        self._read()

    def _read(self) -> None:
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            files = record["writer"]["files"]
            if record["of"] != self.of:
                raise ValueError("the record of another data set")
            if any(sha256(self.directory / file["path"]) != file["sha256"] for file in files):
                raise ValueError("a part is not what was written")
            self.input, self.row, self.writer, self.more = (
                record[k] for k in ("input", "row", "writer", "more")
            )
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
        ):  # no record, or of parts that a power cut took
            files = []
        self.parts = len(files)
        clear(
            self.directory, [file["path"] for file in files]
        )  # the part that was begun when the kill came

    def compare(self, stamps: list[list[str]]) -> None:
        """Raises Changed where the names and stamps of the inputs until `input` are not those on
        record.
        """
        then = self.more.get("stamps", [])
        if then and then != stamps:
            before = {name for name, stamp in then if [name, stamp] not in stamps}
            raise Changed(f"{', '.join(sorted(before)) or 'its list of files'} is not what it was")

    def rows(self, number: int, rows: Iterator[T]) -> Iterator[tuple[int, T]]:
        """The rows of an input that are still to do, with their numbers from 1."""
        done = self.row if number == self.input else 0
        return islice(enumerate(rows, 1), done, None)

    def note(self, gate: Gate, number: int, row: int, **more: Any) -> None:
        """After a row: put it on record if a part has just been finished.

        Args:
            number: of the input, from 0.
            row: of the input, from 1; it and all before it are dealt with.
            more: what is to be in `more` when it goes on, beside what the gate counted; with
                `stamps`, for `compare`.
        """
        if len(gate.writer.files) == self.parts:
            return
        self.parts = len(gate.writer.files)
        place = gate.writer.place()
        if place is None:  # the part was finished by the last row of another input
            return
        more = {"gate": gate.counted(), **more}
        record = {"of": self.of, "input": number, "row": row, "writer": place, "more": more}
        write_bytes(self.path, json.dumps(record).encode())

    def end(self) -> None:
        """The data set is whole."""
        self.path.unlink(missing_ok=True)


def clear(directory: Path, keep: Collection[str] = ()) -> None:
    """Remove the parts in a directory that are not among those to keep."""
    for path in Path(directory).glob("part-*.parquet"):
        if path.name not in keep:
            path.unlink()
