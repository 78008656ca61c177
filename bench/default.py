"""Time the default pipeline of this commit beside that of another, stage by stage.

    python bench/default.py --against COMMIT         # half an hour and more: both run all stages
    python bench/default.py --against COMMIT --tiny  # the tests' tiny params: a minute

Each version runs in a clone of its own, with this interpreter and its packages, an empty DVC cache
and an empty compiler cache. The versions take turns within a stage and change who is first at the
next, so what else the machine does falls on both. Seconds are those of `dvc repro` for the stage,
with its start and hashing; memory is what the stage itself measured. What is not committed is not
timed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
STAGES = ("download", "tokenize", "pretrain", "mix", "finetune", "evaluate", "report")
TINY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.pipeline.workspace import checkout
checkout(Path(sys.argv[2]))
"""


class Cost(NamedTuple):
    """Wall seconds of a stage, and its peak memory in bytes where it measured it."""

    seconds: float
    memory: int | None


def clone(commit: str, folder: Path, tiny: bool) -> Path:
    """Clone a commit of this repository into `folder`; return the directory to run in."""
    source = folder / "source"
    subprocess.run(["git", "clone", "-q", "--no-checkout", str(ROOT), str(source)], check=True)
    subprocess.run(["git", "checkout", "-q", "--detach", commit], check=True, cwd=source)
    if not tiny:
        return source
    command = [sys.executable, "-c", TINY, str(source), str(folder / "tiny")]
    subprocess.run(command, check=True, cwd=source)
    return folder / "tiny"


def environment(checkout: Path) -> dict[str, str]:
    """Return this environment without what would lead a stage out of its checkout."""
    names = ("DVC_", "LLM_", "MLFLOW_TRACKING", "TORCHINDUCTOR_CACHE_DIR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(checkout),
    }


def run(stage: str, checkout: Path) -> Cost:
    """Run one stage; exit with what it printed if it fails."""
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", stage]
    began = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=checkout,
        env=environment(checkout),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{stage} failed in {checkout}:\n{done.stdout[-4000:]}")
    timing = checkout / "metrics" / "timing" / f"{stage}.json"
    measured = json.loads(timing.read_text()) if timing.exists() else {}
    return Cost(seconds, measured.get("peak_memory_bytes"))


def table(costs: dict[str, list[Cost]]) -> list[str]:
    """Return the lines to print: seconds and memory of ours and theirs by stage, and in all.

    Args:
        costs: stage → costs of ours and of theirs.
    """
    lines = [f"{'':<10}{'ours':>9}{'theirs':>9}{'ratio':>7}   {'ours':>9}{'theirs':>9}{'ratio':>7}"]
    peaks = [[pair[i].memory or 0 for pair in costs.values()] for i in (0, 1)]
    seconds = [sum(pair[i].seconds for pair in costs.values()) for i in (0, 1)]
    total = [Cost(seconds[i], max(peaks[i]) or None) for i in (0, 1)]
    for stage, (ours, theirs) in {**costs, "all": total}.items():
        text = f"{stage:<10}{ours.seconds:>7.1f} s{theirs.seconds:>7.1f} s"
        text += f"{ours.seconds / theirs.seconds:>7.2f}"
        if ours.memory and theirs.memory:
            text += f"   {ours.memory / 1e6:>6.0f} MB{theirs.memory / 1e6:>6.0f} MB"
            text += f"{ours.memory / theirs.memory:>7.2f}"
        lines.append(text)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", metavar="COMMIT", required=True, help="the other version")
    parser.add_argument("--tiny", action="store_true", help="with the tests' tiny params")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkouts = [
            clone(commit, Path(folder) / name, arguments.tiny)
            for name, commit in (("ours", "HEAD"), ("theirs", arguments.against))
        ]
        costs: dict[str, list[Cost]] = {}
        for number, stage in enumerate(STAGES):
            order = (0, 1) if number % 2 == 0 else (1, 0)
            measured = {i: run(stage, checkouts[i]) for i in order}
            costs[stage] = [measured[0], measured[1]]
            print(
                f"{stage}: {costs[stage][0].seconds:.1f} s and {costs[stage][1].seconds:.1f} s",
                flush=True,
            )
    print("\n".join(["", *table(costs)]))


if __name__ == "__main__":
    main()
