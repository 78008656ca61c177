"""What the stages left in `metrics/`: curves, and every number under the name that MLflow shows."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from llm.errors import UserError
from llm.evaluate.table import headlines
from llm.runtime.io import read_json


def read_history(path: str | Path) -> list[dict[str, float]]:
    """Rows of a `*_history.csv`; empty cells are left out. Raises UserError for a cell that is no
    number.
    """
    return parse_history(Path(path).read_text(encoding="utf-8"), path)


def parse_history(text: str, path: str | Path) -> list[dict[str, float]]:
    """Rows of a history's text, as `read_history`; `path` is where it is from."""
    try:
        return [
            {key: float(value) for key, value in row.items() if value}
            for row in csv.DictReader(text.splitlines())
        ]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path}: expected numbers only ({error}). Delete it and run `dvc repro`."
        ) from None


def curves() -> dict[str, list[dict[str, float]]]:
    """Stage → rows of its history."""
    return {
        path.name.removesuffix("_history.csv"): read_history(path)
        for path in _sorted("*_history.csv")
    }


def metrics() -> dict[str, Any]:
    """Stage → content of metrics/<stage>.json."""
    return {path.stem: read_json(path) for path in _sorted("*.json")}


def files() -> dict[str, bytes]:
    """Name → content of every metrics/*.json, to the byte."""
    return {path.name: path.read_bytes() for path in _sorted("*.json")}


def timings(since: float = 0.0) -> dict[str, dict[str, Any]]:
    """Stage → content of metrics/timing/<stage>.json, of those written after `since` (seconds since
    the epoch).
    """
    return {
        path.stem: read_json(path)
        for path in _sorted("timing/*.json")
        if path.stat().st_mtime >= since
    }


def scalars(since: float) -> dict[str, float]:
    """`stage/metric` → number: what runs are compared by, and the times of stages that ran after
    `since`.

    These are the numbers on the top level of metrics/<stage>.json, and of scores what stands for
    each task, with its
    value: `evaluate/finetuned.classification.accuracy`. The rest would bury them: it stays in the
        files. A timing file
    older than `since` is of another execution: DVC does not track these files, and the stage came
    from the cache."""
    # MLflow's UI makes a section of all that stands before the last slash: one slash, one section a
    # stage.
    values: dict[str, Any] = {}
    stages = {
        stage: content for stage, content in metrics().items() if stage != "summary"
    }  # of what is there
    for stage, content in (*stages.items(), *timings(since).items()):
        values |= {f"{stage}/{key.replace('/', '.')}": value for key, value in content.items()}
    values |= {
        f"evaluate/{'.'.join(key)}": value
        for key, value in headlines(stages.get("evaluate", {})).items()
    }
    return {key: float(value) for key, value in values.items() if type(value) in (int, float)}


def _sorted(pattern: str) -> list[Path]:
    return sorted(Path("metrics").glob(pattern))
