"""Children for one cross-entropy, forward and backward: this project's chunks, the naive way,
PyTorch's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workers import Gate, peak_memory

KINDS = ("chunks", "chunks compiled", "naive", "naive compiled", "torch linear_cross_entropy")


def _forget_peak() -> int:
    """Let the peak start anew where Linux allows it; resident memory now (bytes)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak_memory()
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM") or peak_memory()


def _status(key: str) -> int:
    path = Path("/proc/self/status")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), 0)


def function(kind: str) -> Callable[..., Any] | None:
    """f(hidden (1, tokens, width), weight (vocab, width), targets (1, tokens)), summed, or None
    where torch has none
    """
    import torch
    import torch.nn.functional as F

    from llm.model.loss import chunk_loss, cross_entropy

    def naive(hidden: Any, weight: Any, targets: Any) -> Any:
        logits = F.linear(hidden[0], weight.to(hidden.dtype))
        return F.cross_entropy(logits.float(), targets[0], reduction="sum")

    def own(hidden: Any, weight: Any, targets: Any) -> Any:
        options = torch.nn.LinearCrossEntropyOptions(acc_policy="accurate")
        return F.linear_cross_entropy(
            hidden[0], weight.to(hidden.dtype), targets[0], reduction="sum", options=options
        )

    if kind == "chunks":
        return cross_entropy
    if kind == "chunks compiled":
        compiled = torch.compile(chunk_loss, dynamic=False)
        return lambda hidden, weight, targets: cross_entropy(hidden, weight, targets, compiled)
    if kind == "naive":
        return naive
    if kind == "naive compiled":
        return torch.compile(naive, dynamic=False)
    return own if hasattr(F, "linear_cross_entropy") else None


def inputs(tokens: int, vocab: int, width: int, dtype: str) -> tuple[Any, Any, Any]:
    """hidden, float32 weight, and targets with one in sixteen ignored."""
    import torch

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, tokens, width, generator=generator).to(getattr(torch, dtype))
    weight = torch.randn(vocab, width, generator=generator) * width**-0.5
    targets = torch.randint(0, vocab, (1, tokens), generator=generator)
    targets[:, ::16] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def measure(
    gate: Gate, kind: str, tokens: int, vocab: int, width: int, dtype: str, cache: Path
) -> None:
    """Each step: seconds and extra memory (bytes) of one forward and backward. Nothing where the
    kind is missing.
    """
    hidden, weight, targets = inputs(tokens, vocab, width, dtype)
    loss = function(kind)
    gate.begin()
    while True:
        hidden.grad = weight.grad = None
        before = _forget_peak()
        began = time.perf_counter()
        if loss is not None:
            loss(hidden, weight, targets).backward()
        took = time.perf_counter() - began
        gate.step_done({"seconds": took, "extra_memory": _peak() - before})


def errors(
    gate: Gate, kind: str, tokens: int, vocab: int, width: int, dtype: str
) -> dict[str, float] | None:
    """Relative errors of the loss and of both gradients against the naive way in float64, on the
    same inputs.
    """
    import torch

    found = function(kind)
    if found is None:
        return None
    hidden, weight, targets = inputs(tokens, vocab, width, dtype)
    loss = found(hidden, weight, targets)
    loss.backward()
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    logits = (
        exact[0][0] @ exact[1].to(hidden.dtype).double().T
        if dtype != "float32"
        else exact[0][0] @ exact[1].T
    )
    wanted = torch.nn.functional.cross_entropy(logits, targets[0], reduction="sum")
    wanted.backward()
    return {"loss": float((loss.double() - wanted).abs() / wanted)} | {
        name: float((got.grad.double() - right.grad).norm() / right.grad.norm())
        for name, got, right in (("by_hidden", hidden, exact[0]), ("by_weight", weight, exact[1]))
    }
