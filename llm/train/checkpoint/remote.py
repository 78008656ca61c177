"""Checkpoints a second time, on a remote file system: a machine that is lost with its disk costs no
more than a kill.

`LLM_STATE_URL` (s3://bucket/folder, gs://…, a mounted path) turns it on; fsspec and the package of
the address do the work. Each checkpoint goes there once it is complete here, from the thread that
wrote it, so training does not wait; a machine without a state, or with an older one, begins with
what is there. The pointer is written last, so a checkpoint that was cut off is never taken.
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

# seconds for which a copy that nobody waits for is tried again: the next checkpoint waits for its
# end
BETWEEN = 20.0
NAME = re.compile(r"step-\d{8}")  # of a checkpoint: what the pointer says becomes a path here


class Remote(Address):
    """The remote copy of one run's checkpoints."""

    def __init__(self, url: str, stage: str, fingerprint: str) -> None:
        """Raises UserError where no installed package knows the address."""
        super().__init__(url, "LLM_STATE_URL")
        self.root = posixpath.join(self.root, stage, fingerprint)

    def push(self, checkpoint: Path, last: bool = True) -> None:
        """Copy a checkpoint there, and then delete what came before it.

        Args:
            last: no other one will come soon, so there is time.

        Raises:
            Exception: the remote's own, after PATIENCE or BETWEEN.
        """

        def copy() -> None:
            there = posixpath.join(self.root, checkpoint.name)
            self.fs.makedirs(there, exist_ok=True)
            for path in sorted(checkpoint.iterdir()):
                self.fs.put_file(str(path), posixpath.join(there, path.name))
            self.fs.invalidate_cache()
            for path in self.fs.ls(
                there, detail=False
            ):  # of a copy of that name that was cut off, of other shards
                if not (checkpoint / posixpath.basename(path)).exists():
                    self.fs.rm(path)
            self.fs.pipe_file(posixpath.join(self.root, "latest"), checkpoint.name.encode())
            for old in self._names():
                if old != checkpoint.name:
                    self.fs.rm(posixpath.join(self.root, old), recursive=True)

        self.patiently(copy, None if last else BETWEEN)

    def pull(self, directory: Path) -> str | None:
        """Fetch the newest checkpoint into a state's directory, where that has none so new; its
        name.

        Raises:
            UserError: the remote does not answer, or its pointer names no checkpoint.
        """
        try:
            name = self.patiently(self._newest)
            if name is None:
                return None
            if not NAME.fullmatch(name):
                raise UserError(
                    f"LLM_STATE_URL={self.url}: {self.root}/latest says {name[:80]!r}; expected the name of a "
                    "checkpoint, as step-00000120. Correct it, or delete it to start anew."
                )
            if max((path.name for path in directory.glob("step-????????")), default="") >= name:
                return None
            self.patiently(lambda: self._fetch(name, directory))
            return name
        except UserError:
            raise
        except Exception as error:  # whatever the remote's package raises
            raise UserError(
                f"LLM_STATE_URL={self.url} cannot be read ({type(error).__name__}: {error}). A state may lie there, so "
                "nothing starts anew; mend the connection, or unset LLM_STATE_URL to do without."
            ) from None

    def _newest(self) -> str | None:
        """What the pointer says; None where there is none."""
        self.fs.invalidate_cache()
        pointer = posixpath.join(self.root, "latest")
        return (
            self.fs.cat_file(pointer).decode(errors="replace") if self.fs.exists(pointer) else None
        )

    def _fetch(self, name: str, directory: Path) -> None:
        temporary = directory / f"{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for path in self.fs.ls(posixpath.join(self.root, name), detail=False):
            self.fs.get_file(path, str(temporary / posixpath.basename(path)))
        os.rename(temporary, directory / name)

    def _names(self) -> list[str]:
        self.fs.invalidate_cache()
        names = [
            posixpath.basename(path.rstrip("/")) for path in self.fs.ls(self.root, detail=False)
        ]
        return [name for name in names if name.startswith("step-")]


class MirroredState(State):
    """A state whose checkpoints are copied to `LLM_STATE_URL`."""

    def __init__(self, stage: str, inputs: dict[str, Any]) -> None:
        """Raises UserError where no installed package knows the address."""
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
            warn(f"{self.stage}: {checkpoint.name} was not copied to {failed}. Training goes on.")
