"""The measured techniques in the report, with a sentence for each row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm.report.figures.curves import BLUE, GREEN, INK, MUTED, ORANGE, drawing, to_svg
from llm.runtime.io import read_json

PATH = Path("metrics/timing/techniques.json")
PARTS = ("weights", "gradients", "optimizer", "activations")
NAMES = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations",
}
SAME = 0.03  # smaller relative changes count as none: reruns differ in time by as much
SAME_LOSS = 0.01  # smaller relative changes of the loss count as none


def collect() -> dict[str, Any] | None:
    """Return the results of the stage `techniques`, each row with a sentence; None if it has not run."""
    if not PATH.is_file():
        return None
    results: dict[str, Any] = read_json(PATH)
    rows = {row["name"]: row for row in results["rows"]}
    for row in results["rows"]:
        row["why"] = sentence(row, rows.get(row["beside"]))
    return results


def sentence(row: dict[str, Any], other: dict[str, Any] | None) -> str:
    """Return how the row's last technique changed memory, time and loss, compared with `other`."""
    if other is None:
        largest = max(PARTS, key=lambda part: row["memory"][part])
        share = row["memory"][largest] / row["peak_bytes"]
        return f"The {NAMES[largest]} take the largest share of memory, {_percent(share)}."
    moved = [
        part
        for part in sorted(
            PARTS, key=lambda part: -abs(row["memory"][part] - other["memory"][part])
        )
        if abs(row["memory"][part] - other["memory"][part]) > SAME * other["peak_bytes"]
    ]
    memory = row["peak_bytes"] / other["peak_bytes"]
    text = f"Compared with {other['label']}, it takes {_times(memory)} memory"
    if moved:
        changes = (
            f"{NAMES[p]} {mega(other['memory'][p])} → {mega(row['memory'][p])}" for p in moved
        )
        text += f" ({', '.join(changes)}{_because(row, other, moved)})"
    time = row["step_seconds"] / other["step_seconds"]
    text += f", {_times(time)} time a step"
    gain = (row["loss"] - other["loss"]) / other["loss"]
    if abs(gain) < SAME_LOSS:
        text += f", and reaches the same loss within {_percent(SAME_LOSS)}."
    else:
        text += f", and reaches a loss {_percent(abs(gain))} {'lower' if gain < 0 else 'higher'}."
    if memory > 1 - SAME and time > 1 - SAME and gain > -SAME_LOSS:
        text += " Here it does not pay."
    return text


def _because(row: dict[str, Any], other: dict[str, Any], moved: list[str]) -> str:
    """Return what differs between the rows and explains the parts that changed."""
    reasons = []
    trained = row["trainable_parameters"]
    if trained != other["trainable_parameters"] and {"gradients", "optimizer"} & set(moved):
        reasons.append(f"{_percent(trained / row['parameters'], 1)} of the parameters are trained")
    if "weights" in moved:
        adapter = row["trainable_parameters"] if row["method"] != "full" else 0
        bits = 8 * row["memory"]["weights"] / (row["parameters"] + adapter)
        reasons.append(f"{bits:.1f} bits a weight")
    if "activations" in moved:
        if row["rows"] != other["rows"]:
            reasons.append(f"{row['rows']} of {row['batch_rows']} sequences at a time")
        if row["activation_type"] != other["activation_type"]:
            reasons.append(f"activations in {row['activation_type']}")
        if row["checkpointing"] and not other["checkpointing"]:
            reasons.append("the layers' are computed again instead of being kept")
    return f": {', '.join(reasons)}" if reasons else ""


def _times(ratio: float) -> str:
    return "the same" if abs(ratio - 1) <= SAME else f"{ratio:.2f} times the"


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def mega(count: float) -> str:
    """Return bytes as MB or GB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def draw(results: dict[str, Any] | None) -> dict[str, str]:
    """Return `techniques` → SVG in stand-in colours: memory by part, and the time of a step."""
    if not results:
        return {}
    rows = results["rows"]
    with drawing() as plt:
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(7.2, 1.1 + 0.28 * len(rows)), sharey=True, width_ratios=(3, 2)
        )
        positions = range(len(rows))
        start = [0.0] * len(rows)
        for part, colour in zip(PARTS, (BLUE, GREEN, MUTED, ORANGE), strict=True):
            sizes = [row["memory"][part] / 1e6 for row in rows]
            left.barh(positions, sizes, left=start, height=0.6, color=colour, label=NAMES[part])
            start = [a + b for a, b in zip(start, sizes, strict=True)]
        left.set_yticks(positions, [row["label"] for row in rows])
        left.invert_yaxis()
        left.set(title="Memory by part", xlabel="MB")
        left.legend(fontsize=7.5)
        right.barh(positions, [row["step_seconds"] for row in rows], height=0.6, color=INK)
        right.set(title="Time of a step", xlabel="seconds")
        return {"techniques": to_svg(figure)}
