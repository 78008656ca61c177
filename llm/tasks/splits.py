"""The side of the split that each record is on: train, validation or test.

A source's own sides are kept. A missing side is carved out of the rest by a hash of each record's
group (a module, an article). The hash is the same in all tasks and depends on nothing else: new
records never move old ones, and a module that tests one task trains no other.

Two sides never share a group or the normalised text of an input. If a source's own sides overlap,
the test side keeps the record. The test side of a task is also held out of the training and
validation sides of all other tasks.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from llm.errors import UserError
from llm.tasks.base import Record, Task, key, uniform

TRAIN, VALIDATION, TEST, DROPPED = range(4)
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
BLANK = len(SPLITS)  # the source names no side


@dataclass(frozen=True)
class Survey:
    """Result of one pass over a dataset: a byte a record, and counts."""

    sides: np.ndarray  # (records,) uint8: TRAIN, VALIDATION, TEST or DROPPED, in file order
    # class -> training records, sorted by class; empty for tasks without classes
    labels: dict[str, int]
    dropped: Counter[str]  # reason -> records
    # classes whose records were dropped because training lacks them, sorted
    unknown: tuple[str, ...] = ()

    def count(self, side: int) -> int:
        """Return the number of records on a side."""
        return int((self.sides == side).sum())


@dataclass
class SidedDataset:
    """Sides of a dataset's records, and the digests that other datasets are compared with."""

    task: Task
    name: str
    sides: np.ndarray  # (records,) uint8, as in `Survey`
    digests: dict[str, np.ndarray]  # "group" and "text" -> (records,) uint64
    label_of: np.ndarray  # (records,) int32, indices of `classes`
    classes: list[str | None]
    dropped: Counter[str] = field(default_factory=Counter)


def listed(dropped: Mapping[str, int]) -> str:
    """Return the numbers of records by reason as text for a message."""
    return ", ".join(f"{n:,} {reason}" for reason, n in sorted(dropped.items())) or "none"


def normalise(text: str) -> str:
    """Return the text without case, punctuation, white space and compatibility forms (NFKC)."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words) if words else text.strip()


def unit(record: Record, text: str) -> str:
    """Return what must stay on one side: the record's group, or its text if it has no group."""
    return record["group"] if record["group"] != record["id"] else f"text\0{text}"


def carve(unit: str, val_fraction: float, test_fraction: float) -> int:
    """Return the side of a unit for which the source names none."""
    point = uniform("split", unit)
    if point < test_fraction:
        return TEST
    return VALIDATION if point < test_fraction + val_fraction else TRAIN


def survey(
    task: Task, name: str, records: Iterable[Record], val_fraction: float, test_fraction: float
) -> Survey:
    """Assign sides to a dataset alone, without other tasks; see `assign_sides` for arguments."""
    return separate_tests([assign_sides(task, name, records, val_fraction, test_fraction)])[0]


def assign_sides(
    task: Task, name: str, records: Iterable[Record], val_fraction: float, test_fraction: float
) -> SidedDataset:
    """Assign a side to every record, so that the sides of this dataset are disjoint.

    Args:
        task: the task's kind.
        name: name of the dataset, for messages.
        records: in file order; only `id`, `group`, `split` and the task's columns are read. 21
            bytes a record stay in memory.
        val_fraction: share of the groups to carve out if the source has no validation side.
        test_fraction: share of the groups to carve out if the source has no test side.

    Raises:
        UserError: a column is missing, or `split` holds another word.
    """
    own, carved, units, texts = array("B"), array("B"), array("Q"), array("Q")
    codes: dict[str | None, int] = {}
    label_of = array("i")
    for record in records:
        if not own:
            _check_columns(task, name, record)
        split = record["split"] or ""
        if split and split not in SPLITS:
            raise UserError(
                f"data/raw/{name}: record {record['id']} has split {split!r}; expected train, validation, test or "
                f"an empty string. Correct download.{name}, and run `dvc repro`."
            )
        text = normalise(task.input_text(record))
        unit_name = unit(record, text)
        own.append(SPLITS.get(split, BLANK))
        carved.append(carve(unit_name, val_fraction, test_fraction))
        units.append(key(unit_name))
        texts.append(key(text))
        label_of.append(codes.setdefault(task.label(record), len(codes)))
    digests = {"group": np.array(units, np.uint64), "text": np.array(texts, np.uint64)}
    sides = _sides(np.array(own, np.uint8), np.array(carved, np.uint8))
    dataset = SidedDataset(task, name, sides, digests, np.array(label_of, np.int32), list(codes))
    for compared, values in digests.items():
        for side, word in ((TEST, "test"), (VALIDATION, "validation")):
            _drop(dataset, compared, side, values[sides == side], f"{compared}_in_{word}")
    return dataset


def separate_tests(datasets: Sequence[SidedDataset]) -> list[Survey]:
    """Hold each dataset's test side out of the others, then count the training classes."""
    for dataset in datasets:
        for other in datasets:
            for compared in dataset.digests if other is not dataset else ():
                _drop(
                    dataset,
                    compared,
                    TEST,
                    other.digests[compared][other.sides == TEST],
                    f"{compared}_in_test_of_{other.name}",
                )
    return [_survey(dataset) for dataset in datasets]


def _survey(dataset: SidedDataset) -> Survey:
    counts = np.bincount(dataset.label_of[dataset.sides == TRAIN], minlength=len(dataset.classes))
    labels = {
        name: int(n)
        for name, n in zip(dataset.classes, counts, strict=True)
        if name is not None and n
    }
    unknown: set[str] = set()
    if dataset.task.CLOSED:
        known = np.array([name in labels for name in dataset.classes], bool)
        untrained = ~known[dataset.label_of] & (dataset.sides != DROPPED)
        if untrained.any():
            dataset.dropped["label_not_in_train"] = int(untrained.sum())
            unknown = {
                str(dataset.classes[code]) for code in np.unique(dataset.label_of[untrained])
            }
            dataset.sides[untrained] = DROPPED
    return Survey(
        dataset.sides, dict(sorted(labels.items())), dataset.dropped, tuple(sorted(unknown))
    )


def _sides(own: np.ndarray, carved: np.ndarray) -> np.ndarray:
    """Keep the source's own sides and fill the missing ones by the carved sides.

    They are taken from the records without a side, or from the training side if all have one.

    Args:
        own: (records,) uint8, the source's sides or BLANK.
        carved: (records,) uint8, the sides by hash.
    """
    present = set(np.unique(own).tolist())
    sides = np.where(own == BLANK, TRAIN, own).astype(np.uint8)
    supply = own == (BLANK if BLANK in present else TRAIN)
    for side in {VALIDATION, TEST} - present:
        sides[supply & (carved == side)] = side
    return sides


def _drop(
    dataset: SidedDataset, compared: str, side: int, held_out: np.ndarray, reason: str
) -> None:
    """Drop records with these digests from the sides before `side` (train, validation, test)."""
    repeated = (dataset.sides < side) & np.isin(dataset.digests[compared], held_out)
    if repeated.any():
        dataset.dropped[reason] += int(repeated.sum())
        dataset.sides[repeated] = DROPPED


def _check_columns(task: Task, name: str, record: Record) -> None:
    missing = [column for column in ("id", "group", "split", *task.COLUMNS) if column not in record]
    if missing:
        raise UserError(
            f"data/raw/{name} has no column {', '.join(missing)}; it has {', '.join(record)}. "
            f"Set download.{name}.kind to the kind that the data are, or map the columns in download.{name}.columns."
        )
