"""The machine that a plan is made for: this one, or GPUs that are not here, by their data sheet."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llm.errors import UserError
from llm.parallel import hardware, processes
from llm.runtime import env

# Name, dense bfloat16 FLOP/s with float32 accumulation, and memory in GiB, as NVIDIA's data sheets
# have them (which often print twice the rate, "with sparsity").
GPUS = {
    "l4": ("NVIDIA L4", 121e12, 24),
    "rtx-4090": ("NVIDIA GeForce RTX 4090", 165e12, 24),
    "a100-40gb": ("NVIDIA A100 40 GB", 312e12, 40),
    "a100-80gb": ("NVIDIA A100 80 GB", 312e12, 80),
    "h100": ("NVIDIA H100 SXM", 989e12, 80),
    "h200": ("NVIDIA H200", 989e12, 141),
}
FLOAT32_SHARE = 0.5  # of the bfloat16 rate that TensorFloat-32 has, in the same data sheets


@dataclass(frozen=True)
class Machine:
    """What a plan needs to know. Bytes, FLOP/s."""

    where: torch.device
    name: str
    memory: int  # of one card, or what all processes of this machine share
    dtype: torch.dtype
    rate: float  # of one device
    rate_from: str
    devices: int  # that share the work
    processes: int  # that share `memory`
    here: bool


def this_machine(precision: str) -> Machine:
    """Where this process runs; its rate is measured now."""
    where = hardware.device()
    dtype = hardware.precision(precision, where)
    cuda = where.type == "cuda"
    return Machine(
        where=where,
        name=hardware.name(where),
        memory=hardware.total_memory(where),
        dtype=dtype,
        rate=hardware.matmul_flops_per_second(where, dtype),
        rate_from="measured now",
        devices=processes.world_size() if cuda else 1,
        processes=1 if cuda else env.local_world_size(),
        here=True,
    )


def gpus(kind: str, count: int, precision: str) -> Machine:
    """`count` GPUs of a kind that need not be here.

    Raises:
        UserError: the kind is none of those whose data sheet is known here.
    """
    if kind not in GPUS:
        raise UserError(f"--gpu {kind}: unknown; there are {', '.join(GPUS)}.")
    name, rate, gibibytes = GPUS[kind]
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    return Machine(
        where=torch.device("cuda"),
        name=name if count == 1 else f"{count} × {name}",
        memory=gibibytes * 1024**3,
        dtype=dtype,
        rate=rate * (FLOAT32_SHARE if dtype == torch.float32 else 1.0),
        rate_from="of the data sheet",
        devices=count,
        processes=1,
        here=False,
    )
