"""Training state on disk, from which a killed run resumes and ends with the same bytes.

A state is in `$DVC_ROOT/.state/<stage>/<fingerprint>/`, outside DVC's outputs, which DVC deletes
before a stage runs. The workspace, temporary and queued runs of a repository share it. The
fingerprint covers all that the result depends on: params, input digests, code, library versions. So
a run with a changed param never resumes from an old state.

    inputs.json       what the fingerprint covers, part by part
    latest            name of the newest complete checkpoint
    step-00000120/    tensors.safetensors or shard-*.safetensors, and meta.json with their digests
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
    """Return the digest of the code, and the versions, that decide what is computed."""
    return {"code": code_digest(*CODE), "torch": torch.__version__}


class State:
    """The checkpoints of one training run, identified by everything that it depends on."""

    def __init__(self, stage: str, inputs: dict[str, Any]) -> None:
        """Name a state.

        Args:
            inputs: JSON values by name, such as sections of params and digests of files.
        """
        self.stage, self.inputs = stage, inputs
        self.fingerprint = fingerprint(inputs)
        self.directory = state_root() / stage / self.fingerprint
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._awaited = False  # True if `save` waits for the checkpoint in flight

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock. Another run with the same inputs waits, and then finds the finished state.

        The main process holds it for all processes that train together.

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
            self._print_changes()
        waiting = f"{self.stage}: process {{pid}} trains the same run; waiting for it"
        with locked_state(self.directory, self.inputs, waiting):
            self._locked()
            yield

    def _locked(self) -> None:
        """Do nothing; a subclass may act once the lock is held, before a checkpoint is loaded."""

    def save(
        self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any], wait: bool = False
    ) -> None:
        """Write a checkpoint in the background, one at a time.

        The tensors are copied first, so training continues at once. A full disk causes one warning
        and does not stop training; the last complete checkpoint stays.
        """
        self.wait()
        self._awaited = wait
        if any(is_sharded(tensor) for tensor in tensors.values()):
            self._save_shards(step, tensors, meta)
        else:
            copies = {
                name: value.detach().to("cpu", copy=True).contiguous()
                for name, value in tensors.items()
            }
            self._start(lambda: self._write(step, copies, meta), step)
        if wait:
            self.wait()

    def _save_shards(self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Save in every process: each writes its part, and the main one completes the checkpoint."""
        problem: OSError | None = None
        if processes.is_main():
            try:
                self._temporary(step)
            except OSError as error:
                problem = error
        if processes.all_gather(str(problem) if problem else None)[0] is not None:
            self._failed(step, problem or OSError())
            return
        temporary = self._final(step).with_suffix(".tmp")
        future = sharded.start(tensors, temporary)

        def commit() -> None:
            try:
                files = sharded.files(future, temporary)
                if processes.is_main():
                    self._commit(step, temporary, {**meta, "files": files})
            except (OSError, RuntimeError):  # RuntimeError: a process ended
                if processes.is_main():
                    shutil.rmtree(temporary, ignore_errors=True)
                raise

        self._start(commit, step)

    def _start(self, write: Callable[[], None], step: int) -> None:
        """Write in a thread; a failure there causes a warning."""

        def write_safely() -> None:
            try:
                write()
            except (OSError, RuntimeError) as error:
                self._failed(step, error)

        self._writer = threading.Thread(target=write_safely, daemon=True)
        self._writer.start()

    def wait(self) -> None:
        """Wait until the checkpoint in flight is on disk."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def load(
        self, empty: Callable[[str, torch.Size], Tensor] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the newest checkpoint whose digests match, or None; warn of each broken one.

        Args:
            empty: for a sharded model, makes the tensor that one of a name and (whole) shape is read
                into; called in all processes.
        """
        from safetensors.torch import load

        pointer = self.directory / "latest"
        latest = pointer.read_bytes().decode(errors="replace").strip() if pointer.exists() else None
        paths = self._candidates()
        # A checkpoint newer than the pointer is complete too: a kill came between the two.
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
        """Return meta.json of a checkpoint that all processes check.

        Raises:
            ValueError: in every process, if it is broken.
        """
        meta: dict[str, Any] = {}
        try:
            meta = _meta(path)
            problem = sharded.problem(path, meta)
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = str(error)
        if (problem := sharded.agreed(problem)) is not None:
            raise ValueError(problem)
        return meta

    def _candidates(self) -> list[Path]:
        """Return the complete checkpoints, newest first."""
        return sorted((p for p in self.directory.glob("step-????????") if p.is_dir()), reverse=True)

    def _failed(self, step: int, error: Exception) -> None:
        if self._failure is None:
            warn(
                f"{self.stage}: no checkpoint of step {step}: {error}. Training continues; the last complete one stays."
            )
        self._failure = error

    def _final(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def _temporary(self, step: int) -> Path:
        """Make a folder to write a checkpoint in, and delete unfinished ones."""
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
        """Turn a folder that has all tensors into a checkpoint."""
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
        # Newer ones are broken: training would have resumed from them.
        broken = [path for path in steps if path.name > final.name]
        for path in broken + steps[len(broken) + KEEP :]:
            shutil.rmtree(path)

    def _committed(self, checkpoint: Path) -> None:
        """Do nothing; a subclass may act in the writing thread once a checkpoint is complete."""

    def _print_changes(self) -> None:
        """Print why an older state of this stage, if there is one, is not resumed."""
        paths = self.directory.parent.glob("*/inputs.json")
        newest = max(paths, key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            return
        try:
            old = json.loads(newest.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            warn(f"{newest} cannot be read ({error}).")
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
            f"{self.stage}: starts afresh, since {shown} changed; the old state stays in {newest.parent}"
        )


def _meta(path: Path) -> dict[str, Any]:
    """Return a checkpoint's meta.json; raise OSError or ValueError if it is unusable."""
    meta: dict[str, Any] = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    if meta.pop("meta_sha256", None) != _digest(meta):
        raise ValueError("its meta.json is not what was written")
    return meta


def _digest(meta: dict[str, Any]) -> str:
    """Return a digest of JSON values; it survives writing and reading, as floats keep all digits."""
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
