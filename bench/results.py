"""Output of the benches' figures: bench/results/train.json, and Markdown tables on the screen."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

PATH = Path(__file__).resolve().parent / "results" / "train.json"


def machine() -> dict[str, Any]:
    """Return the machine and the versions that figures belong to."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        name = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name
        )
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=PATH.parent.parent,
    )
    return {
        "machine": f"{name}, {os.cpu_count()} cores",
        "load_before": round(os.getloadavg()[0], 2),
        "torch": version("torch"),
        "commit": git.stdout.strip(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def store(section: str, key: str, figures: dict[str, Any]) -> None:
    """Put one run's figures into the file, in the place of an older run of the same name."""
    found = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    found.setdefault(section, {})[key] = figures
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def stored(section: str) -> dict[str, Any]:
    """The figures of a section, by run."""
    return json.loads(PATH.read_text(encoding="utf-8")).get(section, {}) if PATH.exists() else {}


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def median(values: Iterable[float]) -> float:
    """Return the median of at least one value."""
    return statistics.median(values)


def against(value: float, goal: float, at_least: bool) -> str:
    """Return "met" or "NOT met"."""
    return "met" if (value >= goal if at_least else value <= goal) else "NOT met"
