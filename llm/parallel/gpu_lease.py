"""Which GPUs, or which share of the cores, a run takes among those that run on this machine.

A lease is a locked file, which the kernel unlocks when the process ends, however it ends. All runs
of one user share them, of several repositories too. A run in the workspace takes every GPU that is
free, one of the queue or of a temporary directory takes one; `LLM_PROCESSES` asks for another
number. Where none is free it waits. On a CPU, runs of the queue and of temporary directories share
the cores; one in the workspace uses them all."""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import IO

import psutil

from llm.errors import UserError
from llm.runtime import env

POLL = 1.0  # seconds between two looks for a free GPU
TAKEN = "LLM_LEASED"  # in the environment of a process whose parent has the lease

_held: list[IO[str]] = []  # open for as long as this process lives


def folder() -> Path:
    """Where the leases of this user lie."""
    return Path(tempfile.gettempdir()) / f"llm-leases-{os.getuid()}"


def take(processes: int | None = None) -> int | None:
    """Lease what this process and its children compute on, once, and set CUDA_VISIBLE_DEVICES or
    OMP_NUM_THREADS to it.

    Must come before CUDA is first used. Does nothing where somebody else chose the devices
    (torchrun, a parent).

    Args:
        processes: GPUs that are needed; None: as many as the place says.

    Returns:
        The cores that OMP_NUM_THREADS was set to, for the process and its children together; None
        where it was not.

    Raises:
        UserError: CUDA_VISIBLE_DEVICES names GPUs, and none of them is here.
    """
    if TAKEN in os.environ or "WORLD_SIZE" in os.environ:
        return None
    os.environ[TAKEN] = str(os.getpid())
    device = env.device() or "cuda"
    names = gpus() if device.startswith("cuda") else []
    if device.startswith("cuda:") and device[5:].isdecimal() and int(device[5:]) < len(names):
        lease_gpus(
            [names[int(device[5:])]], 1
        )  # and CUDA's numbering stays, by which it was chosen
    elif names and device == "cuda":
        wanted = processes or env.processes() or (1 if _elsewhere() else None)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(lease_gpus(names, wanted))
    else:
        share = lease_cores()
        # The number of threads decides the order in which a CPU adds up: a run in the workspace,
        # whose bytes are to be those of the last time, has it from the machine and never from what
        # else runs.
        if _elsewhere() and "OMP_NUM_THREADS" not in os.environ:
            os.environ["OMP_NUM_THREADS"] = str(share)
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(share)
            return share
    return None


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    CUDA leaves out a GPU that is gone (an error of the bus, a driver that lost it, a name of
    another machine), and all that are named after it. Of several that is said; a run that was to
    use GPUs does not go to the CPU unasked.

    Raises:
        UserError: none of those that are named is here.
    """
    count = cuda_devices()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None or count is None:
        return [str(i) for i in range(count or 0)]
    names = list(
        takewhile(lambda name: name not in ("", "-1"), (name.strip() for name in given.split(",")))
    )
    if count < len(names):
        gone = f"CUDA_VISIBLE_DEVICES={given}: CUDA does not find GPU {names[count]}"
        if count == 0:
            raise UserError(
                f"{gone}. `nvidia-smi -L` lists those that are here; name one of them, unset CUDA_VISIBLE_DEVICES for "
                "all of them, or set LLM_DEVICE=cpu. A run that has begun goes on from its state."
            )
        print(
            f"warning: {gone}, and leaves it out with all after it; {count} of {len(names)} are used",
            flush=True,
        )
    return names[:count]


def cuda_devices() -> int | None:
    """How many CUDA shows, asked in a way that does not initialise it; None where this PyTorch is
    one for CPUs.
    """
    import torch

    return torch.cuda.device_count() if torch.backends.cuda.is_built() else None


def lease_gpus(names: list[str], wanted: int | None) -> list[str]:
    """Lease `wanted` of these, or with None all that are free and at least one; waits until there
    are enough.

    All or none at a time, so that two runs that want several never wait for each other's.
    """
    said = False
    while True:
        with _guard():
            found = [
                (name, file)
                for name in names
                if (file := _try(folder() / f"gpu-{_plain(name)}.lock"))
            ]
            enough = found[:wanted] if wanted else found
            for _, file in found[len(enough) :] if len(enough) >= (wanted or 1) else found:
                file.close()
            if len(enough) >= (wanted or 1):
                _held.extend(file for _, file in enough)
                return [name for name, _ in enough]
        if wanted and wanted > len(names):
            return names  # there will never be enough: who starts the processes says so
        if not said:
            print(
                f"waiting for {wanted or 1} of the GPUs {', '.join(names)}: other runs have them",
                flush=True,
            )
            said = True
        time.sleep(POLL)


def lease_cores() -> int:
    """Count this process among those that compute on the CPU; returns its share of the cores, at
    least 1.
    """
    with _guard():
        alive = 0
        for path in folder().glob("cpu-*.lock"):
            file = _try(path)
            if file is None:
                alive += 1
            else:  # its process is gone
                path.unlink(missing_ok=True)
                file.close()
        mine = _try(folder() / f"cpu-{os.getpid()}.lock")
        _held.extend([mine] if mine else [])
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, cores // max(alive + 1, queue_workers()))


def queue_workers() -> int:
    """Workers that `dvc queue start -j N` has running: they may all compute soon, so the first
    takes no more cores.
    """
    if not _elsewhere():
        return 0
    found = 0
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command = process.info["cmdline"] or []
        found += "queue-worker" in command and process.info["cwd"] == os.environ["DVC_ROOT"]
    return found


def _elsewhere() -> bool:
    """Whether this is a temporary or queued run, which shares the machine with others of its kind."""
    root = env.dvc_root()
    return root is not None and root.resolve() != Path.cwd().resolve()


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c == "-" else "_" for c in name)


def _try(path: Path) -> IO[str] | None:
    """The file, locked; None where another process has it."""
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (open for as long as the lease)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextmanager
def _guard() -> Iterator[None]:
    place = folder()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if place.stat().st_uid != os.getuid():
        raise UserError(
            f"{place} belongs to another user; have it removed, or set TMPDIR to a folder of your own."
        )
    with open(place / "guard", "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
