"""Leases of GPUs and cores, by which the runs on one machine share it.

A lease is a locked file, which the kernel unlocks when the process ends, however it ends. All runs
of a user share the leases, also those of different repositories. A run in the workspace takes every
free GPU; a queued run, or one in a temporary directory, takes one. `LLM_PROCESSES` asks for another
number. A run waits until GPUs are free. On a CPU, queued and temporary runs share the cores; a run
in the workspace uses all of them."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from llm.errors import UserError
from llm.runtime import env
from llm.runtime.locks import locked, try_lock
from llm.runtime.pool import cores

if TYPE_CHECKING:
    from filelock import BaseFileLock

POLL = 1.0  # seconds between two looks for a free GPU
TAKEN = "LLM_LEASED"  # in the environment of a process whose parent has the lease

_held: list[BaseFileLock] = []  # until this process ends


def folder() -> Path:
    """Return the folder of this user's leases."""
    return Path(tempfile.gettempdir()) / f"llm-leases-{os.getuid()}"


def take(processes: int | None = None) -> int | None:
    """Lease devices for this process and its children; set CUDA_VISIBLE_DEVICES or OMP_NUM_THREADS.

    Call it before CUDA is first used. It does nothing if torchrun or a parent chose the devices.

    Args:
        processes: number of GPUs; None: all free ones in the workspace, one elsewhere.

    Returns:
        The value of OMP_NUM_THREADS, the cores of the process and its children together; None if
        it was not set.

    Raises:
        UserError: CUDA_VISIBLE_DEVICES names GPUs, and none of them is on this machine.
    """
    if TAKEN in os.environ or "WORLD_SIZE" in os.environ:
        return None
    os.environ[TAKEN] = str(os.getpid())
    device = env.device() or "cuda"
    names = gpus() if device.startswith("cuda") else []
    if device.startswith("cuda:") and device[5:].isdecimal() and int(device[5:]) < len(names):
        # CUDA's numbering stays, by which the device was chosen.
        lease_gpus([names[int(device[5:])]], 1)
    elif names and device == "cuda":
        wanted = processes or env.processes() or (1 if _shares_machine() else None)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(lease_gpus(names, wanted))
    else:
        share = lease_cores()
        # The number of threads decides the order of a CPU's sums. In the workspace, results must
        # be reproducible, so there the number does not depend on other runs.
        if _shares_machine() and "OMP_NUM_THREADS" not in os.environ:
            os.environ["OMP_NUM_THREADS"] = str(share)
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(share)
            return share
    return None


def gpus() -> list[str]:
    """Return the GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES.

    CUDA leaves out a GPU that it does not find (a bus error, a lost driver, a name from another
    machine), and all that are named after it. This prints a warning. A run that was meant for GPUs
    does not use the CPU instead.

    Raises:
        UserError: CUDA finds none of the named GPUs.
    """
    count = cuda_devices()
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    if setting is None or count is None:
        return [str(i) for i in range(count or 0)]
    names = list(
        takewhile(
            lambda name: name not in ("", "-1"), (name.strip() for name in setting.split(","))
        )
    )
    if count < len(names):
        gone = f"CUDA_VISIBLE_DEVICES={setting}: CUDA does not find GPU {names[count]}"
        if count == 0:
            raise UserError(
                f"{gone}. `nvidia-smi -L` lists those that are here; name one of them, unset CUDA_VISIBLE_DEVICES for "
                "all of them, or set LLM_DEVICE=cpu. A run that has begun resumes from its state."
            )
        print(
            f"warning: {gone}, and leaves it out with all after it; {count} of {len(names)} are used",
            flush=True,
        )
    return names[:count]


def cuda_devices() -> int | None:
    """Return the number of CUDA devices, without initialising CUDA; None for a CPU build of PyTorch."""
    import torch

    return torch.cuda.device_count() if torch.backends.cuda.is_built() else None


def lease_gpus(names: list[str], wanted: int | None) -> list[str]:
    """Lease `wanted` of these GPUs, or with None all free ones; wait until there are enough.

    It takes all at once or none, so that two runs never wait for each other's GPUs.
    """
    warned = False
    while True:
        with _one_at_a_time():
            free = {
                name: lock
                for name in names
                if (lock := try_lock(folder() / f"gpu-{_plain(name)}.lock"))
            }
            chosen = list(free)[:wanted]
            if len(chosen) < (wanted or 1):
                chosen = []
            _held.extend(free.pop(name) for name in chosen)
            for lock in free.values():
                lock.release()
            if chosen:
                return chosen
        if wanted and wanted > len(names):
            return names  # there will never be enough; starting the processes reports it
        if not warned:
            print(
                f"waiting for {wanted or 1} of the GPUs {', '.join(names)}: other runs have them",
                flush=True,
            )
            warned = True
        time.sleep(POLL)


def lease_cores() -> int:
    """Lease a share of the cores; return their number, at least 1."""
    with _one_at_a_time():
        alive = 0
        for path in folder().glob("cpu-*.lock"):
            lock = try_lock(path)
            if lock is None:
                alive += 1
            else:  # its process is gone
                path.unlink(missing_ok=True)
                lock.release()
        own = try_lock(folder() / f"cpu-{os.getpid()}.lock")
        _held.extend([own] if own else [])
    return max(1, cores() // max(alive + 1, queue_workers()))


def queue_workers() -> int:
    """Return the number of running workers of `dvc queue start -j N`.

    They may all compute soon, so the first run must not take their cores.
    """
    if not _shares_machine():
        return 0
    workers = 0
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command = process.info["cmdline"] or []
        workers += "queue-worker" in command and process.info["cwd"] == os.environ["DVC_ROOT"]
    return workers


def _shares_machine() -> bool:
    """Return whether this is a temporary or queued run, which shares the machine with others."""
    root = env.dvc_root()
    return root is not None and root.resolve() != Path.cwd().resolve()


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c == "-" else "_" for c in name)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let one process at a time choose among the leases."""
    directory = folder()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise UserError(
            f"{directory} belongs to another user; have it removed, or set TMPDIR to a folder of your own."
        )
    with locked(directory / "guard"):
        yield
