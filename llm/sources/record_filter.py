"""The filter between a source and `data/raw/<name>`.

Each record is written, or counted as rejected with its file, line and reason.
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
from llm.sources.record_schema import SCORE, MissingColumns, RecordSchema, Rejected

EXAMPLES = 20  # rejected records that the manifest shows
UNDECODED_BYTES = 1 << 14  # non-UTF-8 text from which the encoding is guessed
SHOWN = 5  # rejected records that an error message shows
LONGEST_NAME = 64  # characters of a plausible column name
MAX_LABELS = 100  # classes that the manifest counts
# Order of two classes whose names the source does not give.
ORDERS = (["0", "1"], ["false", "true"], ["False", "True"])


class RecordFilter:
    """Converts, checks, numbers and writes the records of one data set."""

    def __init__(self, name: str, schema: RecordSchema, writer: Writer) -> None:
        self.name, self.schema, self.writer = name, schema, writer
        self.reasons: Counter[str] = Counter()
        self.examples: list[dict[str, Any]] = []
        self.kept: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.names: list[str] = []  # class names in order, where the params or a file give them
        self.undecoded = b""  # the beginnings of records that are not UTF-8
        self._ids: set[int] = set()  # 8-byte digests; not needed for pretraining ids

    def add(
        self,
        row: Row,
        file: str,
        label: str,
        split: str,
        class_names: dict[str, list[str]] | None = None,
    ) -> None:
        """Write a row's record, or count the reason for rejecting it.

        Args:
            file: name of the file in messages and in the manifest.
            label: short name of the file in ids, the same on every machine.
            split: split of the file; overrides the record's own.
            class_names: names of integer classes by column, if the file holds them.
        """
        if row.record is None:
            self.reject(file, row.line, row.reason, row.detail)
            return
        try:
            record = self.schema.convert(row.record, class_names or {})
        except Rejected as rejected:
            own_id = row.record.get("id")  # the line is not enough: a SQuAD file may be one line
            self.reject(
                file,
                row.line,
                rejected.reason,
                rejected.detail + (f" (id {own_id})" if own_id else ""),
            )
            if rejected.reason == "not UTF-8" and len(self.undecoded) < UNDECODED_BYTES:
                text = " ".join(value for value in row.record.values() if isinstance(value, str))
                self.undecoded += text[:UNDECODED_BYTES].encode("utf-8", "surrogateescape")
            return
        location = f"{label}:{row.line}"
        record["id"] = self._unique(record, location)
        if "source" in record:
            record["source"] = record["source"] or label
        else:
            record["split"] = split or record["split"]
            record["group"] = record["group"] or record["id"]
        if "label" in record:
            self.names = self.schema.class_names(class_names or {}, tuple(row.record)) or self.names
            if len(self.labels) <= MAX_LABELS or record["label"] in self.labels:
                self.labels[record["label"]] += 1
        self.writer.write(record)
        self.kept[file] += 1

    def _unique(self, record: dict[str, Any], location: str) -> str:
        """Return the record's own id, or a digest of its text; in pretraining, its location.

        A repeated id gets the location appended.
        """
        record_id = record["id"]
        if not record_id and self.schema.kind == "pretrain":
            return location
        if not record_id:
            body = json.dumps(
                {k: v for k, v in record.items() if k not in ("id", "group", "split")},
                sort_keys=True,
            )
            record_id = hashlib.sha256(body.encode()).hexdigest()[:16]
        key = _key(record_id)
        if key in self._ids:
            return f"{record_id}@{location}"
        self._ids.add(key)
        return record_id

    def state(self) -> dict[str, Any]:
        """Return the counts so far, for `restore`."""
        counters = {name: dict(getattr(self, name)) for name in ("reasons", "kept", "labels")}
        undecoded = self.undecoded.decode("latin-1")
        lists = {"examples": list(self.examples), "names": list(self.names)}
        return {**counters, **lists, "foreign": undecoded, "own_ids": bool(self._ids)}

    def positive_label(self) -> str | None:
        """Return the class whose F1 is reported: the second of two, as in GLUE.

        It is None where there are not two classes, or where they have no order.
        """
        usual_order = next((order for order in ORDERS if {*self.labels} == {*order}), [])
        order = self.names or usual_order
        return order[1] if len(order) == 2 and {*self.labels} <= {*order} else None

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the counts that `state` returned; ids are read from the written parts."""
        for name in ("reasons", "kept", "labels"):
            getattr(self, name).update(state[name])
        self.examples, self.names = list(state["examples"]), list(state["names"])
        self.undecoded = state["foreign"].encode("latin-1")
        if state["own_ids"]:
            self._ids = {_key(record["id"]) for record in read(self.writer.directory, ["id"])}

    def reject(self, file: str, line: int, reason: str, detail: str = "") -> None:
        """Count a rejected record."""
        self.reasons[reason] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(
                {"file": file, "line": line, "reason": f"{reason}: {detail}" if detail else reason}
            )

    def check(self, allowed: float) -> None:
        """Refuse a data set with too few valid records.

        Args:
            allowed: largest fraction of rejected records.

        Raises:
            UserError: there are no records, or a larger fraction was rejected.
        """
        rejected = self.reasons.total()
        seen = self.writer.rows + rejected
        if not seen:
            raise UserError(
                f"download.{self.name}: the source holds no records. Check its paths, or its split."
            )
        if not self.writer.rows or rejected > allowed * seen:
            lines = "".join(
                f"\n  {e['file']}:{e['line']}: {e['reason']}" for e in self.examples[:SHOWN]
            )
            more = f"\n  … and {rejected - SHOWN:,} more" if rejected > SHOWN else ""
            advice = f" {self.schema.advice()}." if self.reasons["missing column"] else ""
            if self.reasons[SCORE]:
                advice += (
                    " Labels with fractions are scores. Predicting them is a regression, and no kind of task here "
                    f"does that. If they are classes, name them with download.{self.name}.labels: {{VALUE: NAME}}."
                )
            if self.undecoded and (guess := compression.looks_like(self.undecoded)):
                advice += f" The text looks like {guess}: if it is, set download.{self.name}.encoding: {guess}."
            raise UserError(
                f"download.{self.name}: {rejected:,} of {seen:,} records have the wrong shape, more than "
                f"max_rejected_fraction {allowed:g} allows:{lines}{more}\nFix them, or raise "
                f"download.{self.name}.max_rejected_fraction to leave them out.{advice}"
            )

    def check_columns(self, columns: list[str] | None, file: str, first_line: bool = False) -> None:
        """Check the columns of a file.

        Args:
            columns: the columns of all rows; None where rows may differ.
            first_line: the names are the first line of a table, which may be a record.

        Raises:
            UserError: a column is missing or occurs twice.
        """
        if columns is None:
            return
        headerless = (
            f"If that is a record, the file has no header: set download.{self.name}.header: false, and name columns by "
            f"their position from 0 (download.{self.name}.columns: {self.schema.positions()})"
        )
        try:
            mapping = self.schema.mapping(columns)
        except MissingColumns as error:
            more = f" {headerless}." if first_line else ""
            raise UserError(f"{file}: {error.detail}. {self.schema.advice()}.{more}") from None
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


def _key(record_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(record_id.encode(), digest_size=8).digest(), "big")
