"""A run's speed, waiting times and memory, which go to timing files and MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from llm.parallel import hardware, processes
from llm.runtime.progress import INTERVAL
from llm.runtime.timing import peak_memory_bytes


class Meter:
    """Collects the seconds of one process's steps and of what its training thread waited for."""

    def __init__(self, device: torch.device, dtype: torch.dtype, flops: float, tokens: int) -> None:
        """`flops`, `tokens`: of one step, over all processes."""
        self.device, self.dtype, self.flops, self.tokens = device, dtype, flops, tokens
        self.steps: list[float] = []  # seconds
        self.waited = {"loader": 0.0, "checkpoint": 0.0}  # seconds
        self.checkpoints = 0
        self.matmul_rate: float | None = None
        self._told, self._told_steps = time.monotonic(), 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one step."""
        began = time.perf_counter()
        yield
        self.steps.append(time.perf_counter() - began)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Around what keeps the training thread from computing: `loader` (within a step) or
        `checkpoint`.
        """
        began = time.perf_counter()
        yield
        self.waited[what] += time.perf_counter() - began

    def due(self) -> dict[str, float] | None:
        """Figures of the last interval, as often as the progress line; None in between. Validation
        does not count.
        """
        if time.monotonic() - self._told < INTERVAL or len(self.steps) == self._told_steps:
            return None
        figures = self._rates(float(np.mean(self.steps[self._told_steps :]))) | self._memory()
        self._told, self._told_steps = time.monotonic(), len(self.steps)
        return figures

    def summary(self) -> dict[str, Any]:
        """Rates are of the median step, so that compilation does not count."""
        figures: dict[str, Any] = {"steps_measured": len(self.steps)}
        if self.steps:
            figures |= self._rates(float(np.median(self.steps)))
            figures |= {
                "first_step_seconds": self.steps[0],
                "step_seconds": sum(self.steps),
                "matmul_flops_per_second": self._ceiling(),
                **{f"{what}_seconds": seconds for what, seconds in self.waited.items()},
                "checkpoints": self.checkpoints,
            }
        return figures | (self._memory() if self.device.type == "cuda" else {})

    def _rates(self, seconds: float) -> dict[str, float]:
        """`mfu`: model FLOPs utilisation (Chowdhery et al. 2022, arXiv:2204.02311, appendix B) of
        all the devices, against the rate that a matrix product reaches here instead of a data
        sheet's."""
        achieved = self.flops / seconds
        return {
            "tokens_per_second": self.tokens / seconds,
            "mfu": achieved / (self._ceiling() * processes.world_size()),
        }

    def _ceiling(self) -> float:
        if self.matmul_rate is None:
            self.matmul_rate = hardware.matmul_flops_per_second(self.device, self.dtype)
        return self.matmul_rate

    def _memory(self) -> dict[str, float]:
        if self.device.type == "cuda":
            return {"peak_device_memory_bytes": torch.cuda.max_memory_allocated(self.device)}
        return {"peak_memory_bytes": peak_memory_bytes()}
