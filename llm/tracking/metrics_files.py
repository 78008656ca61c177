"""The files that stages wrote to `metrics/`: curves, and numbers under their names in MLflow."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from llm.errors import UserError
from llm.evaluate.table import headlines
from llm.runtime.io import read_json


def read_history(path: str | Path) -> list[dict[str, float]]:
    """Return the rows of a `*_history.csv` without empty cells; raise UserError for other text."""
    return parse_history(Path(path).read_text(encoding="utf-8"), path)


def parse_history(text: str, path: str | Path) -> list[dict[str, float]]:
    """Return the rows of a history's text, as `read_history`; `path` is for messages."""
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
    """Return stage → rows of its history."""
    return {
        path.name.removesuffix("_history.csv"): read_history(path)
        for path in _sorted("*_history.csv")
    }


def metrics() -> dict[str, Any]:
    """Return stage → content of metrics/<stage>.json."""
    return {path.stem: read_json(path) for path in _sorted("*.json")}


def files() -> dict[str, bytes]:
    """Return name → bytes of every metrics/*.json."""
    return {path.name: path.read_bytes() for path in _sorted("*.json")}


def timings(since: float = 0.0) -> dict[str, dict[str, Any]]:
    """Return stage → content of metrics/timing/<stage>.json, if written after `since`.

    Args:
        since: seconds since the epoch.
    """
    return {
        path.stem: read_json(path)
        for path in _sorted("timing/*.json")
        if path.stat().st_mtime >= since
    }


def scalars(since: float) -> dict[str, float]:
    """Return `stage/metric` → number, by which runs are compared.

    These are the numbers on the top level of metrics/<stage>.json, and the headline metric of each
    task: `evaluate/finetuned.classification.accuracy`. All others stay in the files.

    Args:
        since: seconds since the epoch. An older timing file is of another execution: DVC does not
            track these files, and the stage came from the cache.
    """
    # MLflow's UI makes a section of the text before the last slash: one slash, one section a stage.
    values: dict[str, Any] = {}
    # `summary` repeats the others.
    stages = {stage: content for stage, content in metrics().items() if stage != "summary"}
    for stage, content in (*stages.items(), *timings(since).items()):
        values |= {f"{stage}/{key.replace('/', '.')}": value for key, value in content.items()}
    values |= {
        f"evaluate/{'.'.join(key)}": value
        for key, value in headlines(stages.get("evaluate", {})).items()
    }
    return {key: float(value) for key, value in values.items() if type(value) in (int, float)}


def _sorted(pattern: str) -> list[Path]:
    return sorted(Path("metrics").glob(pattern))
