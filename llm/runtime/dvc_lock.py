"""A lock that keeps `dvc exp run` out of a workspace in which another DVC runs stages.

Otherwise it would remove the outputs of those stages.

DVC locks the outputs of a stage that runs, but `dvc exp run` checks out its own revision before it
asks for them. What it does ask for beforehand is a lock on git's references of the running
experiment, in `.dvc/tmp/exps/rwlock`; it waits three minutes for it and then gives up, naming the
holder, with nothing touched. Each stage takes that lock in the name of the DVC that runs it, so it
also holds between two stages, and ends with that process at the latest. Temporary and queued
experiments do not ask for it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from llm.runtime import env
from llm.runtime.locks import locked

REFERENCES = "refs/exps/exec"  # dvc.repo.experiments.refs.EXEC_NAMESPACE
WHY = "`dvc` that runs stages in this workspace; wait for its end, or use `dvc exp run --temp` or `--queue`"


def hold(dvc: int) -> None:
    """Take the lock for process `dvc` in the main workspace, unless a living process has it."""
    folder = _folder()
    if folder is not None:
        with _locks(folder) as locks:
            holder = locks.setdefault("write", {}).get(REFERENCES)
            if holder is None or not _alive(int(holder["pid"])):
                locks["write"][REFERENCES] = {"pid": dvc, "cmd": WHY}


def release(dvc: int | None = None) -> None:
    """Release the lock that `hold` took.

    After the last stage, DVC then has no dead process to warn of. A DVC that was killed may stay a
    zombie, which DVC takes for a living process until its parent collects it.

    Args:
        dvc: release it only if this process has it; None: whoever has it.
    """
    folder = _folder()
    if folder is not None:
        with _locks(folder) as locks:
            holder = locks.get("write", {}).get(REFERENCES, {})
            if holder.get("cmd") == WHY and dvc in (None, holder["pid"]):
                del locks["write"][REFERENCES]


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _folder() -> Path | None:
    """Return DVC's folder for locks of experiments; None outside the main workspace."""
    root, folder = env.dvc_root(), Path.cwd()
    if root is None or root.resolve() != folder.resolve() or not (folder / ".dvc").is_dir():
        return None
    folder = folder / ".dvc" / "tmp" / "exps"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _locks(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the content of DVC's lock file, which the block may change (see dvc/rwlock.py)."""
    with locked(folder / "rwlock.lock"):
        path = folder / "rwlock"
        locks = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        yield locks
        # Renamed, because half a file, left by a kill, would stop every later `dvc`.
        new = folder / "rwlock.new"
        new.write_text(json.dumps(locks), encoding="utf-8")
        os.replace(new, path)
