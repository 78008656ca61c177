"""Processes that train one model together, as `torchrun` starts them; one process needs no group.

Every process computes its share of each global batch. The main one (rank 0) alone holds the state's
lock, writes states and outputs, tracks and prints; the others wait for it. PyTorch does the work:
DistributedDataParallel over gloo on a CPU and over NCCL on CUDA devices.
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
from llm.parallel import hardware
from llm.runtime import env

K = TypeVar("K")
T = TypeVar("T")
# `LLM_TIMEOUT_SECONDS`: longest wait for another process within a step, compiling included
STEP_SECONDS = 600.0
ANSWER_SECONDS = 5.0  # time for the other processes to report that they wait as well
# The wait for the main process, which may wait for another run's lock or write outputs.
PATIENCE = timedelta(days=30)

_patient: dist.ProcessGroup | None = None  # waits for PATIENCE, and carries objects; always gloo
_checkpoints: dist.ProcessGroup | None = None  # for the threads that write checkpoints; always gloo


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that RANK, WORLD_SIZE and LOCAL_RANK describe while the block runs.

    Raises:
        UserError: the variables are incomplete or unusable, the port is taken, or another process
            ended before this one or hangs.
    """
    global _patient, _checkpoints
    if launched_world_size() == 1:
        yield
        return
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in os.environ]
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
        _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        _checkpoints = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield
        barrier()
    except RuntimeError as error:
        if not _is_of_a_peer(error):
            raise
        reason = str(error).splitlines()[0]
        if silent := _silent(store, number, size, wait="timed out" in reason.lower()):
            who = ", ".join(f"process {other}" for other in silent)
            raise UserError(
                f"{who} of {size} did not join a collective within {seconds:g} s and reported no error; it is "
                "probably hung. Inspect it (`py-spy dump --pid`) and restart: all resume from the last state. "
                "LLM_TIMEOUT_SECONDS allows for slower ones."
            ) from None
        raise UserError(
            f"process {rank()} ends because another one ended ({reason}); that one's message says why."
        ) from None
    finally:
        _patient = _checkpoints = None
        # After an error NCCL may wait for processes that are gone; the end of this one frees all.
        if not cuda or sys.exc_info()[0] is None:
            dist.destroy_process_group()


def _no_meeting(error: Exception) -> str:
    """Return the message for processes that did not find one another."""
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if "EADDRINUSE" in str(error) or "already in use" in str(error):
        return (
            f"port {os.environ['MASTER_PORT']} is in use by another program; set another MASTER_PORT (torchrun: "
            "--rdzv-endpoint HOST:PORT, or --standalone on one machine)."
        )
    return f"process {os.environ['RANK']} did not meet the others at {address} ({str(error).splitlines()[0]})."


def _silent(store: dist.Store, number: int, size: int, wait: bool) -> list[int]:
    """Announce that this process ends; return the processes that do not announce it soon.

    Args:
        wait: wait for the others, which must notice the error too; without it return [].
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
    except dist.DistError:  # the process with the store has ended: silence says nothing
        return []
    return silent


def _is_of_a_peer(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "Connection", "Timed out")
    )


def launched_world_size() -> int:
    """Return the number of processes that were launched together; they may not have met yet."""
    return env.world_size()


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Return whether this process writes and prints."""
    return rank() == 0


def on_main(context: AbstractContextManager[T], otherwise: T) -> AbstractContextManager[T]:
    """Return `context` in the main process, and in others one that only gives `otherwise`."""
    return context if is_main() else nullcontext(otherwise)


def barrier() -> None:
    """Wait until every process calls this, however long the main one takes."""
    if world_size() > 1:
        dist.barrier(group=_patient)


def checkpoint_group() -> dist.ProcessGroup | None:
    """Return the group of the threads that write checkpoints; None with one process."""
    return _checkpoints


def all_gather(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Return every process's `value`, by rank; it must be picklable."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=group or _patient)
    return values


def all_gather_dict(values: dict[K, T]) -> dict[K, T]:
    """Merge the dicts of all processes, whose keys differ."""
    return {key: value for part in all_gather(values) for key, value in part.items()}


def all_reduce_sum(values: list[float], device: torch.device) -> list[float]:
    """Return the sum of each value over the processes, in float64."""
    if world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def refuse_disagreement(values: dict[str, Any], what: str) -> None:
    """Compare values by name with those of the main process.

    Raises:
        UserError: in every process, where one of them differs; names process, key and both values.
    """
    by_rank = all_gather(values)
    for number, other in enumerate(by_rank):
        for key in sorted(by_rank[0].keys() | other.keys()):
            if by_rank[0].get(key) != other.get(key):
                first = by_rank[0].get(key)
                raise UserError(
                    f"{what}: {key} is {other.get(key)!r} in process {number} and {first!r} in process 0; all "
                    "processes must run the same checkout with the same params and data."
                )


def exit_all(message: str) -> NoReturn:
    """End all processes for a reason that all know; only the main one prints it."""
    if is_main():
        print(message, file=sys.stderr, flush=True)
    barrier()  # torchrun must not end the main process before it has printed
    sys.exit(1)


# -- the split of a global batch


def balanced_micro_batch(micro: int, batch: int, size: int) -> int:
    """Return the rows of a micro-batch, at most `micro`, that share a batch evenly among processes.

    One process keeps `micro`, which is a part of what its bytes depend on.
    """
    if size == 1:
        return micro
    rounds = -(-batch // (size * micro))
    return -(-batch // (size * rounds))


def micro_batches_of_rank(batch: int, micro: int, number: int, size: int) -> range:
    """Return the micro-batches of process `number`, by their position in the global batch.

    All processes get equally many. Those from ceil(batch / micro) on are empty and only join the
    collectives.
    """
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
    """Return the model's loss; its backward pass averages the gradients over all processes."""
    device = next(model.parameters()).device
    return DistributedDataParallel(
        Loss(model),
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        broadcast_buffers=False,  # they never change, and a base in 4 bits is large
    )
