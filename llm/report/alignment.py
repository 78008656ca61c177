"""The model trained on preferences in the report, beside the one that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llm.evaluate import metric_names
from llm.runtime.io import read_json
from llm.runtime.parquet import readable

FIGURES, SCORES = Path("metrics/align.json"), Path("metrics/aligned")
SAMPLES = 4  # answers before and after, evenly spaced over the first task's test set


def collect() -> dict[str, Any] | None:
    """Return the run's figures, its scores and some answers; None if `align` has not run.

    rows: task, label of the metric, `Difference` and whether lower is better, of main metrics.
    samples: prompt, reference, and the answers before and after.
    """
    if not FIGURES.is_file() or not (SCORES / "comparison.json").is_file():
        return None
    comparison = read_json(SCORES / "comparison.json")
    rows = [
        {
            "task": task.replace("_", " "),
            "label": metric_names.label(metric),
            "lower": metric in metric_names.LOWER_IS_BETTER,
            **difference,
        }
        for task, metrics in comparison.items()
        for metric, difference in sorted(
            metrics.items(), key=lambda item: metric_names.rank(item[0])
        )
        if metric in metric_names.MAIN
    ]
    return {
        **read_json(FIGURES),
        "rows": rows,
        "samples": _samples(read_json(SCORES / "evaluate.json")),
    }


def _samples(scores: dict[str, Any]) -> list[dict[str, str]]:
    task = next((name for name, own in scores["aligned"].items() if "f1" in own), None)
    if task is None:
        return []
    before, after = (_read(SCORES / f"{name}-{task}.parquet") for name in ("before", "aligned"))
    step = max(1, len(before) // SAMPLES)
    return [
        {
            "prompt": old["prompt"],
            "reference": (old["references"] or [""])[0],
            "before": old["prediction"],
            "after": new["prediction"],
        }
        for old, new in list(zip(before, after, strict=True))[::step][:SAMPLES]
    ]


def _read(path: Path) -> list[dict[str, Any]]:
    with readable(path, "Run `dvc repro -sf align/dvc.yaml:evaluate_aligned` to write it again."):
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
