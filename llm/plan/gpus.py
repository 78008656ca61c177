"""The machine of a plan: this one, or other GPUs by their data sheets."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llm.errors import UserError
from llm.parallel import hardware, processes
from llm.runtime import env

# Name, dense bfloat16 FLOP/s with float32 accumulation, and memory in GiB, from NVIDIA's data
# sheets (which often print twice the rate, "with sparsity").
GPUS = {
    "l4": ("NVIDIA L4", 121e12, 24),
    "rtx-4090": ("NVIDIA GeForce RTX 4090", 165e12, 24),
    "a100-40gb": ("NVIDIA A100 40 GB", 312e12, 40),
    "a100-80gb": ("NVIDIA A100 80 GB", 312e12, 80),
    "h100": ("NVIDIA H100 SXM", 989e12, 80),
    "h200": ("NVIDIA H200", 989e12, 141),
}
FLOAT32_SHARE = 0.5  # TensorFloat-32's rate as a share of bfloat16's, in the same data sheets


@dataclass(frozen=True)
class Machine:
    """The hardware that a plan counts with, in bytes and FLOP/s."""

    where: torch.device
    name: str
    memory: int  # one GPU's, or the RAM that all processes of this machine share
    dtype: torch.dtype
    rate: float  # FLOP/s of one device
    rate_from: str
    devices: int  # number that share the work
    processes: int  # number that share `memory`
    here: bool


def this_machine(precision: str) -> Machine:
    """Return the machine of this process, and measure its rate now."""
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
    """Return a machine of `count` GPUs, which need not be present.

    Raises:
        UserError: the kind is not in `GPUS`.
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
