"""From logits to tokens: penalties, filters and draws, in the order of transformers' logits
processors.

A draw is the inverse of the cumulative distribution at a number in [0, 1) that belongs to the
request and the position. So the same request chooses the same tokens whatever is decoded beside it,
and also where several tokens are checked at once (`llm.generation.prompt_lookup`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llm.params import Decoding


def draws(seed: int, count: int) -> np.ndarray:
    """The numbers (count,) in [0, 1) that a request's tokens are drawn with."""
    return np.random.default_rng(seed).random(count)


def greedy(settings: Sequence[Decoding]) -> bool:
    """Whether the highest logit is the choice of all."""
    return all(s.temperature == 0 and s.repetition_penalty == 1 for s in settings)


def choose(
    logits: Tensor, settings: Sequence[Decoding], seen: Tensor | None, at: Sequence[float]
) -> Tensor:
    """One token (n,) for each row of logits (n, vocab), float32.

    Args:
        settings: of each row.
        seen: (n, vocab), true for the tokens of prompt and answer so far; needed where a row has a
            repetition penalty.
        at: a number in [0, 1) for each row, see `draws`; not read where the temperature is 0.
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
    # A temperature or penalty beyond float32 leaves no distribution, and would draw a token behind
    # the vocabulary.
    return torch.where(cold | ~total[:, 0].isfinite(), best, drawn)


def penalised(scores: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Scores (n, vocab) of seen tokens made lower by `penalty` (n, 1) (Keskar et al. 2019,
    arXiv:1909.05858, §4.1).
    """
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def filtered(scores: Tensor, settings: Sequence[Decoding]) -> Tensor:
    """Scores (n, vocab) over temperature, -inf where a filter of the row removes the token.

    top_k: the k highest. top_p: the fewest whose probabilities reach p (Holtzman et al. 2020,
        arXiv:1904.09751).
    min_p: at least that share of the highest probability (Nguyen et al. 2024, arXiv:2407.01082).
        The best always stays.
    """
    vocab = scores.shape[-1]
    scores = scores / _column([s.temperature or 1.0 for s in settings], scores)
    if any(s.top_k or s.top_p for s in settings):
        ascending, order = scores.sort(-1)
        rank = torch.arange(vocab - 1, -1, -1, device=scores.device)  # 0 is the best
        k = torch.tensor([min(s.top_k or vocab, vocab) for s in settings], device=scores.device)[
            :, None
        ]
        # Equals of the k-th stay too, as in transformers.
        removed = ascending < ascending.gather(-1, vocab - k)
        below = ascending.masked_fill(removed, -torch.inf).softmax(-1).cumsum(-1)
        # Not `<= 1 - p`, of which rounding would make a filter where p is 1.
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
