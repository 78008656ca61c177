"""`metrics/summary.json`: the ten or so numbers by which runs are compared, under flat names; no
times.
"""

from __future__ import annotations

from typing import Any

from llm.evaluate.table import headlines
from llm.report import scores

PATH = "metrics/summary.json"
# Name → stage and key in metrics/<stage>.json.
TAKEN = {
    "pretrain_val_loss": ("pretrain", "val_loss"),
    "finetune_val_loss": ("finetune", "val_loss"),
    "parameters": ("pretrain", "parameters"),
    "pretrain_tokens": ("pretrain", "tokens"),
}


def summary(metrics: dict[str, Any]) -> dict[str, float]:
    """Name → value, of what the stages have left.

    `score` is the mean of the tasks' headline scores, `<task>_<metric>` each of them for the
    finetuned model, `base_<…>` what the base model has on held-out text, and `contamination` the
    worst task's share of test examples.

    Args:
        metrics: stage → content of metrics/<stage>.json.
    """
    evaluate = metrics.get("evaluate", {})
    found: dict[str, float | None] = {"score": scores.overall(evaluate)}
    for (model, task, metric), value in headlines(evaluate).items():
        found["_".join(([] if model == "finetuned" else [model]) + [task, metric])] = value
    found["contamination"] = max(evaluate.get("contamination", {}).values(), default=None)
    for name, (stage, key) in TAKEN.items():
        found[name] = metrics.get(stage, {}).get(key)
    return {name: value for name, value in found.items() if value is not None}
