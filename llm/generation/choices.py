"""The likelihood of each of several answers to one prompt, with the prompt read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from llm.model.transformer import Transformer

PROMPT, PAD = 0, -1  # segments of a row; answer k is segment k + 1


@torch.inference_mode()
def choice_log_likelihoods(
    model: Transformer,
    prompts: list[list[int]],
    choices: list[list[list[int]]],
    batch_tokens: int = 8192,
    on_progress: Callable[[int], object] | None = None,
) -> list[np.ndarray]:
    """Log-probability (nats, float64) of every choice after its prompt; one array (choices,) a
    prompt.

    A row holds the prompt once and its choices after it; each choice sees the prompt and itself and
    stands at the positions right after the prompt, so the values are those of separate rows at a
    fraction of the work (ten class names of three tokens after 380 tokens of text: a ninth).

    Processes that were started together share the batches, and all of them get all results.

    Args:
        prompts: token ids, none empty.
        choices: for each prompt the token ids of its choices, none empty.
        batch_tokens: bounds rows · longest row.
    """
    device = next(model.parameters()).device
    from llm.parallel import processes

    results: dict[int, np.ndarray] = {}
    lengths = [
        len(p) + sum(len(c) - 1 for c in options)
        for p, options in zip(prompts, choices, strict=True)
    ]
    order = sorted(range(len(prompts)), key=lambda i: (-lengths[i], i))
    batches = []
    while order:
        rows = [order.pop()]
        while order and (len(rows) + 1) * lengths[order[-1]] <= batch_tokens:
            rows.append(order.pop())
        batches.append(rows)
    for rows in batches[processes.rank() :: processes.world_size()]:
        ids, positions, mask = _layout(
            [prompts[i] for i in rows], [choices[i] for i in rows], model.config.sliding_window
        )
        hidden = model.hidden_states(
            ids.to(device), positions=positions.to(device), mask=mask.to(device)
        )
        for row, i in enumerate(rows):
            results[i] = _read(model, hidden[row], len(prompts[i]), choices[i])
        if on_progress:
            on_progress(len(rows))
    own = len(results)
    results = processes.all_gather_dict(results)
    if on_progress and len(results) > own:
        on_progress(len(results) - own)
    return [results[i] for i in range(len(prompts))]


def _layout(
    prompts: list[list[int]], choices: list[list[list[int]]], window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids and positions (batch, seq), and the mask (batch, 1, seq, seq), true where a query
    may look.
    """
    rows = []
    for prompt, options in zip(prompts, choices, strict=True):
        row = [(token, at, PROMPT) for at, token in enumerate(prompt)]
        for k, option in enumerate(options):  # a choice's last token is predicted, never read
            row += [(token, len(prompt) + j, k + 1) for j, token in enumerate(option[:-1])]
        rows.append(row)
    longest = max(map(len, rows))
    table = torch.tensor(
        [row + [(0, 0, PAD)] * (longest - len(row)) for row in rows]
    )  # (batch, seq, 3)
    ids, positions, segments = table.unbind(-1)
    query, key = segments[:, :, None], segments[:, None, :]
    index = torch.arange(longest)
    mask = (index[:, None] >= index[None, :]) & ((key == PROMPT) | (key == query))
    if window is not None:
        mask = mask & (positions[:, :, None] - positions[:, None, :] < window)
    return ids, positions, mask[:, None]


def _read(
    model: Transformer, hidden: Tensor, prompt: int, options: Sequence[Sequence[int]]
) -> np.ndarray:
    """Sums (choices,) from one row's hidden states (seq, hidden)."""
    at: list[int] = []
    wanted: list[int] = []
    sizes, start = [], prompt
    for option in options:
        at += [prompt - 1, *range(start, start + len(option) - 1)]
        wanted += option
        sizes.append(len(option))
        start += len(option) - 1
    logits = model.lm_head(hidden[at]).double()
    picked = logits.log_softmax(-1).gather(-1, torch.tensor(wanted, device=logits.device)[:, None])[
        :, 0
    ]
    return np.array([float(part.sum()) for part in picked.cpu().split(sizes)])
