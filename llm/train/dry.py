"""One dry batch: forward and backward at full size, before data or time is spent on a run that does not fit."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from llm.errors import UserError
from llm.model.transformer import Transformer
from llm.train import hardware
from llm.train.loader import Dataset

OPTIMIZER_BYTES = 8  # a trained parameter: AdamW's two float32 moments, the most that any of the optimizers keeps


def micro_batch(stage: str, model: Transformer, data: Dataset, length: int, batch_size: int) -> int:
    """Sequences per forward pass: what the hardware's class says, on a GPU confirmed by a dry batch."""
    device = next(model.parameters()).device
    size = hardware.micro_batch(model.config, length, batch_size, device)
    return fitting_micro_batch(stage, model, data, size) if device.type == "cuda" else size


def fitting_micro_batch(stage: str, model: Transformer, data: Dataset, micro: int) -> int:
    """The largest of `micro`, micro / 2, …, 1 sequences whose forward and backward pass fit the device's memory.

    Weights, gradients and random states are left as they were, and nothing is updated. The global batch does not
    depend on the answer: fewer sequences at a time are more passes.

    Args:
        data: its first row is tried, with a label everywhere, which no real batch exceeds.

    Raises:
        UserError: one sequence does not fit.
    """
    device = next(model.parameters()).device
    tokens, _, segments, positions = data.rows(np.arange(1))
    labels = np.minimum(tokens, model.config.vocab_size - 1)  # nothing predicts a soft prompt
    row = {"input_ids": tokens, "targets": labels, "segments": segments, "positions": positions}
    tensors = {key: torch.from_numpy(value).to(device) for key, value in row.items() if value is not None}
    while not _fits(model, {key: value.repeat(micro, 1) for key, value in tensors.items()}):
        if micro == 1:
            raise UserError(
                f"{stage}: one sequence of {tokens.shape[1]} tokens does not fit the memory of {device}. Lower "
                f"{stage}.sequence_length or the model's size; `python -m llm plan` shows what takes how much."
            )
        micro //= 2
        print(f"{stage}: out of memory in the dry batch; trying micro-batches of {micro}", flush=True)
    return micro


def _fits(model: Transformer, rows: dict[str, Tensor]) -> bool:
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    device = parameters[0].device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            _forward_backward(model, rows, parameters)
        fits = True
    except torch.OutOfMemoryError:
        fits = False
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if device.type == "cuda":
        torch.cuda.empty_cache()  # outside the except block, where the error holds the frames and they the tensors
    return fits


def _forward_backward(model: Transformer, rows: dict[str, Tensor], parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
    reserve = OPTIMIZER_BYTES * sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    held = torch.empty(reserve, dtype=torch.uint8, device=parameters[0].device)
    for _ in range(2):  # the second pass meets the gradients of the first, as in accumulation
        model.loss(**rows).backward()
    float(held[0])  # waits for the device; the optimizer's share was taken all the while
