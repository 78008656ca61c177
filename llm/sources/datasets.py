"""The data sets of `mix.tasks`: their records in data/raw, their splits, and their faults."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from llm import params, tasks
from llm.errors import UserError
from llm.runtime.io import read_json
from llm.runtime.progress import track
from llm.sources import raw
from llm.tasks import mixture, splits
from llm.tasks.base import Record
from llm.tasks.mixture import Dataset

SHOWN = 5  # labels that a message names


def read(directory: Path, p: params.Mix) -> list[Dataset]:
    """Read each task's records once, split them, and refuse unusable data sets.

    Args:
        directory: data/raw.

    Raises:
        UserError: no task has a weight, a data set is missing or of an unknown kind, or a split or
            a label is missing.
    """
    if not any(task.weight for task in p.tasks.values()):
        raise UserError(
            "mix.tasks: no task has a weight above 0, so there is nothing to train on; raise one."
        )
    placements, manifests = [], {}
    for name in p.tasks:
        if name in (mixture.LANGUAGE_MODELING, "pretrain"):
            raise UserError(
                f"mix.tasks.{name}: the name stands for plain pretraining text; call the task something else."
            )
        if not (directory / name / "manifest.json").is_file():
            raise UserError(
                f"mix.tasks.{name}: {directory / name} has no manifest.json. Run `dvc repro download`."
            )
        manifests[name] = read_json(directory / name / "manifest.json")
        task = tasks.get(manifests[name]["kind"], name)
        records = track(raw.read(directory / name), f"split {name}", unit="record")
        placements.append(splits.assign_sides(task, name, records, p.val_fraction, p.test_fraction))
    datasets = []
    for placement, survey in zip(placements, splits.separate_tests(placements), strict=True):
        kind, positive = (
            manifests[placement.name]["kind"],
            manifests[placement.name].get("positive_label"),
        )
        read_again = partial(raw.read, directory / placement.name)
        weight = p.tasks[placement.name].weight
        datasets.append(
            Dataset(
                placement.name,
                kind,
                placement.task,
                weight,
                read_again,
                survey,
                positive if positive in survey.labels else None,
            )
        )
        mixture.check(datasets[-1])
    if not p.pretrain_fraction and not any(
        d.survey.count(splits.VALIDATION) for d in datasets if d.weight > 0
    ):
        raise UserError(mixture.NO_VALIDATION)
    return datasets


def remarks(datasets: list[Dataset]) -> Iterator[str]:
    """Yield a line for each fault that does not stop the stage."""
    for d in datasets:
        if d.weight > 0 and not d.survey.count(splits.VALIDATION):
            yield (
                f"{d.name}: no validation example, so the validation loss says nothing of it; give "
                f"download.{d.name} val_paths (of the hub: val_split), or raise mix.val_fraction"
            )
        if d.survey.unknown:
            yield (
                f"{d.name}: {d.survey.dropped['label_not_in_train']:,} records have labels that no training example "
                f"has, and are left out: {', '.join(map(repr, d.survey.unknown[:SHOWN]))}"
                f"{', …' if len(d.survey.unknown) > SHOWN else ''}"
            )
        shared = {reason: n for reason, n in d.survey.dropped.items() if "_in_test_of_" in reason}
        if shared:
            yield f"{d.name}: left out, because another task tests with the same: {splits.listed(shared)}"


def held_out_texts(datasets: list[Dataset]) -> Iterator[str]:
    """Yield the texts (as `texts` does) of every task's test and validation examples."""
    for d in datasets:
        for record, side in zip(d.records(), d.survey.sides, strict=True):
            if side in (splits.TEST, splits.VALIDATION):
                yield from texts(d.kind, record)


def texts(kind: str, record: Record) -> Iterator[str]:
    """Yield a record's inputs and references, without its label and metadata."""
    for column in raw.fields(kind):
        value = None if column in (*raw.METADATA, "label") else record.get(column)
        yield from value if isinstance(value, list) else [value] if value else []
