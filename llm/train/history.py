"""Training curves as CSV, for `dvc plots`, the report and MLflow."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from llm.runtime.io import write_bytes

COLUMNS = ("step", "tokens", "loss", "learning_rate", "grad_norm", "val_loss")


def write_history(path: str | Path, history: list[dict[str, float | int | None]]) -> None:
    """Write one row a logged step; a value that was not measured at a step stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in history:
        writer.writerow({key: "" if row[key] is None else row[key] for key in COLUMNS})
    write_bytes(path, text.getvalue().encode())
