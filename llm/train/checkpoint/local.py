"""Training state on disk: killed anywhere, a run continues where it was and ends with the same
bytes.

A state lives in `$DVC_ROOT/.state/<stage>/<fingerprint>/`, outside DVC's outputs (DVC deletes those
before a stage runs) and shared by the workspace, temporary and queued runs of one repository. The
fingerprint covers all that the
result depends on: params, input digests, code, library versions. Another fingerprint is another
    state, so a changed
param can never continue an old run.

    inputs.json             what the fingerprint covers, part by part
    lock                    held while a process trains
    latest                  name of the newest complete checkpoint
    step-00000120/          tensors.safetensors, or shard-*.safetensors; meta.json (with the digests
    of all)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm.model.sharded_tensor import is_sharded
from llm.parallel import processes
from llm.runtime.flatten import flatten
from llm.runtime.io import save_tensors, sha256, write_bytes
from llm.runtime.provenance import code_digest
from llm.runtime.state_dirs import fingerprint, locked_state, state_root
from llm.train.checkpoint import sharded

# The packages that decide what is computed.
CODE = ("data", "model", "parallel", "tokenizer", "train")
KEEP = 2  # checkpoints: the newest, and one to fall back to


def code_version() -> dict[str, str]:
    """Digest of the source that decides what is computed, and the versions that do."""
    return {"code": code_digest(*CODE), "torch": torch.__version__}


class State:
    """The checkpoints of one training run, identified by everything that it depends on."""

    def __init__(self, stage: str, inputs: dict[str, Any]) -> None:
        """`inputs`: JSON values by name, e.g. params sections and file digests."""
        self.stage, self.inputs = stage, inputs
        self.fingerprint = fingerprint(inputs)
        self.directory = state_root() / stage / self.fingerprint
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._awaited = False  # the checkpoint in flight

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock; a twin that trains the same thing waits and then finds the finished state.

        Of several processes that train together the first holds it for all.

        Raises:
            UserError: these processes do not agree on what the run depends on.
        """
        with self._lock() if processes.is_main() else nullcontext():
            processes.barrier()
            processes.refuse_disagreement(flatten(self.inputs), self.stage)
            yield

    @contextmanager
    def _lock(self) -> Iterator[None]:
        if not self.directory.exists():
            self._say_what_changed()
        waiting = f"{self.stage}: process {{pid}} trains the same run; waiting for it"
        with locked_state(self.directory, self.inputs, waiting):
            self._locked()
            yield

    def _locked(self) -> None:
        """Extend me: called once the lock is held, before a checkpoint is loaded."""

    def save(
        self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any], wait: bool = False
    ) -> None:
        """Write a checkpoint in the background, one at a time.

        The tensors are copied first, so training may go on at once. A full disk is told once and
        does not stop
        training: the last good checkpoint stays.
        """
        self.wait()
        self._awaited = wait
        if any(is_sharded(tensor) for tensor in tensors.values()):
            self._save_shards(step, tensors, meta)
            if wait:
                self.wait()
            return
        copies = {
            name: value.detach().to("cpu", copy=True).contiguous()
            for name, value in tensors.items()
        }
        self._writer = threading.Thread(
            target=self._write_safely, args=(step, copies, meta), daemon=True
        )
        self._writer.start()
        if wait:
            self.wait()

    def _save_shards(self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """As `save`, called in every process: each writes its part, and the first makes a
        checkpoint of them.
        """
        made: OSError | None = None
        if processes.is_main():
            try:
                self._temporary(step)
            except OSError as error:
                made = error
        if processes.all_gather(str(made) if made else None)[0] is not None:
            self._tell(step, made or OSError())
            return
        temporary = self._final(step).with_suffix(".tmp")
        future = sharded.start(tensors, temporary)

        def commit() -> None:
            try:
                files = sharded.files(future, temporary)
                if processes.is_main():
                    self._commit(step, temporary, {**meta, "files": files})
            except (OSError, RuntimeError) as error:  # RuntimeError: a process ended
                if processes.is_main():
                    shutil.rmtree(temporary, ignore_errors=True)
                self._tell(step, error)

        self._writer = threading.Thread(target=commit, daemon=True)
        self._writer.start()

    def wait(self) -> None:
        """Wait until the checkpoint in flight is on disk."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def load(
        self, empty: Callable[[str, torch.Size], Tensor] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint whose digests hold, or None. Broken ones are named and passed over.

        empty: of a sharded model, what a tensor of some name and (whole) shape is read into; called
            in all processes.
        """
        from safetensors.torch import load

        pointer = self.directory / "latest"
        latest = pointer.read_bytes().decode(errors="replace").strip() if pointer.exists() else None
        paths = self._candidates()
        # A checkpoint newer than the pointer is complete as well: the kill fell between the rename
        # and the pointer.
        if latest is not None and latest not in [path.name for path in paths]:
            warn(
                f"{self.stage}: checkpoint {latest!r}, the newest according to {pointer}, is not there."
            )
        for path in paths:
            try:
                if empty or list(path.glob("shard-*")):
                    meta = self._sound_shards(path)
                    return sharded.read(path, empty or (lambda _, shape: torch.zeros(shape))), meta
                meta = _meta(path)
                data = (path / "tensors.safetensors").read_bytes()
                if hashlib.sha256(data).hexdigest() != meta["sha256"]:
                    raise ValueError("its bytes are not those that were written")
                return load(data), meta
            except (OSError, ValueError, KeyError, TypeError) as error:
                warn(f"{self.stage}: checkpoint {path} is unusable ({error}); trying an older one.")
        if paths or latest is not None:
            warn(
                f"{self.stage}: no checkpoint in {self.directory} is usable; training starts afresh."
            )
        return None

    def _sound_shards(self, path: Path) -> dict[str, Any]:
        """Check a checkpoint together; its meta.json. Raises ValueError, in every process, where it
        is broken.
        """
        meta: dict[str, Any] = {}
        try:
            meta = _meta(path)
            found = sharded.problem(path, meta)
        except (OSError, ValueError, KeyError, TypeError) as error:
            found = str(error)
        if (found := sharded.agreed(found)) is not None:
            raise ValueError(found)
        return meta

    def _candidates(self) -> list[Path]:
        """Whole checkpoints, newest first."""
        return sorted((p for p in self.directory.glob("step-????????") if p.is_dir()), reverse=True)

    def _write_safely(self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        try:
            self._write(step, tensors, meta)
        except OSError as error:
            self._tell(step, error)

    def _tell(self, step: int, error: Exception) -> None:
        if self._failure is None:
            warn(
                f"{self.stage}: no checkpoint of step {step}: {error}. Training goes on from the last good one."
            )
        self._failure = error

    def _final(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def _temporary(self, step: int) -> Path:
        """A new folder to write a checkpoint in; what others left unfinished is deleted."""
        for stale in self.directory.glob("step-*.tmp"):
            shutil.rmtree(stale)
        temporary = self._final(step).with_suffix(".tmp")
        temporary.mkdir()
        return temporary

    def _write(self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        temporary = self._temporary(step)
        try:
            save_tensors(tensors, temporary / "tensors.safetensors")
            _sync(temporary / "tensors.safetensors")
            meta = {**meta, "sha256": sha256(temporary / "tensors.safetensors")}
            self._commit(step, temporary, meta)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _commit(self, step: int, temporary: Path, meta: dict[str, Any]) -> None:
        """Make a folder with all its tensors a checkpoint."""
        final = self._final(step)
        write_bytes(
            temporary / "meta.json", json.dumps({**meta, "meta_sha256": _digest(meta)}).encode()
        )
        _sync(temporary)
        if final.exists():
            shutil.rmtree(final)
        os.rename(temporary, final)
        _sync(self.directory)
        write_bytes(self.directory / "latest", final.name.encode())
        self._committed(final)
        steps = self._candidates()
        passed_over = [
            path for path in steps if path.name > final.name
        ]  # broken, or training would be further
        for path in passed_over + steps[len(passed_over) + KEEP :]:
            shutil.rmtree(path)

    def _committed(self, checkpoint: Path) -> None:
        """Extend me: called in the writing thread once a checkpoint is complete."""

    def _say_what_changed(self) -> None:
        """Where an unfinished older state of this stage exists, say why it is not continued."""
        newest: tuple[float, Path] | None = None
        for path in self.directory.parent.glob("*/inputs.json"):
            newest = max(newest or (0.0, path), (path.stat().st_mtime, path))
        if newest is None:
            return
        try:
            old = json.loads(newest[1].read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            warn(f"{newest[1]} cannot be read ({error}).")
            return
        before, after = flatten(old), flatten(self.inputs)
        changed = [
            key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)
        ]
        shown = ", ".join(
            key
            if len(str(after.get(key))) > 24
            else f"{key} ({before.get(key)} → {after.get(key)})"
            for key in changed
        )
        print(
            f"{self.stage}: starts afresh, since {shown} changed; the old state stays in {newest[1].parent}"
        )


def _meta(path: Path) -> dict[str, Any]:
    """A checkpoint's meta.json. Raises OSError or ValueError."""
    meta: dict[str, Any] = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    if meta.pop("meta_sha256", None) != _digest(meta):
        raise ValueError("its meta.json is not what was written")
    return meta


def _digest(meta: dict[str, Any]) -> str:
    """Digest of JSON values; what was written and read again has the same, since floats keep all
    their digits.
    """
    return hashlib.sha256(json.dumps(meta).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def warn(message: str) -> None:
    if processes.is_main():
        print(f"warning: {message}", file=sys.stderr, flush=True)
