"""Initialization with induction heads, a circuit that copies from the context.

A model learns to continue a repeated passage with two heads in consecutive layers. The first writes
the previous token to each position. The second finds positions whose previous token is the current
token, and copies the token there (induction heads: Olsson et al. 2022, arXiv:2209.11895). They form
late, after more tokens than a small budget has. This module initializes such heads instead of
random ones, and training starts from them (hand-made attention: Trockman and Kolter 2023,
arXiv:2305.09828). docs/LOG.md has the measured gain.
"""

from __future__ import annotations

from typing import cast

import torch

from llm.model.attention import Attention
from llm.model.transformer import Transformer

# Rotary pairs that identify the previous position: the fastest, in which neighbours differ most.
FAST_PAIRS = 8
SELF = 0.5  # strength of the query and of the key that keep a position from attending to itself
# Factor on queries and on keys: an exact match must outweigh hundreds of chance matches.
SHARPNESS = 2.0


@torch.no_grad()
def seed_induction(model: Transformer, seed: int) -> None:
    """Initialize heads of the first two layers as induction circuits, in place.

    In the first layer one head writes the previous token to each position, and another head the
    token before that. In the second layer one head finds positions that follow the current two
    tokens, and copies the token there. Another head finds positions whose second to last token is
    the same, and copies too. It matches over a gap of one token that may differ, as between a name
    in a question and its explanation in the text ("name: it is …", "what is name?").

    Dimension 0 of the embedding becomes a constant, from which the first layer computes queries and
    keys that depend on the position alone. Tokens are compared in the slow half of the rotary
    pairs, which distance hardly rotates. The circuit needs two layers and a hidden size above
    3 · head_dim, and the second circuit two key-value heads; smaller models are not changed.
    """
    config, size = model.config, model.config.head_dim
    half, content = size // 2, 2 * (size // 4)  # content: dimensions in which tokens are compared
    if (
        config.num_hidden_layers < 2
        or config.hidden_size - 1 < 2 * content + 2 * size
        or half < FAST_PAIRS
    ):
        return
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(config.hidden_size - 1, config.hidden_size - 1, generator=generator)
    basis = torch.cat(
        (torch.zeros(1, config.hidden_size - 1), torch.linalg.qr(random.double())[0].float())
    )
    # Orthogonal subspaces of the residual stream. The embeddings are removed from those that heads
    # write to, so that they hold nothing else.
    before, before_that, copied, token = basis.split(
        [content, content, size, config.hidden_size - 1 - 2 * content - size], dim=1
    )
    before, before_that, copied, token = before.T, before_that.T, copied.T, token.T[:size]
    present = token[:content]
    embeddings = model.model.embed_tokens.weight
    written = torch.cat((before, before_that, copied)).to(embeddings.device)
    embeddings -= embeddings @ written.T @ written
    slow = torch.cat(
        (torch.arange(half - content // 2, half), torch.arange(size - content // 2, size))
    )
    scale = model.embedding_std
    embeddings[:, 0] = 5.0 * scale
    first, second = (cast(Attention, model.model.layers[i].self_attn) for i in (0, 1))
    group = config.num_attention_heads // config.num_key_value_heads  # query heads of a kv head
    gap = config.num_key_value_heads > 1

    def rows(head: int) -> slice:
        return slice(head * size, (head + 1) * size)

    # Radians per position.
    angles = config.rope_theta ** (-torch.arange(FAST_PAIRS, dtype=torch.float32) / half)
    key = torch.zeros(size)
    key[:FAST_PAIRS] = 1.0
    for back, subspace in ((1, before), (2, before_that))[: 1 + gap]:
        query = torch.zeros(size)
        query[:FAST_PAIRS], query[half : half + FAST_PAIRS] = (
            (back * angles).cos(),
            -(back * angles).sin(),
        )
        q, kv = rows((back - 1) * group), rows(back - 1)
        first.q_proj.weight[q] = first.k_proj.weight[kv] = first.v_proj.weight[kv] = 0.0
        first.q_proj.weight[q, 0] = query.to(first.q_proj.weight.device)
        first.k_proj.weight[kv, 0] = key.to(first.k_proj.weight.device)
        first.v_proj.weight[kv][:content] = present
        first.o_proj.weight[:, q][:, :content] = 1.5 * scale * subspace.T

    # The first head matches two tokens in a row, so that common words do not mislead it, but one
    # matching token is enough.
    even, odd, share = slow[0::2], slow[1::2], content // 2
    matches = [
        [(even, present[:share], before[:share]), (odd, before[:share], before_that[:share])],
        [(slow, before_that, before_that)],
    ]
    for number, parts in enumerate(matches[: 1 + gap]):
        q, kv = rows(number * group), rows(number)
        second.q_proj.weight[q] = second.k_proj.weight[kv] = 0.0
        for dimensions, query_rows, key_rows in parts:
            second.q_proj.weight[q][dimensions] = query_rows
            second.k_proj.weight[kv][dimensions] = key_rows
        if number == 1:  # a position matches itself best, so distance zero gets a low score
            second.q_proj.weight[q][:FAST_PAIRS, 0] = -SELF
            second.k_proj.weight[kv][:FAST_PAIRS, 0] = SELF
        second.v_proj.weight[kv] = token
        second.o_proj.weight[:, q] = scale * copied.T

    if config.qk_norm:
        fast = torch.cat((torch.arange(FAST_PAIRS), torch.arange(half, half + FAST_PAIRS)))
        for norm in (first.q_norm, first.k_norm):
            norm.weight[fast] = SHARPNESS
        for norm in (second.q_norm, second.k_norm):
            norm.weight[slow] = norm.weight[fast] = SHARPNESS
