"""Score distributions, and scores by the length of the prompt, as SVG."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm.evaluate import metric_names
from llm.report.figures.curves import BLUE, GREEN, PAPER, drawing, to_svg

COLOUR = {"finetuned": BLUE, "base": GREEN}
BARS = 10  # of a histogram, between 0 and 1


def draw(predictions: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return `predictions_<task>` → SVG in stand-in colours."""
    with drawing() as plt:
        return {f"predictions_{task}": _figure(plt, data) for task, data in predictions.items()}


def _figure(plt: Any, data: dict[str, Any]) -> str:
    label = metric_names.label(data["metric"])
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(7.2, max(2.5, 0.7 + 0.2 * len(data["by_label"])))
    )
    if data["by_label"]:
        _labels(left, data["by_label"])
    else:
        _spread(left, data["scores"], label)
    for model, bins in data["by_length"].items():
        middle = [f"{b['low']}–{b['high']}" for b in bins]
        right.errorbar(
            middle, [b["mean"] for b in bins], yerr=[b["error"] for b in bins], color=COLOUR[model], marker="o",
            markersize=3.5, linewidth=1.4, capsize=2, label=model,
        )  # fmt: skip
    right.set(
        title=f"{label} by the length of the prompt",
        xlabel="words of the prompt",
        ylabel="mean and its error",
    )
    right.set_ylim(bottom=0)
    right.legend()
    return to_svg(figure)


def _spread(axes: Any, values_of: dict[str, list[float]], label: str) -> None:
    """Draw a histogram; every score that has a figure is between 0 and 1."""
    edges = np.linspace(0, 1, BARS + 1)
    width = 0.9 / BARS / len(values_of)
    for position, (model, values) in enumerate(values_of.items()):
        counts, _ = np.histogram(np.clip(values, 0, 1), edges)
        axes.bar(
            edges[:-1] + width * (position + 0.5) + 0.05 / BARS, counts / max(1, len(values)), width=width,
            color=COLOUR[model], label=model,
        )  # fmt: skip
    axes.set(
        title=f"How {label} is spread",
        xlabel=f"{label} of an example",
        ylabel="share of the examples",
    )


def _labels(axes: Any, shares: dict[str, dict[str, float]]) -> None:
    """Draw the accuracy on each label: finetuned as a bar, base as a mark on it."""
    names = list(shares)[::-1]
    axes.barh(
        range(len(names)),
        [shares[name]["finetuned"] for name in names],
        color=COLOUR["finetuned"],
        height=0.62,
    )
    if all("base" in shares[name] for name in names):
        axes.plot(
            [shares[name]["base"] for name in names], range(len(names)), "o", color=COLOUR["base"], markersize=5,
            markeredgecolor=PAPER,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.grid(False, axis="y")
    axes.set(
        title="Accuracy by label, commonest first",
        xlabel="share of the label's examples that are right",
    )
    axes.set_xlim(0, 1)
