"""`metrics/evaluate.json` as tables: which models, tasks and metrics there are, and who is best."""

from __future__ import annotations

from typing import Any

from llm.evaluate import metric_names
from llm.evaluate.metric_names import COUNTS, LOWER_IS_BETTER, NOT_A_SCORE

MODEL_LABELS = {
    "tfidf": "TF-IDF",
    "tf_idf": "TF-IDF",
    "lead": "Lead (first sentence)",
    "zstd": "zstd, dictionary",
    "unanswerable": "Always “unanswerable”",
}


def models(evaluate: dict[str, Any]) -> list[str]:
    """Model names: finetuned, base, then baselines in the file's order."""
    first = [name for name in ("finetuned", "base") if name in evaluate]
    return first + [name for name in evaluate if name.startswith("baseline:")]


def tasks(evaluate: dict[str, Any]) -> list[str]:
    """Task names in the file's order, `language_modeling` last."""
    names = dict.fromkeys(task for model in models(evaluate) for task in evaluate[model])
    return sorted(names, key=lambda name: name == "language_modeling")


def metrics(evaluate: dict[str, Any], task: str) -> list[str]:
    """Metric names of a task over all models, lengths last; counts and scores by source are not for
    the tables.
    """
    found = (metric for model in models(evaluate) for metric in evaluate[model].get(task, {}))
    names = dict.fromkeys(metric for metric in found if metric not in COUNTS and "/" not in metric)
    return sorted(names, key=lambda name: name in NOT_A_SCORE)


def headline(evaluate: dict[str, Any], task: str) -> str | None:
    """The metric that stands for a task."""
    return metric_names.headline(metrics(evaluate, task))


def score(evaluate: dict[str, Any], model: str, task: str, metric: str) -> dict[str, Any] | None:
    """{value, low, high, n, signature} or None where the model was not scored so."""
    return evaluate.get(model, {}).get(task, {}).get(metric)


def best(evaluate: dict[str, Any], task: str, metric: str) -> set[str]:
    """Models with the best value of a metric; several in a tie, none where only one was scored or
    nothing is best.
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
    """Mean over tasks of the headline metric, of those where more is better; does not depend on the
    tokenizer.
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
    """A model's name as people write it."""
    name = model.removeprefix("baseline:")
    words = name.replace("_", " ")
    return MODEL_LABELS.get(name, words[:1].upper() + words[1:])
