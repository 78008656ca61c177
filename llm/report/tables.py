"""The predictions as tables that MLflow shows and filters: metrics/report/tables/<task>.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm.report.predictions import Columns, by_task
from llm.runtime.io import write_bytes

ROWS = 1000  # MLflow's page loads the whole table
TEXT = 2000  # characters of a prompt or an answer


def write_tables(directory: Path) -> list[Path]:
    """Write one table a task, a row for each example, in the form of MLflow's `log_table`.

    Columns: `id`, by which MLflow groups rows; each model's prediction (MLflow shows the first);
    `references`; `prompt`; each score of each model.

    Returns:
        The files.
    """
    written = []
    for task, sides in by_task():
        if "prompt" in sides["finetuned"]:  # held-out text has windows, no prompts
            path = directory / "tables" / f"{task}.json"
            write_bytes(path, (json.dumps(table(sides), ensure_ascii=False) + "\n").encode())
            written.append(path)
    return written


def table(sides: dict[str, Columns]) -> dict[str, list[Any]]:
    """Return `{columns, data}` of the models' predictions, joined by example id."""
    first = next(iter(sides.values()))
    scores = [
        name for name, column in first.items() if column and isinstance(column[0], float | int)
    ]
    positions = {
        model: {id: i for i, id in enumerate(columns["id"])} for model, columns in sides.items()
    }
    wanted = [("prediction", model) for model in sides] + [
        (name, model) for name in scores for model in sides
    ]
    rows = []
    for i, id in enumerate(first["id"][:ROWS]):
        cells = []
        for name, model in wanted:
            position = positions[model].get(id)
            value = (
                sides[model][name][position]
                if position is not None and name in sides[model]
                else None
            )
            cells.append(value[:TEXT] if isinstance(value, str) else value)
        texts = ["\n".join(first["references"][i] or [])[:TEXT], first["prompt"][i][:TEXT]]
        rows.append([id, *cells[: len(sides)], *texts, *cells[len(sides) :]])
    names = [f"{name}, {model}" for name, model in wanted[len(sides) :]]
    return {"columns": ["id", *sides, "references", "prompt", *names], "data": rows}
