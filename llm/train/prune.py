"""What training states are on disk, and deleting old ones."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from llm.train.state import root


def _states() -> list[tuple[str, Path, int, float]]:
    """Stage, directory, bytes and modification time of each state, newest first within a stage."""
    found = []
    for inputs in (root() / ".state").glob("*/*/inputs.json"):
        directory = inputs.parent
        size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        found.append((directory.parent.name, directory, size, directory.stat().st_mtime))
    return sorted(found, key=lambda item: (item[0], -item[3]))


def list_states() -> None:
    """Print stage, fingerprint, step, size and time of each state."""
    states = _states()
    for stage, directory, size, modified in states:
        steps = sorted(directory.glob("step-????????"))
        step = json.loads((steps[-1] / "meta.json").read_text())["step"] if steps else 0
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(modified))
        print(f"{stage:10} {directory.name}  step {step:>8,}  {size / 1e6:8.1f} MB  {when}")
    print(f"{len(states)} states in {root() / '.state'}")


def prune_states() -> None:
    """Delete all states but the newest of each stage."""
    seen: set[str] = set()
    freed = 0
    for stage, directory, size, _ in _states():
        if stage in seen:
            shutil.rmtree(directory)
            freed += size
        seen.add(stage)
    print(f"freed {freed / 1e6:.1f} MB; kept the newest state of {', '.join(sorted(seen)) or 'no stage'}")
