"""The predictions as tables that MLflow shows and filters: metrics/report/tables/<task>.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm.report.predictions import PREDICTIONS, Columns, read
from llm.runtime.io import write_bytes

ROWS = 1000  # MLflow's page holds a table whole
TEXT = 2000  # characters of a prompt or an answer


def write_tables(directory: Path) -> list[Path]:
    """One table a task, with a row for each example, in the form of MLflow's `log_table`.

    Columns: `id`, by which MLflow groups rows; the prediction of each model, of which MLflow shows
        the first;
    `references`, `prompt`; each score of each model. Returns the files.
    """
    written = []
    for own in sorted(PREDICTIONS.glob("finetuned-*.parquet")):
        task = own.stem.removeprefix("finetuned-")
        sides = {"finetuned": read(own)}
        base = own.with_name(f"base-{task}.parquet")
        if base.is_file():
            sides["base"] = read(base)
        if "prompt" in sides["finetuned"]:  # of held-out text there are only windows
            path = directory / "tables" / f"{task}.json"
            write_bytes(path, (json.dumps(table(sides), ensure_ascii=False) + "\n").encode())
            written.append(path)
    return written


def table(sides: dict[str, Columns]) -> dict[str, list[Any]]:
    """`{columns, data}` of the models' predictions, put side by side by the examples' ids."""
    first = next(iter(sides.values()))
    scores = [
        name for name, column in first.items() if column and isinstance(column[0], float | int)
    ]
    places = {
        model: {id: i for i, id in enumerate(columns["id"])} for model, columns in sides.items()
    }
    wanted = [("prediction", model) for model in sides] + [
        (name, model) for name in scores for model in sides
    ]
    rows = []
    for i, id in enumerate(first["id"][:ROWS]):
        found = []
        for name, model in wanted:
            at = places[model].get(id)
            value = sides[model][name][at] if at is not None and name in sides[model] else None
            found.append(value[:TEXT] if isinstance(value, str) else value)
        shown = ["\n".join(first["references"][i] or [])[:TEXT], first["prompt"][i][:TEXT]]
        rows.append([id, *found[: len(sides)], *shown, *found[len(sides) :]])
    names = [f"{name}, {model}" for name, model in wanted[len(sides) :]]
    return {"columns": ["id", *sides, "references", "prompt", *names], "data": rows}
