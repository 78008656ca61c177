"""A list of the training states on disk, and the removal of old ones."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from llm.runtime.locks import locked_if_free
from llm.runtime.state_dirs import lock_of, state_root


def _states() -> list[tuple[str, Path, int, float]]:
    """Return stage, directory, bytes and time of the last change of each state, newest first.

    States that are half deleted are among them.
    """
    states = []
    patterns = ("*/*/inputs.json", "*/*/step-*")
    for directory in {path.parent for p in patterns for path in state_root().glob(p)}:
        size = 0
        for path in directory.rglob("*"):
            try:
                size += path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:  # a checkpoint that its trainer has just replaced
                continue
        states.append((directory.parent.name, directory, size, directory.stat().st_mtime))
    return sorted(states, key=lambda item: (item[0], -item[3]))


def list_states() -> None:
    """Print stage, fingerprint, step, size and time of each state."""
    states = _states()
    for stage, directory, size, modified in states:
        step = max(
            (int(path.name.removeprefix("step-")) for path in directory.glob("step-????????")),
            default=0,
        )
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(modified))
        with locked_if_free(lock_of(directory)) as unused:
            used = "" if unused else "  in use"
        print(f"{stage:10} {directory.name}  step {step:>8,}  {size / 1e6:8.1f} MB  {when}{used}")
    print(f"{len(states)} states in {state_root()}")


def prune_states() -> None:
    """Delete all states but the newest of each stage and those that a process trains with."""
    seen: set[str] = set()
    freed = 0
    for stage, directory, size, _ in _states():
        if stage in seen:
            with locked_if_free(lock_of(directory)) as unused:
                if unused:
                    shutil.rmtree(directory)
                    freed += size
        seen.add(stage)
    for lock in state_root().glob(f"*/{'[0-9a-f]' * 16}.lock"):
        with locked_if_free(lock) as unused:
            if unused and not lock.with_suffix("").exists():
                lock.unlink()
    print(
        f"freed {freed / 1e6:.1f} MB; kept the newest state of {', '.join(sorted(seen)) or 'no stage'}"
    )
