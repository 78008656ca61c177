"""Bytes that training processes exchange, by formula, and the efficiency that follows.

scale.py compares these bytes with counted ones; docs/SCALE.md shows the output of
`python bench/scale.py paper`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm.train.memory import FLOAT32

BUCKET = 25 * 2**20  # bytes of gradients that DistributedDataParallel sends at a time


@dataclass(frozen=True)
class Devices:
    """One kind of accelerator and the network between them."""

    flops: float  # a second, of matrix products in bfloat16 at the peak
    utilisation: float  # of it that training reaches on one device
    machine: int  # devices in one machine
    inside: float  # bytes a second that a device sends to others in its machine
    network: float  # and to other machines
    hop: float  # seconds from one device to the next, which a small message takes as well


# NVIDIA's data sheets: H100 SXM, 989 TFLOP/s dense bfloat16, in DGX machines of eight with 450 GB/s
# of NVLink and 400 Gb/s of InfiniBand a card each way, of which 0.8 are taken as reached.
# Utilisation: Llama 3, arXiv:2407.21783, table 4 (38 to 43 %). Hop: an estimate.
H100 = Devices(
    flops=989e12, utilisation=0.4, machine=8, inside=0.8 * 450e9, network=0.8 * 50e9, hop=5e-6
)


@dataclass(frozen=True)
class Job:
    """A model and its step."""

    name: str
    parameters: int
    embeddings: int  # parameters of them that are no layer's
    layers: int
    batch_tokens: int
    micro_tokens: int  # of one pass, at most
    sharded: bool


# Shapes and global batches of GPT-2, TinyLlama with Llama's batch a tenth, and Llama 2
# (arXiv:2307.09288).
JOBS = (
    Job("124M", 124_000_000, 38_600_000, 12, 2**19, 2**15, sharded=False),
    Job("1B", 1_100_000_000, 131_000_000, 22, 2**20, 2**14, sharded=False),
    Job("7B", 6_740_000_000, 262_000_000, 32, 2**22, 2**14, sharded=True),
)


def minimum_bytes(parameters: int, processes: int) -> float:
    """Return the least bytes that each process sends a step to all-reduce float32 gradients.

    That is 2 (p − 1)/p of the gradients' bytes.

    Patarasuk and Yuan 2009 (doi:10.1016/j.jpdc.2008.09.002), theorem 1; a reduce-scatter and an
    all-gather reach it."""
    return 2 * (processes - 1) / processes * FLOAT32 * parameters


def sharded_bytes(
    parameters: int, embeddings: int, processes: int, rounds: int, width: int
) -> float:
    """Return the bytes that each process of a sharded run sends a step, without Muon and scalars.

    A pass gathers the layers twice, forward and backward, and the rest once, and adds up all
    gradients; a step has `rounds` passes, since no process has room for a whole gradient.

    Args:
        width: bytes of a layer's weight on the way: 2 in bfloat16, 4 in float32 and where the
            layers are compiled.
    """
    share = (processes - 1) / processes
    layers = parameters - embeddings
    return rounds * share * (2 * width * layers + FLOAT32 * embeddings + FLOAT32 * parameters)


def muon_bytes(parameters: int, processes: int) -> float:
    """Return the bytes that each sharded process sends a step for Muon: bfloat16, both ways."""
    return 2 * 2 * parameters / processes * (processes - 1) / processes


def efficiency(job: Job, count: int, devices: Devices = H100) -> float:
    """Return the speed of `count` devices as a share of `count` times one device's speed.

    Only the network slows them.

    DDP's exchange runs beside the backward pass of the last micro-batch, two thirds of that pass;
    FSDP's beside all of the computing. A message takes log2 p hops (NCCL's trees). What does not
    fit beside the computing is waited for."""
    tokens = job.batch_tokens / count
    computing = 6 * job.parameters * tokens / (devices.flops * devices.utilisation)
    rounds = max(1, math.ceil(tokens / job.micro_tokens))
    if job.sharded:
        sent = sharded_bytes(job.parameters, job.embeddings, count, rounds, FLOAT32)
        messages, beside = 3 * job.layers * rounds, computing
    else:
        sent = minimum_bytes(job.parameters, count)
        messages, beside = (
            2 * math.ceil(FLOAT32 * job.parameters / BUCKET),
            2 / 3 * computing / rounds,
        )
    speed = devices.inside if count <= devices.machine else devices.network
    exchange = sent / speed + messages * math.log2(count) * devices.hop
    return computing / (computing + max(0.0, exchange - beside))
