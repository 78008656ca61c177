"""Checkpoints of a sharded model: each process writes its part; any number of processes reads them.

PyTorch's torch.distributed.checkpoint does both, in safetensors files that name their rows. (Its
own format has a table of contents in a pickle.) A checkpoint is complete once the main process has
written the digests of all files into meta.json and renamed the folder
(`llm.train.checkpoint.local`)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm.parallel import processes
from llm.runtime.io import sha256

WHOLE = "tensors.safetensors"  # the file that a single process writes


def start(tensors: dict[str, Tensor], directory: Path) -> Future[Any]:
    """Copy the tensors and write this process's shards in the background; all processes call it."""
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, async_save

    writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
    return async_save(tensors, storage_writer=writer, process_group=processes.checkpoint_group())  # type: ignore[return-value]


def files(future: Future[Any], directory: Path) -> dict[str, str]:
    """Return the digests of the files that all processes wrote, by name.

    Raises:
        OSError: in every process, if one of them could not write.
    """
    problem: str | None = None
    own: dict[str, str] = {}
    try:
        future.result()
        prefix = f"shard-{processes.rank() + 1:05d}-"  # DCP's name
        own = {path.name: sha256(path) for path in directory.glob(f"{prefix}*")}
    except Exception as error:  # DCP's own, which wraps those of all processes; or OSError
        problem = str(error).strip().splitlines()[-1]
    answers = processes.all_gather((own, problem), processes.checkpoint_group())
    for number, (_, reason) in enumerate(answers):
        if reason is not None:
            raise OSError(f"process {number}: {reason}")
    return {name: digest for digests, _ in answers for name, digest in digests.items()}


def problem(path: Path, meta: dict[str, Any]) -> str | None:
    """Return the fault of a checkpoint's files, or None; each process reads some of them."""
    listed = meta.get("files") or {WHOLE: meta["sha256"]}
    present = {item.name for item in path.glob("*.safetensors")}
    for name in sorted(listed.keys() ^ present):
        return (
            f"shard {name} is missing"
            if name in listed
            else f"{name} is none of its {len(listed)} shards"
        )
    for name in sorted(listed)[processes.rank() :: processes.world_size()]:
        if sha256(path / name) != listed[name]:
            return f"the bytes of {name} are not those that were written"
    return None


def read(path: Path, empty: Callable[[str, torch.Size], Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint; each process reads its own rows.

    Args:
        empty: makes the tensor to read into, from the name and the whole tensor's shape.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    reader = HuggingFaceStorageReader(str(path))
    shapes = {name: item.size for name, item in reader.read_metadata().state_dict_metadata.items()}  # type: ignore[union-attr]
    tensors = {name: empty(name, shape) for name, shape in shapes.items()}
    group = processes.checkpoint_group()
    load(
        tensors,
        storage_reader=HuggingFaceStorageReader(str(path)),
        process_group=group,
        no_dist=group is None,
    )
    return tensors


def agreed(problem: str | None) -> str | None:
    """Return the first problem that any process has, in every process."""
    return next((answer for answer in processes.all_gather(problem) if answer is not None), None)
