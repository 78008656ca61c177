"""The metrics: the name of each, its scale, and which direction is better."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """The presentation of one metric.

    Attributes:
        label: the name as people write it.
        points: factor from its own scale to points of a hundred; 0 for another unit.
        lower_is_better: true of losses.
        main: shown in tables; false of what repeats another metric.
    """

    label: str
    points: float = 100.0
    lower_is_better: bool = False
    main: bool = True


# In the order of the tables' columns.
METRICS = {
    "exact_match": Metric("Exact match"),
    "f1": Metric("F1"),
    "accuracy": Metric("Accuracy"),
    "mcc": Metric("MCC"),
    "f1_macro": Metric("Macro F1"),
    "rouge1": Metric("ROUGE-1"),
    "rouge2": Metric("ROUGE-2"),
    "rougeLsum": Metric("ROUGE-Lsum"),
    "bleu": Metric("BLEU", points=1.0),  # sacrebleu's scale ends at 100
    "bits_per_byte": Metric("Bits per byte", points=0.0, lower_is_better=True),
    "perplexity": Metric("Perplexity", points=0.0, lower_is_better=True),
    "rougeL": Metric("ROUGE-L", main=False),
    "accuracy_normalised": Metric("Accuracy, per byte", main=False),
    "mean_length": Metric("Mean length", points=0.0, main=False),
    "loss": Metric("Loss", points=0.0, lower_is_better=True, main=False),
}
# The first of these that a task has stands for the task: ROUGE-Lsum is the one usually reported,
# the others are those of the tasks' papers.
HEADLINE = ("accuracy", "f1", "rougeLsum", "rougeL", "bits_per_byte", "perplexity")
# Numbers about the examples, which are not scores.
COUNTS = ("truncated", "shots", "unfinished", "empty", "no_reference", "unseen_label")

MAIN = tuple(name for name, metric in METRICS.items() if metric.main)
# Main scores from 0 to 1 (Matthews correlation: from -1), for one bar chart.
UNIT = tuple(name for name in MAIN if METRICS[name].points == 100.0)
LOWER_IS_BETTER = frozenset(name for name, metric in METRICS.items() if metric.lower_is_better)
NOT_A_SCORE = frozenset({"mean_length", *COUNTS})  # shown, but no model is "best" at it


def headline(names: Container[str]) -> str | None:
    """Return the metric among `names` that stands for a task; None if there is none."""
    return next((metric for metric in HEADLINE if metric in names), None)


def label(name: str) -> str:
    """Return a metric's name as people write it."""
    return METRICS[name].label if name in METRICS else name.replace("_", " ")


def rank(name: str) -> int:
    """Return a metric's place among the main ones, for sorting; others come last."""
    return MAIN.index(name) if name in MAIN else len(MAIN)


def points(name: str) -> float:
    """Return the factor to points of a hundred, where more is better; -1 for losses."""
    if name in LOWER_IS_BETTER:
        return -1.0
    return METRICS[name].points if name in METRICS else 100.0
