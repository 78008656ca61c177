"""Fully sharded training, for a model that does not fit each process whole: PyTorch's FSDP2
(`fully_shard`).

Each process keeps an equal part of every weight, gradient and optimizer state; a layer's weights
are gathered while it computes. What is computed, and in which type, is what one process computes;
only sums over processes are added up in another order. So whether a run is sharded is no
hyperparameter: the memory decides, or `LLM_SHARDING`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from llm.errors import UserError
from llm.model.config import Config
from llm.model.transformer import Transformer
from llm.parallel import hardware, processes
from llm.params import Training
from llm.runtime import env
from llm.train.adapter_size import NO_ADAPTER, AdapterSize
from llm.train.memory import training_memory

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def wanted(
    config: Config, s: Training, adapter: AdapterSize = NO_ADAPTER, refused: str = ""
) -> bool:
    """Return whether to shard the model: as `LLM_SHARDING` says, otherwise where a copy for each
    process would not fit with one sequence.

    Known before the processes have met, since a sharded model is never made whole.

    Args:
        adapter: what is trained in place of the whole model.
        refused: what makes sharding impossible, such as a method that reads weights before they are
            filled; empty: it is possible.

    Raises:
        UserError: an unknown mode, or `fsdp` where it cannot be.
    """
    mode = env.sharding()
    if processes.launched_world_size() == 1:
        return False
    if mode == "fsdp" and refused:
        raise UserError(
            f"LLM_SHARDING=fsdp: {refused} is not sharded, only finetune.method=full and lora are; unset it, or "
            "choose ddp."
        )
    if mode or refused:
        return mode == "fsdp"
    where = hardware.device()
    replicated = training_memory(
        config,
        optimizer=s.optimizer,
        sequence_length=s.sequence_length,
        micro_batch=1,
        width=hardware.precision(s.precision, where).itemsize,
        compiled=False,
        device=where.type,
        adapter=adapter,
        checkpointing=s.grad_checkpointing,
    )
    return replicated.peak * sharing(where) > hardware.total_memory(where)


def sharing(where: torch.device) -> int:
    """Processes that share the memory: all of a machine on a CPU, one on a card."""
    return env.local_world_size() if where.type == "cpu" else 1


def shard(
    model: Transformer,
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool,
    mesh: DeviceMesh | None = None,
) -> processes.Loss:
    """Shard a model that is on the meta device, give each process memory for its part, and fill it
    (`model.fill`).

    Returns the loss, which gathers what it needs. Under `no_grad` the outermost group stays
    gathered until `reshard`.

    A layer's matrices travel in `dtype`, in which they are used; gradients are added up in float32.
    Norms and embeddings, whose float32 values matter, travel as they are, with the outermost group.
    A compiled layer is one graph that the matrices' own hooks would cut up, so all of it travels in
    float32 there, and is cast inside.

    Args:
        mesh: the processes that share it; None: all.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = mesh or init_device_mesh(device.type, (processes.world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for layer in model.model.layers:
        if compiled:
            fully_shard(layer, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
        else:
            matrices = [module for name, module in layer.named_modules() if name.endswith("_proj")]
            fully_shard(matrices, mesh=mesh, mp_policy=policy)
    root = processes.Loss(model)
    fully_shard(root, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    model.to_empty(device=device)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    assert model.fill is not None
    model.fill()
    return root


def each_whole(matrices: list[DTensor], function: Callable[[Tensor], Tensor]) -> list[DTensor]:
    """`function` of whole matrices (n, rows, columns), given and returned as shards of equal shape.

    Muon's update needs the whole matrix. One all-to-all brings whole matrices to each process, i to
    process i modulo their number, and another takes the rows back: a process computes, holds and
    sends its share only. (Gathering every matrix everywhere would be shorter, but each process
    would repeat all of the work: at 4096 rows, 2**19 tokens a step and 64 processes more of it than
        training itself.)
    """
    from torch.distributed.tensor import DTensor

    mesh, (rows, columns) = matrices[0].device_mesh, matrices[0].shape
    group, world, me = mesh.get_group(), mesh.size(), mesh.get_local_rank()
    heights = [
        min(rows, (r + 1) * -(-rows // world)) - min(rows, r * -(-rows // world))
        for r in range(world)
    ]
    hands = [range(r, len(matrices), world) for r in range(world)]
    there = [len(hand) * heights[me] * columns for hand in hands]
    here = [len(hands[me]) * height * columns for height in heights]
    locals_ = [matrix.to_local() for matrix in matrices]
    sent = torch.cat([locals_[i].flatten() for hand in hands for i in hand])
    received = sent.new_empty(sum(here))
    dist.all_to_all_single(received, sent, here, there, group=group)
    parts = zip(received.split(here), heights, strict=True)
    own = torch.cat([part.view(len(hands[me]), height, columns) for part, height in parts], dim=1)
    if len(own):
        own = function(own)
    sent = torch.cat([part.flatten() for part in own.split(heights, dim=1)])
    received = sent.new_empty(sum(there))
    dist.all_to_all_single(received, sent, there, here, group=group)
    results = list(matrices)
    for hand, part in zip(hands, received.split(there), strict=True):
        for i, local in zip(hand, part.view(len(hand), heights[me], columns), strict=True):
            shape, stride = matrices[i].shape, matrices[i].stride()
            results[i] = DTensor.from_local(
                local, mesh, matrices[i].placements, shape=shape, stride=stride
            )
    return results
