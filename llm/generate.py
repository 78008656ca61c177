"""Batched decoding with a cache of fixed shape, and the likelihood of given text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm.model.attention import Cache
from llm.model.transformer import Transformer

if TYPE_CHECKING:
    from llm.data.shards import TokenStream


def _batches(lengths: list[int], size: int) -> list[list[int]]:
    """Indices of neighbours in length, so that little is padded; ties by index, so that the split is deterministic."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[i : i + size] for i in range(0, len(order), size)]


def _left_padded(rows: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (batch, longest) with padding on the left, and how much padding each row has (batch,)."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
    return ids, torch.tensor([longest - len(row) for row in rows], device=device)


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: list[list[int]],
    max_new_tokens: int,
    eos_id: int,
    batch_size: int = 32,
    on_progress: Callable[[int], object] | None = None,
) -> list[list[int]]:
    """Greedy continuations of `prompts`, without the end token, in the prompts' order.

    Prompts of different lengths share a batch: padding stands on the left, is masked, and does not shift positions, so
    a result does not depend on its neighbours. Where prompt and answer exceed the context, the answer is cut short.
    """
    device = next(model.parameters()).device
    limit = model.config.max_position_embeddings
    results: list[list[int]] = [[] for _ in prompts]
    for rows in _batches([len(prompt) for prompt in prompts], batch_size):
        ids, padding = _left_padded([prompts[i] or [eos_id] for i in rows], eos_id, device)
        width = ids.shape[1]
        slots = min(width + max_new_tokens, max(limit, width))
        cache = Cache.empty(model.config, len(rows), slots, device, model.compute_dtype)
        index = torch.arange(slots, device=device)
        real = index[None, None, None, :] >= padding[:, None, None, None]  # (batch, 1, 1, slots)
        window = model.config.sliding_window or slots
        finished = torch.zeros(len(rows), dtype=torch.bool, device=device)
        at, current, out = 0, ids, []
        while at + current.shape[1] <= slots:
            seq = current.shape[1]
            here = index[at : at + seq]
            distance = here[:, None] - index[None, : at + seq]
            mask = ((distance >= 0) & (distance < window))[None, None] & real[..., : at + seq]
            # Padding rows may look at themselves: a query without a key would be NaN.
            mask = mask | ((distance == 0)[None, None])
            positions = (here[None] - padding[:, None]).clamp(min=0)
            hidden = model.hidden_states(current, positions=positions, mask=mask, cache=cache, at=at)
            chosen = model.lm_head(hidden[:, -1]).argmax(-1)
            at += seq
            finished |= chosen == eos_id
            out.append(torch.where(finished, eos_id, chosen))
            if len(out) == max_new_tokens or bool(finished.all()):
                break
            current = out[-1][:, None]
        tokens = torch.stack(out, dim=1).tolist() if out else [[] for _ in rows]
        for i, answer in zip(rows, tokens, strict=True):
            results[i] = answer[: answer.index(eos_id)] if eos_id in answer else answer
        if on_progress:
            on_progress(len(rows))
    return results


@torch.inference_mode()
def log_likelihoods(
    model: Transformer,
    prompts: list[list[int]],
    continuations: list[list[int]],
    batch_size: int = 32,
    on_progress: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each continuation after its prompt.

    Returns:
        Sums over the continuation's tokens (nats, float64), and whether greedy decoding would have produced it.
        A pair longer than the context loses tokens of the prompt's beginning.
    """
    device = next(model.parameters()).device
    limit = model.config.max_position_embeddings
    pairs = [(p + c)[-limit:] for p, c in zip(prompts, continuations, strict=True)]
    sums, greedy = np.zeros(len(pairs)), np.zeros(len(pairs), dtype=bool)
    for rows in _batches([len(pair) for pair in pairs], batch_size):
        longest = max(len(pairs[i]) for i in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        for j, i in enumerate(rows):
            ids[j, : len(pairs[i])] = torch.tensor(pairs[i])  # padding on the right is never looked at
        hidden = model.hidden_states(ids.to(device))
        for j, i in enumerate(rows):
            count = min(len(continuations[i]), len(pairs[i]) - 1)
            end = len(pairs[i])
            logits = model.lm_head(hidden[j, end - 1 - count : end - 1]).double()
            wanted = ids[j, end - count : end].to(device)
            picked = logits.log_softmax(-1).gather(-1, wanted[:, None])
            sums[i] = float(picked.sum())
            greedy[i] = bool((logits.argmax(-1) == wanted).all())
        if on_progress:
            on_progress(len(rows))
    return sums, greedy


@torch.inference_mode()
def stream_nll(
    model: Transformer, stream: TokenStream, tokens: int | None, sequence_length: int, batch_size: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood of the first `tokens` tokens of a stream, in windows that do not overlap.

    Every token but the first of the stream is predicted once, from those before it in its window.

    Returns:
        Per window: the summed loss (nats, float64) and the number of predicted tokens.
    """
    device = next(model.parameters()).device
    total = min(len(stream), tokens or len(stream)) - 1
    starts = list(range(0, total, sequence_length))
    sums, counts = np.zeros(len(starts)), np.zeros(len(starts), dtype=np.int64)
    for first in range(0, len(starts), batch_size):
        for full in (True, False):  # the last window may be shorter: it goes alone
            group = [
                i
                for i in range(first, min(first + batch_size, len(starts)))
                if (starts[i] + sequence_length <= total) == full
            ]
            if not group:
                continue
            length = min(sequence_length, total - starts[group[0]])
            rows = np.stack([stream.read(starts[i], length + 1) for i in group]).astype(np.int64)
            data = torch.from_numpy(rows).to(device)
            logits = model(data[:, :-1]).float()
            loss = F.cross_entropy(logits.flatten(0, 1), data[:, 1:].flatten(), reduction="none").view(
                len(group), length
            )
            sums[group] = loss.view(len(group), length).double().sum(1).cpu().numpy()
            counts[group] = length
    return sums, counts
