"""Copies of checkpoints on a remote file system, from which another machine can resume.

`LLM_STATE_URL` (s3://bucket/folder, gs://…, a mounted path) turns them on, by fsspec. The thread
that wrote a checkpoint copies it once it is complete on this disk, so training does not wait. A
machine without a state, or with an older one, resumes from the remote one. The pointer is written
last, so an incomplete copy is never used.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

from llm.errors import UserError
from llm.runtime import env
from llm.runtime.remote_fs import Address
from llm.train.checkpoint.local import State, warn

# seconds for which a copy is retried between steps: the next checkpoint waits for its end
BETWEEN = 20.0
NAME = re.compile(r"step-\d{8}")  # of a checkpoint: what the pointer says becomes a path here


class Remote(Address):
    """The remote copy of one run's checkpoints."""

    def __init__(self, url: str, stage: str, fingerprint: str) -> None:
        """Open the address; raise UserError if no installed package knows it."""
        super().__init__(url, "LLM_STATE_URL")
        self.root = posixpath.join(self.root, stage, fingerprint)

    def push(self, checkpoint: Path, last: bool = True) -> None:
        """Copy a checkpoint to the remote, and then delete the earlier ones there.

        Args:
            last: no other checkpoint will come soon, so the copy is retried for longer.

        Raises:
            Exception: the last error of the remote's package, after PATIENCE or BETWEEN.
        """

        def copy() -> None:
            there = posixpath.join(self.root, checkpoint.name)
            self.fs.makedirs(there, exist_ok=True)
            for path in sorted(checkpoint.iterdir()):
                self.fs.put_file(str(path), posixpath.join(there, path.name))
            self.fs.invalidate_cache()
            # An interrupted copy of that name may have had other shards.
            for path in self.fs.ls(there, detail=False):
                if not (checkpoint / posixpath.basename(path)).exists():
                    self.fs.rm(path)
            self.fs.pipe_file(posixpath.join(self.root, "latest"), checkpoint.name.encode())
            for old in self._names():
                if old != checkpoint.name:
                    self.fs.rm(posixpath.join(self.root, old), recursive=True)

        self.patiently(copy, None if last else BETWEEN)

    def pull(self, directory: Path) -> str | None:
        """Fetch the newest checkpoint into a state's directory, if it is newer; return its name.

        Raises:
            UserError: the remote does not answer, or its pointer names no checkpoint.
        """
        failure = "cannot be read"
        remedy = (
            "A state may be there, so training does not start afresh: fix the connection, or unset LLM_STATE_URL to "
            "train without it."
        )
        name = self.require(self._newest, failure, remedy)
        if name is None:
            return None
        if not NAME.fullmatch(name):
            raise UserError(
                f"LLM_STATE_URL={self.url}: {self.root}/latest says {name[:80]!r}; expected the name of a "
                "checkpoint, as step-00000120. Correct it, or delete it to start afresh."
            )
        if max((path.name for path in directory.glob("step-????????")), default="") >= name:
            return None
        self.require(lambda: self._fetch(name, directory), failure, remedy)
        return name

    def _newest(self) -> str | None:
        """Return the name in the pointer; None if there is no pointer."""
        self.fs.invalidate_cache()
        pointer = posixpath.join(self.root, "latest")
        if not self.fs.exists(pointer):
            return None
        return str(self.fs.cat_file(pointer).decode(errors="replace"))

    def _fetch(self, name: str, directory: Path) -> None:
        temporary = directory / f"{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for path in self.fs.ls(posixpath.join(self.root, name), detail=False):
            self.fs.get_file(path, str(temporary / posixpath.basename(path)))
        os.rename(temporary, directory / name)

    def _names(self) -> list[str]:
        self.fs.invalidate_cache()
        paths = self.fs.ls(self.root, detail=False)
        names = [posixpath.basename(path.rstrip("/")) for path in paths]
        return [name for name in names if name.startswith("step-")]


class MirroredState(State):
    """A state whose checkpoints are copied to `LLM_STATE_URL`."""

    def __init__(self, stage: str, inputs: dict[str, Any]) -> None:
        """Name a state; raise UserError if no installed package knows the address."""
        super().__init__(stage, inputs)
        url = env.state_url()
        assert url is not None
        self.remote = Remote(url, stage, self.fingerprint)

    def _locked(self) -> None:
        if name := self.remote.pull(self.directory):
            print(f"{self.stage}: {name} fetched from {self.remote.url}", flush=True)

    def _committed(self, checkpoint: Path) -> None:
        try:
            self.remote.push(checkpoint, last=self._awaited)
        except Exception as error:  # the remote package's own; the checkpoint is safe on this disk
            failed = self.remote.failed(error)
            warn(f"{self.stage}: {checkpoint.name} was not copied to {failed}. Training continues.")
