"""Starting with a circuit that copies from the context.

A model learns to continue a repeated passage through two heads in consecutive layers: one writes to each position which
token stood before it, the other looks for positions that were written the present token, and copies what stands there
(induction heads: Olsson et al. 2022, arXiv:2209.11895). They form late, after more tokens than a small budget has.
Here one such pair is drawn instead of two random heads, and training takes it from there (setting attention up by
hand: Trockman and Kolter 2023, arXiv:2305.09828). docs/LOG.md has what it is worth.
"""

from __future__ import annotations

from typing import cast

import torch

from llm.model.attention import Attention
from llm.model.transformer import Transformer

FAST_PAIRS = 8  # rotary pairs that find the position before: the fastest, at which neighbours differ most


@torch.no_grad()
def seed_induction(model: Transformer, seed: int) -> None:
    """Draw the first heads of the first two layers as an induction circuit, in place.

    Dimension 0 of the embedding becomes a constant, from which the first head makes a query and key that depend on the
    position alone. Content is matched in the slow half of the rotary pairs, which distance hardly turns.
    Needs two layers and a hidden size above 2 · head_dim; smaller models are left as they are.
    """
    config, size = model.config, model.config.head_dim
    half, content = size // 2, 2 * (size // 4)  # content: dimensions in which tokens are compared
    if config.num_hidden_layers < 2 or config.hidden_size - 1 < 2 * content + size or half < FAST_PAIRS:
        return
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(config.hidden_size - 1, config.hidden_size - 1, generator=generator)
    basis = torch.cat((torch.zeros(1, config.hidden_size - 1), torch.linalg.qr(random.double())[0].float()))
    # Orthogonal subspaces of the residual stream: the token compared, the token before, the token copied.
    present, before, copied = (
        basis[:, :content].T,
        basis[:, content : 2 * content].T,
        basis[:, 2 * content :][:, :size].T,
    )
    slow = torch.cat((torch.arange(half - content // 2, half), torch.arange(size - content // 2, size)))
    scale = model.embedding_std
    model.model.embed_tokens.weight[:, 0] = 5.0 * scale

    angles = config.rope_theta ** (-torch.arange(FAST_PAIRS, dtype=torch.float32) / half)  # radians per position
    query, key = torch.zeros(size), torch.zeros(size)
    query[:FAST_PAIRS], query[half : half + FAST_PAIRS] = angles.cos(), -angles.sin()  # one position back
    key[:FAST_PAIRS] = 1.0
    first, second = (cast(Attention, model.model.layers[i].self_attn) for i in (0, 1))
    for projection, row in ((first.q_proj, query), (first.k_proj, key)):
        projection.weight[:size] = 0.0
        projection.weight[:size, 0] = row.to(projection.weight.device)
    first.v_proj.weight[:size] = 0.0
    first.v_proj.weight[:content] = present
    first.o_proj.weight[:, :content] = 1.5 * scale * before.T

    for projection, rows in ((second.q_proj, present), (second.k_proj, before)):
        projection.weight[:size] = 0.0
        projection.weight[slow] = rows
    second.v_proj.weight[:size] = copied
    second.o_proj.weight[:, :size] = scale * copied.T
