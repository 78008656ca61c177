"""Which side of the split each record is on: train, validation or test.

A source's own sides are kept. A side that it lacks is carved out of the rest by a hash of each record's group (a
module, an article), which is the same in all tasks and depends on nothing else: adding records never moves old ones,
and a module whose documentation tests one task trains none. The sides are disjoint by group and by the normalised
text of the input; where a source's own sides overlap, the test side keeps the record.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from llm.errors import UserError
from llm.tasks.base import Record, Task, key, uniform

TRAIN, VALIDATION, TEST, DROPPED = range(4)
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
BLANK = len(SPLITS)  # the source does not say


@dataclass(frozen=True)
class Survey:
    """What one pass over a dataset tells: a byte a record, and counts."""

    sides: np.ndarray  # (records,) uint8: TRAIN, VALIDATION, TEST or DROPPED, in file order
    labels: dict[str, int]  # class -> training records, sorted by class; empty for tasks without classes
    dropped: Counter[str]  # reason -> records

    def count(self, side: int) -> int:
        """Records on a side."""
        return int((self.sides == side).sum())


def normalise(text: str) -> str:
    """Case, punctuation, white space and Unicode's compatibility forms do not make two texts different."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words) if words else text.strip()


def unit(record: Record, text: str) -> str:
    """What may not be torn apart: the group, or where a record has none of its own, equal texts."""
    return record["group"] if record["group"] != record["id"] else f"text\0{text}"


def carve(unit: str, val_fraction: float, test_fraction: float) -> int:
    """The side of a unit where the source does not say."""
    point = uniform("split", unit)
    if point < test_fraction:
        return TEST
    return VALIDATION if point < test_fraction + val_fraction else TRAIN


def survey(task: Task, name: str, records: Iterable[Record], val_fraction: float, test_fraction: float) -> Survey:
    """Put every record on a side.

    Args:
        task: the module of the task's kind.
        name: of the dataset, for messages.
        records: in file order; only `id`, `group`, `split` and the task's columns are read. 21 bytes a record are kept.
        val_fraction: of the groups, where the source has no validation side.
        test_fraction: of the groups, where the source has no test side.

    Raises:
        UserError: a column is missing, or `split` holds another word.
    """
    given, carved, units, texts = array("B"), array("B"), array("Q"), array("Q")
    codes: dict[str | None, int] = {}
    label_of = array("i")
    for record in records:
        if not given:
            _check_columns(task, name, record)
        split = record["split"] or ""
        if split and split not in SPLITS:
            raise UserError(
                f"data/raw/{name}: record {record['id']} has split {split!r}; expected train, validation, test or "
                f"an empty string. Correct download.{name}, and run `dvc repro`."
            )
        text = normalise(task.input_text(record))
        whole = unit(record, text)
        given.append(SPLITS.get(split, BLANK))
        carved.append(carve(whole, val_fraction, test_fraction))
        units.append(key(whole))
        texts.append(key(text))
        label_of.append(codes.setdefault(task.label(record), len(codes)))
    sides = _sides(np.array(given, np.uint8), np.array(carved, np.uint8))
    dropped: Counter[str] = Counter()
    for what, digests in (("group", np.array(units, np.uint64)), ("text", np.array(texts, np.uint64))):
        _separate(sides, digests, what, dropped)
    counts = np.bincount(np.array(label_of, np.int64)[sides == TRAIN], minlength=len(codes))
    labels = {label: int(counts[code]) for label, code in codes.items() if label is not None and counts[code]}
    if task.CLOSED:
        known = np.array([label in labels for label in codes], bool)
        strange = ~known[np.array(label_of, np.int64)] & (sides != DROPPED)
        if strange.any():
            dropped["label_not_in_train"] = int(strange.sum())
            sides[strange] = DROPPED
    return Survey(sides, dict(sorted(labels.items())), dropped)


def _sides(given: np.ndarray, carved: np.ndarray) -> np.ndarray:
    """Keep the source's sides; take the ones that it lacks from the records it does not place, else from its train."""
    present = set(np.unique(given).tolist())
    sides = np.where(given == BLANK, TRAIN, given).astype(np.uint8)
    supply = given == (BLANK if BLANK in present else TRAIN)
    for side in {VALIDATION, TEST} - present:
        sides[supply & (carved == side)] = side
    return sides


def _separate(sides: np.ndarray, digests: np.ndarray, what: str, dropped: Counter[str]) -> None:
    """Drop from validation what test also has, and from train what either has."""
    for kept, word in ((TEST, "test"), (VALIDATION, "validation")):
        again = (sides < kept) & np.isin(digests, digests[sides == kept])
        if again.any():
            dropped[f"{what}_in_{word}"] += int(again.sum())
            sides[again] = DROPPED


def _check_columns(task: Task, name: str, record: Record) -> None:
    missing = [column for column in ("id", "group", "split", *task.COLUMNS) if column not in record]
    if missing:
        raise UserError(
            f"data/raw/{name} has no column {', '.join(missing)}; it has {', '.join(record)}. "
            f"Set download.{name}.kind to the kind that the data are, or map the columns in download.{name}.columns."
        )
