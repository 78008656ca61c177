"""The folder `.state` of the main repository: work that is not finished, outside of DVC's outputs.

DVC deletes the outputs of a stage before it runs the stage; a killed stage resumes from here.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm.runtime import env
from llm.runtime.io import write_bytes
from llm.runtime.locks import locked


def repository() -> Path:
    """Return the main repository, also in DVC's temporary workspaces.

    That is $DVC_ROOT, else the nearest folder with a `.dvc`, else the working directory.
    """
    root = env.dvc_root()
    if root is not None:
        return root.absolute()
    folder = Path.cwd()
    return next((path for path in (folder, *folder.parents) if (path / ".dvc").is_dir()), folder)


def state_root() -> Path:
    """Return the folder of everything that stages keep outside of DVC's outputs."""
    return repository() / ".state"


def fingerprint(inputs: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits that stand for JSON values by name."""
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def locked_state(directory: Path, inputs: dict[str, Any], waiting: str) -> Iterator[None]:
    """Hold the lock beside a state's directory, and note in it what the state depends on.

    Args:
        directory: the state; it is made.
        inputs: JSON values by name: all that the work depends on.
        waiting: as in `llm.runtime.locks.locked`.
    """
    with locked(lock_of(directory), waiting):
        text = json.dumps(inputs, indent=2, sort_keys=True)
        write_bytes(directory / "inputs.json", text.encode())
        yield


def lock_of(directory: Path) -> Path:
    """Return the lock file of a state's directory."""
    return directory.with_name(f"{directory.name}.lock")


@contextmanager
def unfinished(stage: str, inputs: dict[str, Any]) -> Iterator[Path]:
    """Yield `.state/<stage>/<fingerprint of inputs>/`, held by one process at a time.

    It contains what an earlier, killed process left there. It is removed when the block ends
    without an error.

    Args:
        stage: name of the stage.
        inputs: JSON values by name: all that the work depends on.
    """
    directory = state_root() / stage / fingerprint(inputs)
    waiting = f"{stage}: process {{pid}} does the same work; waiting for it"
    with locked_state(directory, inputs, waiting):
        # A process that was killed while it removed its directory left these.
        for stale in directory.parent.glob(f".{directory.name}.*"):
            shutil.rmtree(stale, ignore_errors=True)
        yield directory
        # Renamed first: a kill during the removal must not leave half a state under its name.
        removed = tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent)
        os.replace(directory, removed)
        shutil.rmtree(removed, ignore_errors=True)


@contextmanager
def finished_datasets() -> Iterator[Path]:
    """Yield the folder of finished data sets, held by one process at a time.

    They stay there until all are finished, so that a killed download makes each only once.
    """
    folder = state_root() / "download"
    waiting = "download: waiting for another download of this repository (process {pid}) to end"
    with locked(lock_of(folder), waiting):
        yield folder


def remove_other_versions(directory: Path) -> None:
    """Remove unfinished versions of a data set that had other params, code or files.

    Args:
        directory: the version to keep, `<name>-<16 digits of its fingerprint>`.
    """
    name = directory.name[:-16]
    for other in directory.parent.glob(f"{glob.escape(name)}{'[0-9a-f]' * 16}"):
        if other != directory and not (other / "manifest.json").exists():
            shutil.rmtree(other)
            other.with_name(f"{other.name}.part.json").unlink(missing_ok=True)
