"""Curves and score bars as SVG, for light and dark pages; same numbers give the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llm.evaluate import metric_names
from llm.report import scores

# Stand-ins that a figure is drawn with. In the page they become variables of the style sheet, so
# that figures follow dark mode; in the files beside it, the colours of the light page. Okabe and
# Ito's palette, told apart by the colour-blind too (https://jfly.uni-koeln.de/color/).
COLOURS = {
    "#010101": ("var(--ink)", "#1d2430"),
    "#020202": ("var(--rule)", "#d9dde3"),
    "#030303": ("var(--muted)", "#5d6675"),
    "#040404": ("var(--blue)", "#0072b2"),
    "#050505": ("var(--orange)", "#d55e00"),
    "#060606": ("var(--green)", "#009e73"),
    "#070707": ("var(--paper)", "#ffffff"),
    "#080808": ("var(--pink)", "#b0568c"),
    "#090909": ("var(--sky)", "#4a9fd4"),
    "#0a0a0a": ("var(--gold)", "#b8860b"),
}
INK, RULE, MUTED, BLUE, ORANGE, GREEN, PAPER, PINK, SKY, GOLD = COLOURS
# One a run; the seventh run is dashed in the first colour.
LINES = (BLUE, ORANGE, GREEN, PINK, SKY, GOLD)
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "llm",  # ids would be random
    "svg.fonttype": "none",  # text stays text: it takes the page's font, and can be searched
    "font.size": 9,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "figure.constrained_layout.use": True,
}
Rows = list[dict[str, float]]


@contextmanager
def drawing() -> Iterator[Any]:
    """Yield pyplot, without a display and in the style of all figures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        yield pyplot


def draw(
    curves: dict[str, Rows], evaluate: dict[str, Any], corpus: dict[str, Any] | None = None
) -> dict[str, str]:
    """Return name → SVG in stand-in colours, for figures that have data."""
    figures = {}
    with drawing() as plt:
        if corpus and len(corpus["lengths"]) > 1:
            figures["corpus_lengths"] = _lengths(plt, corpus["lengths"])
        for stage, rows in curves.items():
            if len(rows) > 1:
                figures[f"{stage}_loss"] = _loss(plt, rows)
                figures[f"{stage}_learning_rate"] = _learning_rate(plt, rows)
        for task in scores.tasks(evaluate):
            figures[f"scores_{task}"] = _bars(plt, evaluate, task)
    return figures


def for_page(name: str, svg: str) -> str:
    """Adapt an SVG for HTML: colours from the style sheet, and ids unique to the page."""
    for stand_in, (variable, _) in COLOURS.items():
        svg = svg.replace(stand_in, variable)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'xlink:href="#{name}-')
    return re.sub(
        r'<svg ([^>]*?)width="[^"]*" ',
        r"<svg \1",
        re.sub(r'(<svg [^>]*?)height="[^"]*" ', r"\1", svg, count=1),
        count=1,
    )


def for_file(svg: str) -> str:
    """Adapt an SVG for a file of its own, on white."""
    for stand_in, (_, colour) in COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + svg.replace(
        "<svg ", '<svg style="background:#fff" ', 1
    )


def _lengths(plt: Any, lengths: list[tuple[int, int]]) -> str:
    """Draw the number of documents by length, in powers of two tokens."""
    counts = dict(lengths)
    sizes = [1 << power for power in range(min(counts).bit_length() - 1, max(counts).bit_length())]
    figure, axes = plt.subplots(figsize=(4.5, 2.8))
    axes.bar(range(len(sizes)), [counts.get(size, 0) for size in sizes], color=BLUE, width=0.86)
    axes.set_xticks(range(len(sizes)), [_power(size) for size in sizes])
    axes.grid(False, axis="x")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set(title="Documents by length", xlabel="tokens, at most")
    return to_svg(figure)


def _power(size: int) -> str:
    return (
        f"{size >> 20}M" if size >= 1 << 20 else f"{size >> 10}k" if size >= 1 << 10 else str(size)
    )


def overlaid(curves: dict[str, Rows], title: str) -> str:
    """Draw the losses of several runs over tokens: smoothed lines, validation losses as dots."""
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=(4.5, 3.0))
        low, high = [], []
        for number, (name, rows) in enumerate(curves.items()):
            colour, dashes = LINES[number % len(LINES)], "-" if number < len(LINES) else "--"
            tokens, losses = _series(rows, "tokens", "loss")
            smooth = _smooth(losses)
            axes.plot(tokens, smooth, dashes, color=colour, alpha=0.55)
            x, y = _series(rows, "tokens", "val_loss")
            axes.plot(x, y, dashes, color=colour, marker="o", markersize=3, linewidth=0.8)
            axes.plot([], [], dashes, color=colour, marker="o", markersize=3, label=name)
            low.append(min((*smooth, *y)))
            high.append(_start(smooth))
        if max(high) > min(low):
            margin = 0.06 * (max(high) - min(low))
            axes.set_ylim(min(low) - margin, max(high) + margin)
        axes.xaxis.set_major_formatter(
            lambda value, _: f"{value / 1e6:g}M" if value >= 1e5 else f"{value:,.0f}"
        )
        axes.set(title=title, xlabel="tokens", ylabel="nats per token")
        axes.legend()
        return to_svg(figure)


def _series(rows: Rows, x: str, y: str) -> tuple[list[float], list[float]]:
    """Return the values of two columns, of the rows that have the second one."""
    known = [row for row in rows if y in row]
    return [row[x] for row in known], [row[y] for row in known]


def _start(smooth: list[float]) -> float:
    """Return the highest loss to show; the first steps would flatten the rest of the curve."""
    return smooth[min(len(smooth) - 1, len(smooth) // 40)]


def _loss(plt: Any, rows: Rows) -> str:
    figure, axes = plt.subplots(figsize=(4.5, 2.8))
    steps, losses = _series(rows, "step", "loss")
    smooth = _smooth(losses)
    axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth, color=BLUE, label="training")
    x, y = _series(rows, "step", "val_loss")
    if y:
        axes.plot(x, y, color=ORANGE, marker="o", markersize=3, label="validation")
    low, high = min((*smooth, *y)), _start(smooth)
    axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low)) if high > low else None
    axes.set(title="Loss", xlabel="step", ylabel="nats per token")
    axes.legend()
    return to_svg(figure)


def _learning_rate(plt: Any, rows: Rows) -> str:
    figure, axes = plt.subplots(figsize=(4.5, 2.8))
    axes.plot(*_series(rows, "step", "learning_rate"), color=BLUE, label="learning rate")
    axes.set(title="Learning rate and gradient norm", xlabel="step", ylabel="learning rate")
    axes.set_ylim(bottom=0)
    x, y = _series(rows, "step", "grad_norm")
    if y:
        other = axes.twinx()
        other.plot(x, y, color=ORANGE, linewidth=0.8, alpha=0.8)
        other.set_ylim(0, 1.15 * sorted(y)[int(0.98 * (len(y) - 1))] or 1)
        other.set_ylabel("gradient norm before clipping", color=ORANGE)
        other.grid(False)
    return to_svg(figure)


def _bars(plt: Any, evaluate: dict[str, Any], task: str) -> str:
    """Draw each model's headline metric with its interval, best first."""
    metric = scores.headline(evaluate, task) or scores.metrics(evaluate, task)[0]
    scored = [
        (m, s)
        for m in scores.models(evaluate)
        if (s := scores.score(evaluate, m, task, metric)) is not None
    ]
    lower = metric in metric_names.LOWER_IS_BETTER
    scored.sort(key=lambda item: item[1]["value"], reverse=lower)
    figure, axes = plt.subplots(figsize=(4.5, 0.9 + 0.27 * len(scored)))
    for row, (model, score) in enumerate(scored):
        value = score["value"]
        colour = BLUE if model == "finetuned" else GREEN if model == "base" else MUTED
        axes.barh(row, value, color=colour, height=0.62, alpha=1.0 if colour == BLUE else 0.65)
        end = value
        if score.get("low") is not None and score.get("high") is not None:
            axes.plot((score["low"], score["high"]), (row, row), color=INK, linewidth=1)
            end = max(value, score["high"])
        axes.annotate(
            _short(value),
            (end, row),
            (4, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=8.5,
        )
    axes.set_yticks(range(len(scored)), [scores.model_label(model) for model, _ in scored])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(False, axis="y")
    axes.margins(x=0.16)
    axes.set_title(
        f"{task.replace('_', ' ').capitalize()} · {metric_names.label(metric)}{' ↓' * lower}"
    )
    return to_svg(figure)


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _smooth(values: list[float]) -> list[float]:
    """Return an exponential moving average over about 1 % of the curve, without start-up bias."""
    keep = 1 - 1 / max(1, len(values) / 100)
    average, weight, out = 0.0, 0.0, []
    for value in values:
        average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(average / weight)
    return out


def to_svg(figure: Any) -> str:
    from matplotlib import pyplot as plt

    file = io.StringIO()
    figure.savefig(
        file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    plt.close(figure)
    text = file.getvalue()
    text = text[text.index("<svg") :]  # drop the prolog and its DOCTYPE
    return re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
