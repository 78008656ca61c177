"""`metrics/evaluate.json` as tables: models, tasks, metrics, the best model, and notes."""

from __future__ import annotations

from typing import Any

from llm.evaluate import metric_names
from llm.evaluate.metric_names import COUNTS, LOWER_IS_BETTER, NOT_A_SCORE

MODEL_LABELS = {
    "tfidf": "TF-IDF",
    "tf_idf": "TF-IDF",
    "lead": "Lead (first sentence)",
    "zstd": "zstd, dictionary",
    "tfidf_all": "TF-IDF, all training examples",
    "unanswerable": "Always “unanswerable”",
}


def models(evaluate: dict[str, Any]) -> list[str]:
    """Return model names: finetuned, base, then baselines in the file's order."""
    first = [name for name in ("finetuned", "base") if name in evaluate]
    return first + [name for name in evaluate if name.startswith("baseline:")]


def tasks(evaluate: dict[str, Any]) -> list[str]:
    """Return task names in the file's order, `language_modeling` last."""
    names = dict.fromkeys(task for model in models(evaluate) for task in evaluate[model])
    return sorted(names, key=lambda name: name == "language_modeling")


def metrics(evaluate: dict[str, Any], task: str) -> list[str]:
    """Return the metric names of a task over all models, lengths last.

    Counts and scores by source are not part of the tables.
    """
    found = (metric for model in models(evaluate) for metric in evaluate[model].get(task, {}))
    names = dict.fromkeys(metric for metric in found if metric not in COUNTS and "/" not in metric)
    return sorted(names, key=lambda name: name in NOT_A_SCORE)


def headline(evaluate: dict[str, Any], task: str) -> str | None:
    """Return a task's headline metric."""
    return metric_names.headline(metrics(evaluate, task))


def score(evaluate: dict[str, Any], model: str, task: str, metric: str) -> dict[str, Any] | None:
    """Return {value, low, high, n, signature}, or None if the model has no such score."""
    return evaluate.get(model, {}).get(task, {}).get(metric)


def best(evaluate: dict[str, Any], task: str, metric: str) -> set[str]:
    """Return the models with the best value of a metric.

    Several in a tie; none if only one model was scored or the metric has no best value.
    """
    found = {
        m: s["value"]
        for m in models(evaluate)
        if (s := score(evaluate, m, task, metric)) is not None
    }
    if len(found) < 2 or metric in NOT_A_SCORE:
        return set()
    top = (min if metric in LOWER_IS_BETTER else max)(found.values())
    return {model for model, value in found.items() if value == top}


def overall(evaluate: dict[str, Any], model: str = "finetuned") -> float | None:
    """Return the mean over tasks of headline metrics where more is better.

    It does not depend on the tokenizer.
    """
    values = []
    for task in tasks(evaluate):
        metric = headline(evaluate, task)
        found = (
            score(evaluate, model, task, metric)
            if metric and metric not in LOWER_IS_BETTER
            else None
        )
        if found is not None:
            values.append(float(found["value"]))
    return sum(values) / len(values) if values else None


def model_label(model: str) -> str:
    """Return a model's display name."""
    name = model.removeprefix("baseline:")
    words = name.replace("_", " ")
    return MODEL_LABELS.get(name, words[:1].upper() + words[1:])


def against_baseline(
    comparison: dict[str, Any], task: str, metric: str, level: float = 0.05
) -> dict[str, Any] | None:
    """Return how the finetuned model differs from the best baseline, or None if it was not tested.

    The paired test's result, with `mark`: ▲ significantly better, ▼ significantly worse (p below
    `level`), ○ no significant difference.
    """
    found = comparison.get("finetuned - best baseline", {}).get(task, {}).get(metric)
    if found is None:
        return None
    better = (found["difference"] < 0) == (metric in LOWER_IS_BETTER)
    mark = "○" if found["p_value"] >= level else "▲" if better else "▼"
    return {**found, "mark": mark}


def lead(evaluate: dict[str, Any], comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row a task for the first table: its headline metric by model and best baseline.

    A row is {task, metric, base, finetuned, baseline, name, test}; a score is None where it is
    missing, and `test` is as in `against_baseline`.
    """
    rows = []
    for task in tasks(evaluate):
        metric = headline(evaluate, task)
        if metric is None:
            continue
        sign = -1 if metric in LOWER_IS_BETTER else 1
        baselines = [
            (sign * found["value"], model)
            for model in models(evaluate)
            if model.startswith("baseline:") and (found := score(evaluate, model, task, metric))
        ]
        best_baseline = max(baselines)[1] if baselines else ""
        rows.append(
            {
                "task": task,
                "metric": metric,
                "base": score(evaluate, "base", task, metric),
                "finetuned": score(evaluate, "finetuned", task, metric),
                "baseline": score(evaluate, best_baseline, task, metric),
                "name": best_baseline,
                "test": against_baseline(comparison, task, metric),
            }
        )
    return rows


def tables(
    evaluate: dict[str, Any],
    contamination: dict[str, float],
    by_text: dict[str, dict[str, float]],
    comparison: dict[str, Any],
) -> list[dict[str, Any]]:
    """Return one table a task: its metrics, and a row of cells for each model.

    A cell is {value, low, high, best, test}, or None if the model has no such score; `test` is None
    but for the finetuned model (`against_baseline`). Each row has the
    share of test examples that overlap with the model's own training text: pretraining text for
    the base model, pretraining and finetuning text for the finetuned one. Baselines have none.
    """
    pretraining = by_text.get("pretraining", contamination)
    score_tables = []
    for task in tasks(evaluate):
        names = metrics(evaluate, task)
        winners = {metric: best(evaluate, task, metric) for metric in names}
        rows, examples = [], set()
        for model in models(evaluate):
            cells: list[dict[str, Any] | None] = []
            for metric in names:
                found = score(evaluate, model, task, metric)
                if found is not None and found.get("n") is not None:
                    examples.add(found["n"])
                test = against_baseline(comparison, task, metric) if model == "finetuned" else None
                cells.append(
                    {**found, "best": model in winners[metric], "test": test}
                    if found is not None
                    else None
                )
            if any(cells):
                seen = {"base": pretraining, "finetuned": contamination}.get(model, {})
                rows.append({"model": model, "cells": cells, "contamination": seen.get(task)})
        score_tables.append({"task": task, "metrics": names, "rows": rows, "n": sorted(examples)})
    return score_tables


def signatures(evaluate: dict[str, Any]) -> list[dict[str, Any]]:
    """Return notes on how scores were made, in the order of the tables.

    Metrics made in the same way share a note.

    Returns:
        Notes {scores: [[task, metric]], common: signature parts of all models, models: other parts
        by model}. A note's number is its position.
    """
    notes: list[dict[str, Any]] = []
    for task in tasks(evaluate):
        for metric in metrics(evaluate, task):
            parts = {
                model: str(text).split("|")
                for model in models(evaluate)
                if (text := (score(evaluate, model, task, metric) or {}).get("signature"))
            }
            if not parts:
                continue
            first, *others = parts.values()
            common = [part for part in first if all(part in other for other in others)]
            own = {
                model: "|".join(p for p in text if p not in common) for model, text in parts.items()
            }
            # A baseline's name says how it was made.
            own = {model: text for model, text in own.items() if text not in ("", model)}
            note = {"common": "|".join(common), "models": own}
            same = next(
                (other for other in notes if {**note, "scores": other["scores"]} == other), None
            )
            if same is None:
                notes.append(same := {**note, "scores": []})
            same["scores"].append([task, metric])
    return notes
