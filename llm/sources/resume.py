"""Progress of a download, saved after each finished part, so that a killed download can resume."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llm.runtime.io import sha256, write_bytes

if TYPE_CHECKING:
    from llm.sources.record_filter import RecordFilter

T = TypeVar("T")


class Changed(Exception):  # noqa: N818 - says what happened
    """An input differs from the file that the saved parts were made of."""


class SavedProgress:
    """The progress file beside a data set's directory, deleted once the data set is complete.

    The file `<directory>.part.json` holds what was read (the finished inputs and the rows of the
    next one), what the writer wrote, and `more`. Parts are verified by their digests before they
    are reused, inputs by their stamps."""

    def __init__(self, directory: Path, dataset: dict[str, Any]) -> None:
        """Read the progress file, if there is one for the same data set.

        Args:
            dataset: description of what is written, in a form that JSON can hold.
        """
        self.directory, self.dataset = Path(directory), dataset
        self.path = self.directory.with_name(f"{self.directory.name}.part.json")
        self.input = self.row = self.parts = 0  # finished inputs, rows of the next one, saved parts
        self.writer: dict[str, Any] | None = None
        self.more: dict[str, Any] = {}
        self._read()

    def _read(self) -> None:
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            files = record["writer"]["files"]
            if record["of"] != self.dataset:
                raise ValueError("the progress of another data set")
            if any(sha256(self.directory / file["path"]) != file["sha256"] for file in files):
                raise ValueError("a part has changed since it was written")
            self.input, self.row, self.writer, self.more = (
                record[k] for k in ("input", "row", "writer", "more")
            )
        except (OSError, ValueError, KeyError, TypeError):
            files = []  # no usable progress file, or a power cut took some of its parts
        self.parts = len(files)
        # A part that was unfinished when the process was killed is removed.
        clear(self.directory, [file["path"] for file in files])

    def check_inputs(self, stamps: list[list[str]]) -> None:
        """Compare the finished inputs with the saved ones.

        Args:
            stamps: name and stamp of each input up to `input`.

        Raises:
            Changed: a name or a stamp differs.
        """
        saved_stamps = self.more.get("stamps", [])
        if saved_stamps and saved_stamps != stamps:
            changed = {name for name, stamp in saved_stamps if [name, stamp] not in stamps}
            raise Changed(f"{', '.join(sorted(changed)) or 'its list of files'} has changed")

    def remaining(self, number: int, rows: Iterator[T]) -> Iterator[tuple[int, T]]:
        """Yield the remaining rows of an input, with their numbers from 1."""
        done = self.row if number == self.input else 0
        return islice(enumerate(rows, 1), done, None)

    def update(self, record_filter: RecordFilter, number: int, row: int, **more: Any) -> None:
        """Save the progress after a row, if that row finished a part.

        Args:
            number: index of the input, from 0.
            row: number of the row in the input, from 1; it and all before it are processed.
            more: entries of `more` on resuming, beside the filter's counts; `stamps` among them
                serves `check_inputs`.
        """
        if len(record_filter.writer.files) == self.parts:
            return
        self.parts = len(record_filter.writer.files)
        position = record_filter.writer.position()
        if position is None:  # the part was finished by the last row of another input
            return
        more = {"gate": record_filter.state(), **more}
        record = {"of": self.dataset, "input": number, "row": row, "writer": position, "more": more}
        write_bytes(self.path, json.dumps(record).encode())

    def delete(self) -> None:
        """Delete the progress file of a complete data set."""
        self.path.unlink(missing_ok=True)


def clear(directory: Path, keep: Collection[str] = ()) -> None:
    """Delete the parts in a directory, except those to keep."""
    for path in Path(directory).glob("part-*.parquet"):
        if path.name not in keep:
            path.unlink()
