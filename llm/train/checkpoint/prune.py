"""What training states are on disk, and deleting old ones."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from llm.train.checkpoint.local import root


def _states() -> list[tuple[str, Path, int, float]]:
    """Stage, directory, bytes and time of the last change of each state, newest first; half-deleted
    ones too.
    """
    marks = [
        path
        for pattern in ("inputs.json", "step-*")
        for path in (root() / ".state").glob(f"*/*/{pattern}")
    ]
    found = []
    for directory in {mark.parent for mark in marks}:
        size = 0
        for path in directory.rglob("*"):
            try:
                size += path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:  # a checkpoint that its trainer has just replaced
                continue
        found.append((directory.parent.name, directory, size, directory.stat().st_mtime))
    return sorted(found, key=lambda item: (item[0], -item[3]))


@contextmanager
def _unused(directory: Path) -> Iterator[bool]:
    """Whether no process trains with this state; where it is so, none begins to within the block."""
    with ExitStack() as stack:
        unused = True
        try:
            file = stack.enter_context(open(directory / "lock", "rb"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            pass  # half-deleted
        except BlockingIOError:
            unused = False
        yield unused


def list_states() -> None:
    """Print stage, fingerprint, step, size and time of each state."""
    states = _states()
    for stage, directory, size, modified in states:
        step = max(
            (int(path.name.removeprefix("step-")) for path in directory.glob("step-????????")),
            default=0,
        )
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(modified))
        with _unused(directory) as unused:
            used = "" if unused else "  in use"
        print(f"{stage:10} {directory.name}  step {step:>8,}  {size / 1e6:8.1f} MB  {when}{used}")
    print(f"{len(states)} states in {root() / '.state'}")


def prune_states() -> None:
    """Delete all states but the newest of each stage and those that a process trains with."""
    seen: set[str] = set()
    freed = 0
    for stage, directory, size, _ in _states():
        if stage in seen:
            with _unused(directory) as unused:
                if unused:
                    shutil.rmtree(directory)
                    freed += size
        seen.add(stage)
    print(
        f"freed {freed / 1e6:.1f} MB; kept the newest state of {', '.join(sorted(seen)) or 'no stage'}"
    )
