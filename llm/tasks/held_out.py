"""The texts of the examples that the tasks are tested on, for leaving out pretraining documents that contain them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from llm import params, tasks
from llm.data import raw
from llm.io import read_json
from llm.tasks import splits


def test_texts(directory: Path, p: params.Mix) -> Iterator[str]:
    """Input texts and references of every task's test side, as `mix` will split it.

    Args:
        directory: data/raw.

    Raises:
        UserError: a data set cannot be read, or its columns are not those of its kind.
    """
    for name in p.tasks:
        kind = read_json(directory / name / "manifest.json")["kind"]
        columns = [column for column in raw.FIELDS[kind] if column not in (*raw.PLACE, "label")]
        read = partial(raw.read, directory / name)
        survey = splits.survey(tasks.get(kind, name), name, read(), p.val_fraction, p.test_fraction)
        for record, side in zip(read(columns), survey.sides, strict=True):
            if side == splits.TEST:
                for value in record.values():
                    yield from value if isinstance(value, list) else [value] if value else []


test_texts.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever pytest thinks of the name
