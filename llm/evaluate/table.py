"""The scores as a table to read, and as rows for DVC's plots."""

from __future__ import annotations

import csv
import io
from typing import Any

from llm.evaluate.metric_names import COUNTS, LOWER_IS_BETTER, MAIN, METRICS, UNIT, headline

Results = dict[str, dict[str, dict[str, dict[str, Any]]]]  # model -> task -> metric -> score


def order(model: str) -> tuple[int, str]:
    """Finetuned, base, then finetuned with other decoding, then the baselines by name."""
    return {"finetuned": 0, "base": 1}.get(model, 2 if model.startswith("variant:") else 3), model


def render(
    results: Results,
    contamination: dict[str, float],
    apart: dict[str, dict[str, float]] | None = None,
) -> str:
    """Return one block a task: a line a model, a column a main metric, with its interval.

    Args:
        results: model → task → metric → score.
        contamination: contaminated share of each task.
        apart: the same by pretraining and finetuning text.
    """
    blocks = []
    for task in sorted({task for tasks in results.values() for task in tasks}):
        models = sorted((model for model in results if task in results[model]), key=order)
        shown = _shown(results, task, models)
        lines = [["", *shown]] + [
            [model, *(_cell(results[model][task].get(m)) for m in shown)] for model in models
        ]
        widths = [max(len(line[i]) for line in lines) for i in range(len(shown) + 1)]
        title = task
        if task in contamination:
            title += f" · {100 * contamination[task]:.1f} % of the test examples share 13 words with the training text"
            sides = [
                f"{name} {100 * shares[task]:.1f} %"
                for name, shares in (apart or {}).items()
                if task in shares
            ]
            title += f" ({', '.join(sides)})" if sides else ""
        rows = [
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        ]
        blocks.append("\n".join([title, *(row.rstrip() for row in rows)]))
    return "\n\n".join(blocks)


def _shown(results: Results, task: str, models: list[str]) -> list[str]:
    found = dict.fromkeys(metric for model in models for metric in results[model][task])
    rest = [m for m in found if m not in METRICS and m not in COUNTS and "/" not in m]
    return [m for m in MAIN if m in found] + rest


def _cell(score: dict[str, Any] | None) -> str:
    if score is None:
        return "–"
    digits = 3 if abs(score["value"]) < 10 else 1
    return f"{score['value']:.{digits}f} [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"


def scores_csv(results: Results) -> str:
    """`metric, value, low, high` of the scores that share one scale; `metric` names task, metric
    and model.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["metric", "value", "low", "high", "model", "task"])
    for task in sorted({task for tasks in results.values() for task in tasks}):
        for metric in UNIT:
            for model in sorted(results, key=order):
                score = results[model].get(task, {}).get(metric)
                if score is not None:
                    label = f"{task} {metric} · {model}"
                    writer.writerow(
                        [label, score["value"], score["low"], score["high"], model, task]
                    )
    return out.getvalue()


def headlines(results: Results) -> dict[tuple[str, str, str], float]:
    """(model, task, metric) → value of the metric that stands for a task, of the finetuned model.

    Of the base model it is there where less is better, on plain text: what finetuning has cost.
    """
    found = {}
    for model in ("finetuned", "base"):
        for task, scores in results.get(model, {}).items():
            metric = headline(scores)
            if metric and (model == "finetuned" or metric in LOWER_IS_BETTER):
                found[model, task, metric] = float(scores[metric]["value"])
    return found
