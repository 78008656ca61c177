"""Device, precision and compilation, which follow from the machine; they are no hyperparameters.

They depend on the kind of hardware and on the model, never on free memory or load, so a resumed run
makes the same choices.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from functools import cache
from pathlib import Path

import torch

from llm.errors import UserError
from llm.runtime import env

# training FLOPs that repay compiling without a cache on two cores: 0.8 to 2.2e13, docs/LOG.md
COMPILE_PAYS = 1.5e13
COMPILE_PAYS_CUDA = 2.5e15  # an estimate
# Until the first step without the compiler's cache (docs/LOG.md); 1.5 with it.
COMPILE_SECONDS = 16.0
CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def device() -> torch.device:
    """Return `LLM_DEVICE` if set, else this process's CUDA device, else the CPU.

    Raises:
        UserError: the named device is unknown or absent.
    """
    wanted = env.device() or ("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and "LOCAL_RANK" in os.environ:
        wanted = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        chosen = torch.device(wanted)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device {wanted} cannot be used ({reason}); try LLM_DEVICE=cpu, or fewer processes."
        ) from None
    return chosen


def name(where: torch.device) -> str:
    """Return the device's name for people."""
    from llm.runtime.timing import device_name

    return torch.cuda.get_device_name(where) if where.type == "cuda" else device_name()


@cache
def _cpu_has_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16: AVX-512 BF16 or AMX (x86), BF16 (Arm)."""
    info = Path("/proc/cpuinfo")
    if platform.system() != "Linux" or not info.exists():
        return False
    words = set(info.read_text(encoding="utf-8", errors="replace").split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def precision(setting: str, where: torch.device) -> torch.dtype:
    """Return the type of the activations; `auto` is bfloat16 if the hardware multiplies it."""
    if setting == "auto":
        native = torch.cuda.is_bf16_supported() if where.type == "cuda" else _cpu_has_bf16()
        return torch.bfloat16 if native else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[setting]


def compiles(setting: bool | str, where: torch.device, flops: float) -> bool:
    """Return whether to use torch.compile; `auto`: with a C++ compiler, for runs that repay it."""
    if setting != "auto":
        return bool(setting)
    if where.type == "cuda":
        return flops > COMPILE_PAYS_CUDA
    compilers = (os.environ.get("CXX") or "g++", "clang++")
    return any(map(shutil.which, compilers)) and flops > COMPILE_PAYS


def total_memory(where: torch.device) -> int:
    """Return the bytes that a run may use: of the GPU, the machine or its container; not the free ones."""
    if where.type == "cuda":
        return int(torch.cuda.get_device_properties(where).total_memory)
    import psutil

    limits = [int(psutil.virtual_memory().total)]
    for path in CONTAINER_LIMITS:
        if path.exists() and (text := path.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits)


def matmul_flops_per_second(where: torch.device, dtype: torch.dtype) -> float:
    """Return the rate of a large matrix product (best of five), the reference of MFU."""
    size = 8192 if where.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=where, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):  # the first warms up
        began = time.perf_counter()
        float((a @ b)[0, 0])  # reading a value waits for the device
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best
