"""`metrics/summary.json`: about ten numbers that compare runs, under flat names, without times."""

from __future__ import annotations

from typing import Any

from llm.evaluate.table import headlines
from llm.report import scores

PATH = "metrics/summary.json"
# Name → stage and key in metrics/<stage>.json.
SOURCES = {
    "pretrain_val_loss": ("pretrain", "val_loss"),
    "finetune_val_loss": ("finetune", "val_loss"),
    "parameters": ("pretrain", "parameters"),
    "pretrain_tokens": ("pretrain", "tokens"),
}


def summary(metrics: dict[str, Any]) -> dict[str, float]:
    """Return name → value, for the stages that have run.

    `score` is the mean of the tasks' headline scores, `<task>_<metric>` each of them for the
    finetuned model, `base_<…>` the base model's on held-out text, and `contamination` the highest
    share of contaminated test examples of any task.

    Args:
        metrics: stage → content of metrics/<stage>.json.
    """
    evaluate = metrics.get("evaluate", {})
    values: dict[str, float | None] = {"score": scores.overall(evaluate)}
    for (model, task, metric), value in headlines(evaluate).items():
        values["_".join(([] if model == "finetuned" else [model]) + [task, metric])] = value
    values["contamination"] = max(evaluate.get("contamination", {}).values(), default=None)
    for name, (stage, key) in SOURCES.items():
        values[name] = metrics.get(stage, {}).get(key)
    return {name: value for name, value in values.items() if value is not None}
