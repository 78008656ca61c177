"""Sampling: penalties, filters and draws, in the order of transformers' logits processors.

A draw is the inverse of the cumulative distribution at a number in [0, 1) that depends on the
request's seed and the position. So a request gets the same tokens in any batch, and also when
several tokens are checked at once (`llm.generation.prompt_lookup`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llm.params import Decoding


def draws(seed: int, count: int) -> np.ndarray:
    """Return the random numbers (count,) in [0, 1) for the tokens of a request."""
    return np.random.default_rng(seed).random(count)


def greedy(settings: Sequence[Decoding]) -> bool:
    """Tell whether all settings choose the highest logit."""
    return all(s.temperature == 0 and s.repetition_penalty == 1 for s in settings)


def only(scores: Tensor, allowed: Sequence[Sequence[int] | None]) -> Tensor:
    """Return scores (n, vocab), -inf for tokens that a row does not allow; None allows all."""
    kept = torch.zeros(scores.shape, dtype=torch.bool)
    for row, tokens in zip(kept, allowed, strict=True):
        row[slice(None) if tokens is None else tokens] = True
    return scores.masked_fill(~kept.to(scores.device), -torch.inf)


def choose(
    logits: Tensor, settings: Sequence[Decoding], seen: Tensor | None, at: Sequence[float]
) -> Tensor:
    """Choose a token for each row.

    Args:
        logits: (n, vocab), float32.
        settings: settings of each row.
        seen: (n, vocab), true for the tokens of prompt and answer so far; needed if a row has a
            repetition penalty.
        at: a number in [0, 1) for each row, see `draws`; not used if the temperature is 0.

    Returns:
        Token ids (n,).
    """
    if greedy(settings):
        return logits.argmax(-1)
    scores = logits
    if seen is not None:
        scores = penalised(scores, seen, _column([s.repetition_penalty for s in settings], logits))
    best = scores.argmax(-1)
    cold = torch.tensor([s.temperature == 0 for s in settings], device=logits.device)
    if bool(cold.all()):
        return best
    probabilities = filtered(scores, settings).double().softmax(-1)
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    point = torch.tensor(at, dtype=torch.float64, device=logits.device)[:, None] * total
    point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))
    drawn = torch.searchsorted(cumulative, point, right=True)[:, 0]
    # If a temperature or penalty overflows float32, there is no distribution, and the draw would be
    # a token outside the vocabulary.
    return torch.where(cold | ~total[:, 0].isfinite(), best, drawn)


def penalised(scores: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Return scores (n, vocab) with those of seen tokens lowered by `penalty` (n, 1).

    The method is by Keskar et al. 2019, arXiv:1909.05858, section 4.1.
    """
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def filtered(scores: Tensor, settings: Sequence[Decoding]) -> Tensor:
    """Return scores (n, vocab) divided by the temperature, -inf for tokens that a filter removes.

    `top_k` keeps the k highest scores. `top_p` keeps the fewest tokens whose probabilities sum to p
    (Holtzman et al. 2020, arXiv:1904.09751). `min_p` keeps tokens with at least that share of the
    highest probability (Nguyen et al. 2024, arXiv:2407.01082). The best token is always kept.
    """
    vocab = scores.shape[-1]
    scores = scores / _column([s.temperature or 1.0 for s in settings], scores)
    if any(s.top_k or s.top_p for s in settings):
        ascending, order = scores.sort(-1)
        rank = torch.arange(vocab - 1, -1, -1, device=scores.device)  # 0 is the best
        k = torch.tensor([min(s.top_k or vocab, vocab) for s in settings], device=scores.device)[
            :, None
        ]
        # Tokens with the same score as the k-th are kept too, as in transformers.
        removed = ascending < ascending.gather(-1, vocab - k)
        below = ascending.masked_fill(removed, -torch.inf).softmax(-1).cumsum(-1)
        # -1 disables the filter: with `<= 1 - p`, rounding could remove tokens where p is 1.
        p = _column([1.0 - s.top_p if s.top_p else -1.0 for s in settings], scores)
        removed = removed | ((below <= p) & (rank > 0))
        scores = scores.masked_fill(
            torch.zeros_like(removed).scatter(-1, order, removed), -torch.inf
        )
    if any(s.min_p for s in settings):
        probabilities = scores.softmax(-1)
        floor = _column([s.min_p or 0.0 for s in settings], scores) * probabilities.amax(
            -1, keepdim=True
        )
        scores = scores.masked_fill(probabilities < floor, -torch.inf)
    return scores


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
