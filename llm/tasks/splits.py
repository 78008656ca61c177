"""Which side of the split each record is on: train, validation or test.

A source's own sides are kept. A side that it lacks is carved out of the rest by a hash of each
record's group (a module, an article), which is the same in all tasks and depends on nothing else:
adding records never moves old ones, and a module whose documentation tests one task trains none.
The sides are disjoint by group and by the normalised text of the input; where a source's own sides
overlap, the test side keeps the record. The test side of a task is held out of the training and
validation sides of all others too."""

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
BLANK = len(SPLITS)  # the source does not say


@dataclass(frozen=True)
class Survey:
    """What one pass over a dataset tells: a byte a record, and counts."""

    sides: np.ndarray  # (records,) uint8: TRAIN, VALIDATION, TEST or DROPPED, in file order
    labels: dict[
        str, int
    ]  # class -> training records, sorted by class; empty for tasks without classes
    dropped: Counter[str]  # reason -> records
    unknown: tuple[
        str, ...
    ] = ()  # classes of other sides that training lacks, sorted, where those are left out

    def count(self, side: int) -> int:
        """Records on a side."""
        return int((self.sides == side).sum())


@dataclass
class Placed:
    """The records of a dataset after one pass: the side of each, and what is compared with other
    datasets.
    """

    task: Task
    name: str
    sides: np.ndarray  # (records,) uint8, as in `Survey`
    digests: dict[str, np.ndarray]  # "group" and "text" -> (records,) uint64
    label_of: np.ndarray  # (records,) int32, indices of `classes`
    classes: list[str | None]
    dropped: Counter[str] = field(default_factory=Counter)


def listed(dropped: Mapping[str, int]) -> str:
    """Numbers of records by reason, for messages."""
    return ", ".join(f"{n:,} {reason}" for reason, n in sorted(dropped.items())) or "none"


def normalise(text: str) -> str:
    """Case, punctuation, white space and Unicode's compatibility forms do not make two texts
    different.
    """
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


def survey(
    task: Task, name: str, records: Iterable[Record], val_fraction: float, test_fraction: float
) -> Survey:
    """Put every record of a dataset on a side, where there is no other dataset; arguments as of
    `place`.
    """
    return settle([place(task, name, records, val_fraction, test_fraction)])[0]


def place(
    task: Task, name: str, records: Iterable[Record], val_fraction: float, test_fraction: float
) -> Placed:
    """Put every record on a side, so that those of this dataset are disjoint.

    Args:
        task: the module of the task's kind.
        name: of the dataset, for messages.
        records: in file order; only `id`, `group`, `split` and the task's columns are read. 21
            bytes a record are kept.
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
    digests = {"group": np.array(units, np.uint64), "text": np.array(texts, np.uint64)}
    sides = _sides(np.array(given, np.uint8), np.array(carved, np.uint8))
    placed = Placed(task, name, sides, digests, np.array(label_of, np.int32), list(codes))
    for what, values in digests.items():
        for side, word in ((TEST, "test"), (VALIDATION, "validation")):
            _drop(placed, what, side, values[sides == side], f"{what}_in_{word}")
    return placed


def settle(datasets: Sequence[Placed]) -> list[Survey]:
    """Hold each dataset's test side out of the others, and count the classes that training is left
    with.
    """
    for dataset in datasets:
        for other in datasets:
            for what in dataset.digests if other is not dataset else ():
                _drop(
                    dataset,
                    what,
                    TEST,
                    other.digests[what][other.sides == TEST],
                    f"{what}_in_test_of_{other.name}",
                )
    return [_survey(dataset) for dataset in datasets]


def _survey(placed: Placed) -> Survey:
    counts = np.bincount(placed.label_of[placed.sides == TRAIN], minlength=len(placed.classes))
    labels = {
        name: int(n)
        for name, n in zip(placed.classes, counts, strict=True)
        if name is not None and n
    }
    unknown: set[str] = set()
    if placed.task.CLOSED:
        known = np.array([name in labels for name in placed.classes], bool)
        strange = ~known[placed.label_of] & (placed.sides != DROPPED)
        if strange.any():
            placed.dropped["label_not_in_train"] = int(strange.sum())
            unknown = {str(placed.classes[code]) for code in np.unique(placed.label_of[strange])}
            placed.sides[strange] = DROPPED
    return Survey(
        placed.sides, dict(sorted(labels.items())), placed.dropped, tuple(sorted(unknown))
    )


def _sides(given: np.ndarray, carved: np.ndarray) -> np.ndarray:
    """Keep the source's sides; take the ones that it lacks from the records it does not place, else
    from its train.
    """
    present = set(np.unique(given).tolist())
    sides = np.where(given == BLANK, TRAIN, given).astype(np.uint8)
    supply = given == (BLANK if BLANK in present else TRAIN)
    for side in {VALIDATION, TEST} - present:
        sides[supply & (carved == side)] = side
    return sides


def _drop(placed: Placed, what: str, side: int, held_out: np.ndarray, reason: str) -> None:
    """Drop the records of the sides before `side` (train is before validation, that before test)
    with these digests.
    """
    again = (placed.sides < side) & np.isin(placed.digests[what], held_out)
    if again.any():
        placed.dropped[reason] += int(again.sum())
        placed.sides[again] = DROPPED


def _check_columns(task: Task, name: str, record: Record) -> None:
    missing = [column for column in ("id", "group", "split", *task.COLUMNS) if column not in record]
    if missing:
        raise UserError(
            f"data/raw/{name} has no column {', '.join(missing)}; it has {', '.join(record)}. "
            f"Set download.{name}.kind to the kind that the data are, or map the columns in download.{name}.columns."
        )
