"""Settings that make a rerun give identical bytes, and a check of whether a run can promise it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from llm.parallel import hardware, processes


@contextmanager
def deterministic(on: bool, compiled: bool = False) -> Iterator[None]:
    """Inside the block, only algorithms that give the same bits every time; what was set before is
    restored.

    An operation that has none raises RuntimeError. TF32 is turned off too: it is a rounding that
    devices differ in.
    compiled: also no kernel that torch.compile chooses by measuring its speed.
    """
    if not on:
        yield
        return
    cudnn = torch.backends.cudnn
    config = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        (cudnn.deterministic, cudnn.benchmark),
        torch.get_float32_matmul_precision(),
    )
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # docs.nvidia.com/cuda/cublas: results reproducibility
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.set_float32_matmul_precision("highest")
    try:
        if compiled:
            from torch._inductor import config as inductor

            with inductor.patch(deterministic=True):
                yield
        else:
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = before[2]
        torch.set_float32_matmul_precision(before[3])
        if config is None:
            del os.environ["CUBLAS_WORKSPACE_CONFIG"]


def run_environment(
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool,
    deterministic: bool,
    sharded: bool = False,
) -> dict[str, Any]:
    """Return the hardware and settings that a run's bytes depend on, beside its inputs.

    A state records each environment that its steps ran in. Every process must call it, since
    their devices may differ.
    """
    return {
        "device": f"{device.type.upper()} {' + '.join(sorted(set(processes.all_gather(hardware.name(device)))))}",
        "processes": processes.world_size(),
        "sharded": sharded,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "dtype": str(dtype).removeprefix("torch."),
        "compiled": compiled,
        "deterministic": deterministic,
    }


def difference(earlier: dict[str, Any], later: dict[str, Any]) -> str:
    """Name what differs between two environments."""
    return ", ".join(
        f"{key} {earlier.get(key)}, then {later[key]}"
        for key in later
        if earlier.get(key) != later[key]
    )


def verdict(environments: list[dict[str, Any]]) -> tuple[bool, str]:
    """Return whether the same inputs give the same bytes in the same environment, and why.

    A CPU adds up in an order that the number of its threads decides, and processes in one that
    their number decides; a CUDA device without deterministic algorithms adds up in a different order each time.
    """
    last = environments[-1]
    if len(environments) > 1:
        return (
            False,
            f"no: the run was resumed on different hardware ({difference(environments[-2], last)})",
        )
    kind = last["device"].split()[0]
    if kind != "CPU" and not last["deterministic"]:
        return False, f"no: {kind} without deterministic: true"
    parts = [
        last["device"],
        "one process" if last["processes"] == 1 else f"{last['processes']} processes",
    ]
    if last["threads"]:
        parts.append("one thread" if last["threads"] == 1 else f"{last['threads']} threads")
    return True, f"yes, with the same device and counts ({', '.join(parts)})"
