"""The chunked loss is torch's cross-entropy, and so are its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llm.model import loss
from llm.model.loss import chunk_loss, cross_entropy

VOCAB, HIDDEN = 300, 32


def inputs(
    tokens: int, labelled: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, tokens // 2, HIDDEN, generator=generator).to(dtype).requires_grad_()
    weight = (0.3 * torch.randn(VOCAB, HIDDEN, generator=generator)).requires_grad_()
    targets = torch.randint(0, VOCAB, (2, tokens // 2), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) > labelled] = -100
    return hidden, weight, targets


def reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, factors: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients of torch's own, in float64, from the very numbers."""
    h, w = (x.detach().double().requires_grad_() for x in (hidden, weight.to(hidden.dtype)))
    each = F.cross_entropy(
        (h @ w.T).flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none"
    )
    value = (each if factors is None else each * factors.flatten().double()).sum()
    (value / 7).backward()
    assert h.grad is not None
    assert w.grad is not None
    return value.detach(), h.grad, w.grad


def agree_with_float64(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk: loss.ChunkLoss = chunk_loss,
    factors: Tensor | None = None,
) -> None:
    """The loss to 1e-6, its gradients to 1e-5."""
    expected = reference(hidden, weight, targets, factors)
    value = cross_entropy(hidden, weight, targets, chunk, factors)
    (value / 7).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert float(value.detach()) == pytest.approx(float(expected[0]), rel=1e-6)
    torch.testing.assert_close(hidden.grad.double(), expected[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weight.grad.double(), expected[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("labelled", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("tokens", [64, 600])  # one chunk that is not full, and several
def test_float32_agrees_with_float64_to_1e_5(
    monkeypatch: pytest.MonkeyPatch, tokens: int, labelled: float
) -> None:
    monkeypatch.setattr(loss, "MIN_CHUNK", 128)
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 128 * VOCAB)
    agree_with_float64(*inputs(tokens, labelled))


# Slow: its sibling is the loss that is not compiled.
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_weighted_tokens_agree_with_float64(
    monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    monkeypatch.setattr(loss, "MIN_CHUNK", 128)
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 128 * VOCAB)
    hidden, weight, targets = inputs(600, 0.5)
    factors = torch.rand(targets.shape, generator=torch.Generator().manual_seed(1))
    chunk = torch.compile(chunk_loss, dynamic=False) if compiled else chunk_loss
    agree_with_float64(hidden, weight, targets, chunk, factors)


def test_bfloat16_gradients_are_within_its_rounding() -> None:
    hidden, weight, targets = inputs(600, 1.0, torch.bfloat16)
    expected = reference(hidden, weight, targets)
    value = cross_entropy(hidden, weight, targets)
    (value / 7).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert float(value.detach()) == pytest.approx(float(expected[0]), rel=1e-4)
    for grad, exact in ((hidden.grad, expected[1]), (weight.grad, expected[2])):
        assert float((grad.double() - exact).norm() / exact.norm()) < 2**-7


def test_the_same_compiled() -> None:
    agree_with_float64(*inputs(600, 0.5), torch.compile(chunk_loss, dynamic=False))


def test_only_what_is_asked_for_is_computed() -> None:
    hidden, weight, targets = inputs(64, 1.0)
    asked: list[tuple[bool, bool]] = []

    def spy(
        h: Tensor, w: Tensor, t: Tensor, f: Tensor | None, for_hidden: bool, for_weight: bool
    ) -> loss.Chunk:
        asked.append((for_hidden, for_weight))
        return chunk_loss(h, w, t, f, for_hidden, for_weight)

    with torch.no_grad():
        cross_entropy(hidden, weight, targets, spy)
    cross_entropy(hidden, weight.detach(), targets, spy).backward()
    assert asked == [(False, False), (True, False)]
    assert hidden.grad is not None


def test_rows_without_a_label_cost_no_logits() -> None:
    hidden, weight, targets = inputs(4096, 0.1)
    rows = 0

    def spy(
        h: Tensor, w: Tensor, t: Tensor, f: Tensor | None, for_hidden: bool, for_weight: bool
    ) -> loss.Chunk:
        nonlocal rows
        rows += len(h)
        return chunk_loss(h, w, t, f, for_hidden, for_weight)

    cross_entropy(hidden, weight, targets, spy)
    assert rows < int((targets != -100).sum()) + max(loss.MIN_CHUNK, loss.CHUNK_LOGITS // VOCAB)
