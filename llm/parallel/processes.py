"""Several processes that train one model, as `torchrun` starts them. Where there is one, nothing
here does anything.

Every process computes its share of each global batch. The first one (rank 0) alone holds the
state's lock, writes states and outputs, tracks and prints; the others wait for it. PyTorch does the
work: DistributedDataParallel over gloo on a CPU and over NCCL on CUDA devices.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llm.errors import UserError
from llm.model.transformer import Transformer
from llm.parallel import device as hardware
from llm.runtime import env

K = TypeVar("K")
T = TypeVar("T")
# `LLM_TIMEOUT_SECONDS`: longest wait for another process within a step, compiling included
STEP_SECONDS = 600.0
ANSWER_SECONDS = 5.0  # of a process that was waited for in vain, to say that it waits as well
PATIENCE = timedelta(
    days=30
)  # of those who wait for the first: for a twin that holds the lock, for outputs

_waiting: dist.ProcessGroup | None = None  # with that patience, and for objects; always gloo
_saving: dist.ProcessGroup | None = None  # of the threads that write checkpoints; always gloo


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that RANK, WORLD_SIZE and LOCAL_RANK describe, for the length of the
    block.

    Raises:
        UserError: the variables are incomplete or unusable, the port is taken, or another process
            ended before this one or hangs.
    """
    global _waiting, _saving
    if asked_for() == 1:
        yield
        return
    missing = [
        name
        for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        if name not in os.environ
    ]
    if missing:
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} asks for several processes, but {', '.join(missing)} is not set: "
            "start them with `torchrun --nproc-per-node N -m stages.<stage>`, or unset WORLD_SIZE."
        )
    device = hardware.device()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    seconds = env.timeout_seconds(STEP_SECONDS)
    try:
        store, number, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=seconds)))
    except dist.DistError as error:
        raise UserError(_no_meeting(error)) from None
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=store,
        rank=number,
        world_size=size,
        timeout=timedelta(seconds=seconds),
        device_id=device if cuda else None,
    )
    try:
        _waiting, _saving = (dist.new_group(backend="gloo", timeout=PATIENCE) for _ in range(2))
        yield
        wait()
    except RuntimeError as error:
        if not _is_of_a_peer(error):
            raise
        reason = str(error).splitlines()[0]
        if silent := _silent(store, number, size, wait="timed out" in reason.lower()):
            who = ", ".join(f"process {other}" for other in silent)
            raise UserError(
                f"{who} of {size} did not come to an exchange within {seconds:g} s, nor say why: it hangs. Look at its "
                f"machine (`py-spy dump --pid`), and start again: all go on from the last state. LLM_TIMEOUT_SECONDS "
                "allows for slower ones."
            ) from None
        raise UserError(
            f"process {rank()} ends, since another one did ({reason}); the message of that one says why."
        ) from None
    finally:
        _waiting = _saving = None
        if (
            not cuda or sys.exc_info()[0] is None
        ):  # NCCL may wait for processes that are gone; the end frees all
            dist.destroy_process_group()


def _no_meeting(error: Exception) -> str:
    """What to say where the processes did not find one another."""
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if "EADDRINUSE" in str(error) or "already in use" in str(error):
        return (
            f"port {os.environ['MASTER_PORT']} is in use by another program; set another MASTER_PORT (torchrun: "
            "--rdzv-endpoint HOST:PORT, or --standalone on one machine)."
        )
    return f"process {os.environ['RANK']} did not meet the others at {address} ({str(error).splitlines()[0]})."


def _silent(store: dist.Store, number: int, size: int, wait: bool) -> list[int]:
    """Say that this process ends; with `wait`, which others do not say it soon, though they must
    notice as well.
    """
    silent: list[int] = []
    try:
        store.set(f"ends/{number}", "1")
        deadline = time.monotonic() + ANSWER_SECONDS
        while wait and time.monotonic() < deadline:
            silent = [other for other in range(size) if not store.check([f"ends/{other}"])]
            if not silent:
                break
            time.sleep(0.1)
    except (
        dist.DistError
    ):  # the process with the store has ended, so the others' silence says nothing
        return []
    return silent


def _is_of_a_peer(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "Connection", "Timed out")
    )


def asked_for() -> int:
    """Number of processes that were started to train together; they may not have met yet."""
    return env.world_size()


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def on_first(context: AbstractContextManager[T], otherwise: T) -> AbstractContextManager[T]:
    """`context` in the first process; in the others a context that does nothing and gives
    `otherwise`.
    """
    return context if first() else nullcontext(otherwise)


def wait() -> None:
    """Wait until every process is here, however long the first one takes."""
    if world_size() > 1:
        dist.barrier(group=_waiting)


def saving() -> dist.ProcessGroup | None:
    """The group of the threads that write checkpoints; None of one process."""
    return _saving


def everyone(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """What each process calls `value`, by rank (anything that can be pickled)."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=group or _waiting)
    return values


def merged(values: dict[K, T]) -> dict[K, T]:
    """What all processes found, of which each has other keys."""
    return {key: value for part in everyone(values) for key, value in part.items()}


def sums(values: list[float], device: torch.device) -> list[float]:
    """Sum of each value over the processes, in float64."""
    if world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def refuse_disagreement(values: dict[str, Any], what: str) -> None:
    """Compare values by name with those of the first process.

    Raises:
        UserError: in every process, where one of them differs; names process, key and both values.
    """
    given = everyone(values)
    for number, other in enumerate(given):
        for key in sorted(given[0].keys() | other.keys()):
            if given[0].get(key) != other.get(key):
                raise UserError(
                    f"{what}: {key} is {other.get(key)!r} in process {number} and {given[0].get(key)!r} in process 0; "
                    "all processes must run the same checkout with the same params and data."
                )


def end_together(message: str) -> NoReturn:
    """End all processes, for a reason that all of them know and the first one tells."""
    if first():
        print(message, file=sys.stderr, flush=True)
    wait()  # so that none is ended by torchrun before the message is out
    sys.exit(1)


# -- the split of a global batch


def balanced(micro: int, batch: int, size: int) -> int:
    """Rows of a micro-batch, at most `micro`, that let `size` processes share a batch of `batch`
    rows evenly.

    One process keeps `micro`, which is a part of what its bytes depend on.
    """
    if size == 1:
        return micro
    rounds = -(-batch // (size * micro))
    return -(-batch // (size * rounds))


def dealt(batch: int, micro: int, number: int, size: int) -> range:
    """Micro-batches of process `number`, by their place in the global batch.

    All processes get equally many; those from ceil(batch / micro) on are empty, and only take part
    in the exchange."""
    rounds = -(-batch // (micro * size))
    return range(number, rounds * size, size)


# -- the model


class Loss(nn.Module):
    """Transformer.loss as a module's forward, which is what DistributedDataParallel hooks into."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tensors: dict[str, Tensor]) -> Tensor:
        return self.model.loss(**tensors)


def parallel_loss(model: Transformer) -> DistributedDataParallel:
    """The model's loss, whose backward pass leaves the mean of all processes' gradients in each of
    them.
    """
    device = next(model.parameters()).device
    return DistributedDataParallel(
        Loss(model),
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        # none changes in training; a base in 4 bits is one of them, and large
        broadcast_buffers=False,
    )
