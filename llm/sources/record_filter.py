"""The gate between a source and `data/raw/<name>`: a record is written, or counted with file, line
and reason.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

from llm.errors import UserError
from llm.sources.raw import Writer, read
from llm.sources.readers import compression
from llm.sources.readers.paths import Row
from llm.sources.record_schema import SCORE, MissingColumns, Rejected, Shaper

EXAMPLES = 20  # rejected records that the manifest shows
FOREIGN = 1 << 14  # bytes that are not UTF-8, of which the encoding is guessed
SHOWN = 5  # and that an error message shows
LONGEST_NAME = 64  # characters of a column's name
MAX_LABELS = 100  # classes that the manifest counts
ORDERS = (
    ["0", "1"],
    ["false", "true"],
    ["False", "True"],
)  # of two classes whose names the source does not give


class Gate:
    """Shapes, checks, numbers and writes the records of one data set."""

    def __init__(self, name: str, shaper: Shaper, writer: Writer) -> None:
        self.name, self.shaper, self.writer = name, shaper, writer
        self.reasons: Counter[str] = Counter()
        self.examples: list[dict[str, Any]] = []
        self.kept: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.names: list[str] = []  # of the classes in order, where the params or a file have them
        self.foreign = b""  # the beginnings of records that are not UTF-8
        self._ids: set[int] = (
            set()
        )  # 8-byte digests; pretraining ids are places and unique by themselves

    def add(
        self,
        row: Row,
        file: str,
        label: str,
        split: str,
        class_names: dict[str, list[str]] | None = None,
    ) -> None:
        """Write a row's record, or count why not.

        Args:
            file: as messages and the manifest name it.
            label: the same, short and free of the machine, for ids.
            split: of the file, where the record itself says nothing.
            class_names: names of integer classes that the file brings.
        """
        if row.record is None:
            self.reject(file, row.line, row.reason, row.detail)
            return
        try:
            record = self.shaper.shape(row.record, class_names or {})
        except Rejected as rejected:
            own = row.record.get("id")  # a whole SQuAD file may be one line
            self.reject(
                file, row.line, rejected.reason, rejected.detail + (f" (id {own})" if own else "")
            )
            if rejected.reason == "not UTF-8" and len(self.foreign) < FOREIGN:
                text = " ".join(value for value in row.record.values() if isinstance(value, str))
                self.foreign += text[:FOREIGN].encode("utf-8", "surrogateescape")
            return
        place = f"{label}:{row.line}"
        if "source" in record:
            record["source"] = record["source"] or label
        else:
            record["split"] = split or record["split"]
        record["id"] = self._unique(record, place)
        if "group" in record:
            record["group"] = record["group"] or record["id"]
        if "label" in record:
            self.names = self.shaper.class_names(class_names or {}, tuple(row.record)) or self.names
            if len(self.labels) <= MAX_LABELS or record["label"] in self.labels:
                self.labels[record["label"]] += 1
        self.writer.write(record)
        self.kept[file] += 1

    def _unique(self, record: dict[str, Any], place: str) -> str:
        """The record's own id, else a digest of its text, else (pretraining) its place; if
        repeated, with the place.
        """
        own = record["id"]
        if not own and self.shaper.kind == "pretrain":
            return place
        if not own:
            body = json.dumps(
                {k: v for k, v in record.items() if k not in ("id", "group", "split")},
                sort_keys=True,
            )
            own = hashlib.sha256(body.encode()).hexdigest()[:16]
        key = _key(own)
        if key in self._ids:
            return f"{own}@{place}"
        self._ids.add(key)
        return own

    def counted(self) -> dict[str, Any]:
        """What was counted until now, for `go_on`."""
        counters = {name: dict(getattr(self, name)) for name in ("reasons", "kept", "labels")}
        foreign = self.foreign.decode("latin-1")
        lists = {"examples": list(self.examples), "names": list(self.names)}
        return {**counters, **lists, "foreign": foreign, "own_ids": bool(self._ids)}

    def positive(self) -> str | None:
        """The class that F1 is of, where there are two: the second, as GLUE has it; None where they
        have no order.
        """
        counted = next((order for order in ORDERS if {*self.labels} == {*order}), [])
        order = self.names or counted
        return order[1] if len(order) == 2 and {*self.labels} <= {*order} else None

    def go_on(self, counted: dict[str, Any]) -> None:
        """Take over what was counted when the writer's parts had just been written; ids are read
        from those.
        """
        for name in ("reasons", "kept", "labels"):
            getattr(self, name).update(counted[name])
        self.examples, self.names = list(counted["examples"]), list(counted["names"])
        self.foreign = counted["foreign"].encode("latin-1")
        if counted["own_ids"]:
            self._ids = {_key(record["id"]) for record in read(self.writer.directory, ["id"])}

    def reject(self, file: str, line: int, reason: str, detail: str = "") -> None:
        """Count a record that is set aside."""
        self.reasons[reason] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(
                {"file": file, "line": line, "reason": f"{reason}: {detail}" if detail else reason}
            )

    def check(self, allowed: float) -> None:
        """Raises UserError where there are no records, or more than the allowed fraction were
        rejected.
        """
        rejected = self.reasons.total()
        seen = self.writer.rows + rejected
        if not rejected and not seen:
            raise UserError(
                f"download.{self.name}: the source holds no records. Check its paths, or its split."
            )
        if not self.writer.rows or rejected > allowed * seen:
            lines = "".join(
                f"\n  {e['file']}:{e['line']}: {e['reason']}" for e in self.examples[:SHOWN]
            )
            more = f"\n  … and {rejected - SHOWN:,} more" if rejected > SHOWN else ""
            advice = f" {self.shaper.advice()}." if self.reasons["missing column"] else ""
            if self.reasons[SCORE]:
                advice += (
                    " Labels with fractions are scores: to predict them is a regression, for which there is no kind of "
                    f"task here. If they are classes, name them with download.{self.name}.labels: {{VALUE: NAME}}."
                )
            if self.foreign and (guess := compression.looks_like(self.foreign)):
                advice += f" The text looks like {guess}: if it is, set download.{self.name}.encoding: {guess}."
            raise UserError(
                f"download.{self.name}: {rejected:,} of {seen:,} records have the wrong shape, more than "
                f"max_rejected_fraction {allowed:g} allows:{lines}{more}\nMend them, or raise "
                f"download.{self.name}.max_rejected_fraction to leave them out.{advice}"
            )

    def check_columns(self, columns: list[str] | None, file: str, first_line: bool = False) -> None:
        """Raises UserError where a file whose columns are the same for all rows lacks one, or has
        it twice.

        Args:
            first_line: the names are the first line of a table, which may have been a record.
        """
        if columns is None:
            return
        headerless = (
            f"If that is a record, the file has no header: set download.{self.name}.header: false, and name columns by "
            f"their position from 0 (download.{self.name}.columns: {self.shaper.positions()})"
        )
        try:
            mapping = self.shaper.mapping(columns)
        except MissingColumns as error:
            more = f" {headerless}." if first_line else ""
            raise UserError(f"{file}: {error.detail}. {self.shaper.advice()}.{more}") from None
        for name in mapping.values():
            if columns.count(name) > 1:
                raise UserError(
                    f"{file}: {columns.count(name)} columns are called {name!r}. Rename all but one of them, or take "
                    f"another column with download.{self.name}.columns."
                )
            if first_line and (name.isdecimal() or len(name) > LONGEST_NAME):
                raise UserError(
                    f"{file}: its first line has {name[:LONGEST_NAME]!r} for a column's name. {headerless}."
                )


def _key(own: str) -> int:
    return int.from_bytes(hashlib.blake2b(own.encode(), digest_size=8).digest(), "big")
