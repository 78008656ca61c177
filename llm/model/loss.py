"""Cross-entropy in chunks: logits are computed for labelled tokens only, one chunk at a time.

The gradient is computed in the forward pass, chunk by chunk: the loss is a sum over tokens, so a
chunk's gradient does not depend on the other chunks (Hsu et al. 2024, arXiv:2410.10989, section
3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

IGNORE = -100  # target of a token without a label
CHUNK_LOGITS = 2**21  # logits of one chunk on a CPU: larger chunks do not fit its caches
CHUNK_LOGITS_CUDA = 2**27
# Tokens of one chunk at least. Smaller matrix products would cost less than the accumulation of
# each chunk's gradient.
MIN_CHUNK = 512

Chunk = tuple[Tensor, Tensor | None, Tensor | None]
ChunkLoss = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool, bool], Chunk]


def chunk_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    factors: Tensor | None,
    for_hidden: bool,
    for_weight: bool,
) -> Chunk:
    """Compute the summed loss of one chunk and its gradients.

    Args:
        hidden: hidden states (n, hidden).
        weight: output projection (vocab, hidden).
        targets: token ids (n,); rows with IGNORE do not count.
        factors: float32 (n,), what each row's loss is multiplied with; None: one.
        for_hidden: compute the gradient with respect to `hidden`.
        for_weight: compute the gradient with respect to `weight`.

    Returns:
        The loss (nats, a float32 scalar); the gradients (n, hidden) and (vocab, hidden), or None.
    """
    logits = (hidden @ weight.T).float()
    total = logits.logsumexp(-1)
    counted = targets != IGNORE
    wanted = targets.clamp(min=0)
    losses = torch.where(counted, total - logits.gather(-1, wanted[:, None])[:, 0], 0.0)
    if factors is not None:
        losses = losses * factors
    if not (for_hidden or for_weight):
        return losses.sum(), None, None
    hit = torch.arange(weight.shape[0], device=weight.device) == wanted[:, None]
    slope = torch.where(counted[:, None], (logits - total[:, None]).exp() - hit.float(), 0.0)
    if factors is not None:
        slope = slope * factors[:, None]
    slope = slope.to(hidden.dtype)
    return (
        losses.sum(),
        slope @ weight if for_hidden else None,
        slope.T @ hidden if for_weight else None,
    )


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        factors: Tensor | None,
        compute: ChunkLoss,
        wants: tuple[bool, bool],
    ) -> Tensor:
        for_hidden, for_weight = wants
        cast_weight = weight.to(hidden.dtype)
        labelled = (targets != IGNORE).nonzero()[:, 0]
        size = min(_chunk_size(hidden.device, weight), len(targets))
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        by_hidden = torch.zeros_like(hidden) if for_hidden else None
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if for_weight else None
        for rows in labelled.split(size):
            padding = size - len(rows)  # the last chunk is padded: one shape, one kernel
            chunk, labels = hidden[rows], targets[rows]
            weights = None if factors is None else factors[rows]
            if padding:
                chunk = torch.cat((chunk, chunk.new_zeros(padding, chunk.shape[1])))
                labels = torch.cat((labels, labels.new_full((padding,), IGNORE)))
                if weights is not None:
                    weights = torch.cat((weights, weights.new_zeros(padding)))
            value, slope_hidden, slope_weight = compute(
                chunk, cast_weight, labels, weights, for_hidden, for_weight
            )
            loss += value
            if by_hidden is not None:
                by_hidden[rows] = cast(Tensor, slope_hidden)[: len(rows)]
            if by_weight is not None:
                by_weight += cast(Tensor, slope_weight)
        ctx.save_for_backward(by_hidden, by_weight)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        by_hidden, by_weight = ctx.saved_tensors
        return (
            # In place: the graph is freed after one backward pass, and in float32 this is the
            # largest tensor of the loss.
            None if by_hidden is None else by_hidden.mul_(scale.to(by_hidden.dtype)),
            None if by_weight is None else by_weight.mul_(scale).to(ctx.weight_dtype),
            None,
            None,
            None,
            None,
        )


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each target (nats), float32 (batch, seq); 0 where there is none.

    Args:
        hidden: hidden states (batch, seq, hidden).
        weight: output projection (vocab, hidden); it is cast to the type of `hidden`.
        targets: token ids (batch, seq), IGNORE where there is no label.
    """
    states, wanted, cast_weight = hidden.flatten(0, 1), targets.flatten(), weight.to(hidden.dtype)
    losses = torch.zeros(len(wanted), device=hidden.device)
    for rows in (wanted != IGNORE).nonzero()[:, 0].split(_chunk_size(hidden.device, weight)):
        logits = (states[rows] @ cast_weight.T).float()
        losses[rows] = logits.logsumexp(-1) - logits.gather(-1, wanted[rows][:, None])[:, 0]
    return losses.view(targets.shape)


def _chunk_size(device: torch.device, weight: Tensor) -> int:
    budget = CHUNK_LOGITS_CUDA if device.type == "cuda" else CHUNK_LOGITS
    return max(MIN_CHUNK, budget // weight.shape[0])


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    compute: ChunkLoss = chunk_loss,
    factors: Tensor | None = None,
) -> Tensor:
    """Return the summed cross-entropy (nats, a float32 scalar) of `hidden` @ `weight`ᵀ.

    Args:
        hidden: hidden states (batch, seq, hidden).
        weight: output projection (vocab, hidden); it is cast to the type of `hidden`.
        targets: token ids (batch, seq), IGNORE where there is no label.
        compute: `chunk_loss`, or its compiled form.
        factors: float32 (batch, seq), what each token's loss is multiplied with; None: one.
    """
    grad = torch.is_grad_enabled()
    wants = (grad and hidden.requires_grad, grad and weight.requires_grad)
    flat = None if factors is None else factors.flatten()
    loss = _CrossEntropy.apply(
        hidden.flatten(0, 1), weight, targets.flatten(), flat, compute, wants
    )
    return cast(Tensor, loss)
