"""The scaling ladder as a figure: each size's losses over tokens, the law, the held-back run."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm.evaluate.scaling_law import NAMES, Law
from llm.report.figures import curves


def draw(result: dict[str, Any]) -> str:
    """Return an SVG in the stand-in colours of `llm.report.figures.curves`."""
    law = Law(**{name: result["law"][name]["value"] for name in NAMES})
    held, runs = result["held_back"], result["runs"]
    sizes = sorted({run["parameters"] for run in runs})
    least, most = min(run["tokens"] for run in runs), max(run["tokens"] for run in [*runs, held])
    tokens = np.geomspace(least / 1.3, most * 1.3, 60)
    with curves.drawing() as plt:
        figure, axes = plt.subplots(figsize=(6.2, 3.6))
        for rank, size in enumerate([*sizes, held["parameters"]]):
            last = size == held["parameters"]
            colour = curves.ORANGE if last else curves.BLUE
            strength = 1.0 if last else 0.35 + 0.65 * rank / max(1, len(sizes) - 1)
            losses = law.loss(size, tokens)
            line = "--" if last else "-"
            axes.plot(tokens, losses, line, color=colour, alpha=strength, linewidth=1.1)
            axes.annotate(
                f"{size / 1e6:,.2f}M" if size < 1e9 else f"{size / 1e9:,.2f}B",
                (tokens[-1], float(np.asarray(losses)[-1])),
                (3, 0),
                textcoords="offset points",
                va="center",
                color=curves.INK,
                fontsize=8,
            )
            own = [run for run in runs if run["parameters"] == size]
            x, y = ([run[key] for run in own] for key in ("tokens", "loss"))
            axes.plot(x, y, "o", color=colour, alpha=strength, markersize=4)
        x, interval = [held["tokens"]], [held["predicted"]["low"], held["predicted"]["high"]]
        axes.plot(x * 2, interval, color=curves.ORANGE, linewidth=1.6)
        label = "held back: observed"
        axes.plot(x, held["observed"], "D", color=curves.ORANGE, markersize=5, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
        axes.tick_params(axis="y", which="minor", size=0, labelcolor=curves.MUTED, labelsize=8)
        axes.set(
            title="Loss over tokens, by size",
            xlabel="training tokens",
            ylabel="nats per token, held out",
        )
        axes.legend()
        return curves.to_svg(figure)
