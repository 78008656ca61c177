"""Choice of the micro-batch, the sequences that go through the model at a time.

A formula gives it; on a GPU one trial batch confirms it.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from llm.data.batches import Dataset
from llm.errors import UserError
from llm.model.config import Config
from llm.model.sharded_tensor import is_sharded
from llm.model.transformer import Transformer
from llm.parallel import hardware
from llm.train import fsdp
from llm.train.memory import layer_activations

MICRO_TOKENS_CPU = 2048  # activations of more fall out of the caches; docs/LOG.md has the figures
ACTIVATION_SHARE = 0.4  # share of GPU memory for activations
OPTIMIZER_BYTES = (
    8  # a trained parameter: AdamW's two float32 moments, the most that any of the optimizers keeps
)


def default_micro_batch(
    config: Config,
    sequence_length: int,
    batch_size: int,
    where: torch.device,
    memory: int | None = None,
) -> int:
    """Sequences per forward pass, at most the global batch.

    On a CPU, what stays near the caches. On a GPU, the largest power of two whose activations in
    bfloat16, not compiled (`layer_activations`), fit a stated share of the card's memory; a dry
    batch confirms it.

    Args:
        memory: bytes of the card; None: of the one that is here.
    """
    if where.type == "cuda":
        token = config.num_hidden_layers * layer_activations(
            config, sequence_length, 2, False, False
        )
        fits = int(
            ACTIVATION_SHARE * (memory or hardware.total_memory(where)) / (sequence_length * token)
        )
        size = 1 << max(0, fits.bit_length() - 1)
    else:
        size = max(1, MICRO_TOKENS_CPU // sequence_length)
    return max(1, min(size, batch_size))


def micro_batch(stage: str, model: Transformer, data: Dataset, length: int, batch_size: int) -> int:
    """Sequences per forward pass: what the hardware's class says, on a GPU confirmed by a dry
    batch.
    """
    device = next(model.parameters()).device
    size = default_micro_batch(model.config, length, batch_size, device)
    return fitting_micro_batch(stage, model, data, size) if device.type == "cuda" else size


def sharded_micro_batch(
    stage: str, model: Transformer, data: Dataset, length: int, batch_size: int, compiled: bool
) -> int:
    """Do what `micro_batch` does, for a model on the meta device that is to be sharded; called in every
    process.
    """
    device = hardware.device()
    size = default_micro_batch(model.config, length, batch_size, device)
    return (
        fitting_in_shards(stage, model, data, size, device, compiled)
        if device.type == "cuda"
        else size
    )


def fitting_micro_batch(stage: str, model: Transformer, data: Dataset, micro: int) -> int:
    """The largest of `micro`, micro / 2, …, 1 sequences whose forward and backward pass fit the
    device's memory.

    Weights, gradients and random states are left as they were, and nothing is updated. The global
    batch does not
    depend on the answer: fewer sequences at a time are more passes.

    Args:
        data: its first row is tried, with a label everywhere, which no real batch exceeds.

    Raises:
        UserError: one sequence does not fit.
    """
    device = next(model.parameters()).device
    return _largest(stage, model, data, micro, device, lambda rows: _fits(model, rows))


def fitting_in_shards(
    stage: str, model: Transformer, data: Dataset, micro: int, device: torch.device, compiled: bool
) -> int:
    """Do what `fitting_micro_batch` does, for a model on the meta device that is to be sharded over all
    processes.

    Where one process runs out of memory, the others would wait for its part in vain. So each tries
    alone, on a copy of
    the model whose group exchanges nothing: PyTorch's fake one, which gives every buffer its size,
        and leaves in it
    what the memory holds. Layers are not compiled for it, which takes no less memory. The processes
    may find different sizes, and take the smallest.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.testing._internal.distributed import fake_pg  # noqa: F401  (makes the backend known)

    mesh = DeviceMesh.from_group(dist.new_group(backend="fake"), device.type)

    def fits(rows: dict[str, Tensor]) -> bool:
        copied = copy.deepcopy(model)  # of the meta device: without memory
        copied.fill = lambda: None
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                loss = fsdp.shard(copied, device, model.compute_dtype, compiled, mesh)
                _forward_backward(loss, rows, list(copied.parameters()))
        except torch.OutOfMemoryError:
            return False
        return True

    def fits_and_leaves_nothing(rows: dict[str, Tensor]) -> bool:
        found = fits(rows)
        gc.collect()  # hooks and parameters hold one another
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return found

    return _largest(stage, model, data, micro, device, fits_and_leaves_nothing)


def _largest(
    stage: str,
    model: Transformer,
    data: Dataset,
    micro: int,
    device: torch.device,
    fits: Callable[[dict[str, Tensor]], bool],
) -> int:
    tokens, _, segments, positions = data.rows(np.arange(1))[:4]
    labels = np.minimum(tokens, model.config.vocab_size - 1)  # nothing predicts a soft prompt
    row = {"input_ids": tokens, "targets": labels, "segments": segments, "positions": positions}
    tensors = {
        key: torch.from_numpy(value).to(device) for key, value in row.items() if value is not None
    }
    while not fits({key: value.repeat(micro, 1) for key, value in tensors.items()}):
        if micro == 1:
            raise UserError(
                f"{stage}: one sequence of {tokens.shape[1]} tokens does not fit the memory of {device}. Lower "
                f"{stage}.sequence_length or the model's size; `python -m llm plan` shows what takes how much."
            )
        micro //= 2
        print(
            f"{stage}: out of memory in the dry batch; trying micro-batches of {micro}", flush=True
        )
    return micro


def _fits(model: Transformer, rows: dict[str, Tensor]) -> bool:
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    device = parameters[0].device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            _forward_backward(lambda tensors: model.loss(**tensors), rows, parameters)
        fits = True
    except torch.OutOfMemoryError:
        fits = False
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if device.type == "cuda":
        # outside the except block, where the error holds the frames and they the tensors
        torch.cuda.empty_cache()
    return fits


def _forward_backward(
    loss: Callable[[dict[str, Tensor]], Tensor],
    rows: dict[str, Tensor],
    parameters: list[nn.Parameter],
) -> None:
    for parameter in parameters:
        parameter.grad = None
    here = [p.to_local() if is_sharded(p) else p for p in parameters if p.requires_grad]  # type: ignore[attr-defined]
    reserve = OPTIMIZER_BYTES * sum(part.numel() for part in here)
    held = torch.empty(reserve, dtype=torch.uint8, device=parameters[0].device)
    for _ in range(2):  # the second pass meets the gradients of the first, as in accumulation
        loss(rows).backward()
    float(held[0])  # waits for the device; the optimizer's share was taken all the while
