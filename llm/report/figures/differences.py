"""Differences between two models with their intervals, as one figure."""

from __future__ import annotations

from typing import Any

from llm.evaluate import metric_names
from llm.evaluate.paired import Difference
from llm.report.figures.curves import BLUE, INK, MUTED, ORANGE, drawing, to_svg

LEFT_OUT = ("perplexity",)  # says what bits per byte say, on a scale of its own


def draw(rows: list[tuple[str, Difference, str]], title: str, b: str = "B") -> str:
    """Return an SVG in stand-in colours with a line for each difference.

    Args:
        rows: task, difference, and the better side.
        b: name of side B, which is better to the right.
    """
    shown = [row for row in rows if row[1].metric not in LEFT_OUT]
    panels = []
    for lower, unit in (
        (False, "points of 100"),
        (True, "lower by, nats per token or bits per byte"),
    ):
        group = [row for row in shown if (row[1].metric in metric_names.LOWER_IS_BETTER) == lower]
        panels += [(unit, group)] if group else []
    with drawing() as plt:
        heights = [len(group) + 1.5 for _, group in panels]
        figure, all_axes = plt.subplots(
            len(panels),
            figsize=(6.4, 0.9 + 0.24 * sum(heights)),
            height_ratios=heights,
            squeeze=False,
        )
        for axes, (unit, group) in zip(all_axes[:, 0], panels, strict=True):
            _panel(axes, group, unit, b)
        all_axes[0, 0].set_title(title)
        return to_svg(figure)


def _panel(axes: Any, group: list[tuple[str, Difference, str]], unit: str, b: str) -> None:
    for line, (_, d, better) in enumerate(reversed(group)):
        scale = metric_names.points(d.metric)
        colour = {"B": BLUE, "A": ORANGE}.get(better, MUTED)
        axes.plot((scale * d.low, scale * d.high), (line, line), color=colour, linewidth=2)
        axes.plot([scale * d.difference], [line], marker="o", markersize=4.5, color=colour)
    axes.axvline(0, color=INK, linewidth=0.8)
    names = [
        f"{task.replace('_', ' ')} · {metric_names.label(d.metric)}"
        for task, d, _ in reversed(group)
    ]
    axes.set_yticks(range(len(group)), names)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(-0.7, len(group) - 0.3)
    axes.grid(False, axis="y")
    axes.set_xlabel(f"{unit}\nto the right, {b} is better; grey: no difference shown")
