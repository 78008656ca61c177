"""Initialization with induction heads, a circuit that copies from the context.

A model learns to continue a repeated passage with heads in two consecutive layers. Those of the
first write the previous tokens to each position. Those of the second find positions whose previous
tokens are the current ones, and copy the token there (induction heads: Olsson et al. 2022,
arXiv:2209.11895). They form late, after more tokens than a small budget has. This module
initializes such heads, and the output that reads what they copy, instead of random ones, and
training starts from them (hand-made attention: Trockman and Kolter 2023, arXiv:2305.09828).
docs/LOG.md has the measured gain.
"""

from __future__ import annotations

from typing import cast

import torch

from llm.model.attention import Attention
from llm.model.transformer import Transformer

# Previous tokens that the second layer compares: one alone often stands at several positions.
COMPARED = 3
# Previous tokens that the first layer writes to each position, where the model has room. Training
# uses the fourth: at the start of the answer to "… `name`?" the last two tokens of the name stand
# three and four positions back.
WRITTEN_BACK = 4
# Rotary pairs that identify a previous position: the fastest, in which neighbours differ most.
FAST_PAIRS = 8
# Tokens are compared in rotary pairs that turn less than one radian over this distance.
DISTANCE = 256
# Factor on queries and on keys: an exact match must outweigh hundreds of chance matches.
SHARPNESS = 2.0
# Weight of what the first layer writes, relative to the embedding.
WRITTEN = 1.5
# Weight of what the heads copy, in the residual stream and in the output projection.
COPIED, READ = 0.5, 0.13


@torch.no_grad()
def seed_induction(model: Transformer, seed: int) -> None:
    """Initialize heads of the first two layers, and the output, as an induction circuit, in place.

    In the first layer four heads write the tokens at distances 1 to 4 to each position; three heads
    do where the model has only three, or is too narrow for the fourth. In the second layer one head
    finds positions that follow the current three tokens, and copies the token there; more matching
    tokens weigh more, and the nearest weighs most. Another head compares one token alone. The
    output projection predicts what is copied.

    Dimension 0 of the embedding becomes a constant, from which the first layer computes queries and
    keys that depend on the position alone. The circuit needs two layers, three heads and a hidden
    size of some 3 · head_dim, and untied embeddings, whose scale is that of the residual stream;
    other models are not changed.
    """
    config, size = model.config, model.config.head_dim
    half, hidden = size // 2, model.config.hidden_size
    # Radians per position.
    angles = config.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    pairs = torch.nonzero(angles * DISTANCE < 1)[:, 0]
    # Dimensions in which the nearest token is compared, and those before it.
    nearest = len(pairs)
    second = nearest * 3 // 5
    widths = [nearest, second, nearest - second]
    room = (hidden - 1 - 2 * size) // max(nearest, 1)  # subspaces for previous tokens
    distances = min(WRITTEN_BACK, config.num_attention_heads, room)
    if (
        config.num_hidden_layers < 2
        or distances < COMPARED
        or config.tie_word_embeddings
        or half < FAST_PAIRS
        or widths[-1] < 1
    ):
        return
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(hidden - 1, hidden - 1, generator=generator)
    basis = torch.cat((torch.zeros(1, hidden - 1), torch.linalg.qr(random.double())[0].float())).T
    # Orthogonal subspaces of the residual stream. The embeddings are removed from those that heads
    # write to, so that they hold nothing else.
    sizes = [nearest] * distances + [size] * 2
    *before, copied, token = basis[: sum(sizes)].split(sizes)
    embeddings = model.model.embed_tokens.weight
    written = torch.cat((*before, copied)).to(embeddings.device)
    embeddings -= embeddings @ written.T @ written
    scale = model.embedding_std
    embeddings[:, 0] = 5.0 * scale
    first, second_layer = (cast(Attention, model.model.layers[i].self_attn) for i in (0, 1))
    group = config.num_attention_heads // config.num_key_value_heads  # query heads of a kv head

    def rows(head: int) -> slice:
        return slice(head * size, (head + 1) * size)

    key = torch.zeros(size)
    key[:FAST_PAIRS] = 1.0
    for head in range(distances):
        turn = (head + 1) * angles[:FAST_PAIRS]
        query = torch.zeros(size)
        query[:FAST_PAIRS], query[half : half + FAST_PAIRS] = turn.cos(), -turn.sin()
        q, kv = rows(head), rows(head // group)
        first.q_proj.weight[q] = first.k_proj.weight[kv] = first.v_proj.weight[kv] = 0.0
        first.q_proj.weight[q, 0] = query.to(embeddings.device)
        first.k_proj.weight[kv, 0] = key.to(embeddings.device)
        first.v_proj.weight[kv][:nearest] = token[:nearest]
        first.o_proj.weight[:, q][:, :nearest] = WRITTEN * scale * before[head].T

    slow = torch.cat((pairs, pairs + half))
    # Each token gets a random share of the dimensions, so that fast and slow pairs mix.
    shares = slow[torch.randperm(2 * nearest, generator=generator)].split(widths)
    # The current token stands in the embedding, with weight 1, and the others where heads wrote.
    now = [WRITTEN * token[:nearest], *before]
    for head, compared in ((0, COMPARED), (1, 1)):
        q, kv = rows(head), rows(head // group)
        second_layer.q_proj.weight[q] = second_layer.k_proj.weight[kv] = 0.0
        for back, (share, width) in enumerate(zip(shares, widths, strict=True)):
            second_layer.k_proj.weight[kv][share] = now[back + 1][:width]
            if back < compared:
                second_layer.q_proj.weight[q][share] = now[back][:width]
        second_layer.v_proj.weight[kv] = token
        second_layer.o_proj.weight[:, q] = COPIED * scale * copied.T
    model.lm_head.weight += READ * embeddings @ token.T @ copied

    if config.qk_norm:
        fast = torch.cat((torch.arange(FAST_PAIRS), torch.arange(half, half + FAST_PAIRS)))
        for norm in (first.q_norm, first.k_norm):
            norm.weight[fast] = SHARPNESS
        for norm in (second_layer.q_norm, second_layer.k_norm):
            norm.weight[slow] = SHARPNESS
