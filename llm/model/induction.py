"""Starting with a circuit that copies from the context.

A model learns to continue a repeated passage through two heads in consecutive layers: one writes to
each position which token stood before it, the other looks for positions that were written the
present token, and copies what stands there (induction heads: Olsson et al. 2022, arXiv:2209.11895).
They form late, after more tokens than a small budget has. Here one such pair is drawn instead of
two random heads, and training takes it from there (setting attention up by
hand: Trockman and Kolter 2023, arXiv:2305.09828). docs/LOG.md has what it is worth.
"""

from __future__ import annotations

from typing import cast

import torch

from llm.model.attention import Attention
from llm.model.transformer import Transformer

FAST_PAIRS = (
    8  # rotary pairs that find the position before: the fastest, at which neighbours differ most
)
SELF = 0.5  # strength of the query and of the key that keep a position from finding itself
SHARPNESS = (
    2.0  # factor on queries and on keys: an exact match must outweigh hundreds of chance ones
)


@torch.no_grad()
def seed_induction(model: Transformer, seed: int) -> None:
    """Draw heads of the first two layers as induction circuits, in place.

    In the first layer one head writes the token before to each position, and another the token two
    before. In the second layer one head looks for positions behind the present two tokens, and
    copies what stands there; another looks for positions with the same token two before, and copies
    too: over a gap of one token that may differ, as between a name in a question and its
        explanation in the text ("name: it is …", "what is name?").

    Dimension 0 of the embedding becomes a constant, from which the first layer makes queries and
    keys that depend on the position alone. Content is matched in the slow half of the rotary pairs,
    which distance hardly turns. Needs two layers and a hidden size above 3 · head_dim, and for the
    second circuit two key-value heads; smaller models are left as they are.
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
    # Orthogonal subspaces of the residual stream. What heads write starts empty, so that nothing
    # blurs it.
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
    shared = (
        config.num_attention_heads // config.num_key_value_heads
    )  # query heads of one key-value head
    gap = config.num_key_value_heads > 1

    def rows(head: int) -> slice:
        return slice(head * size, (head + 1) * size)

    angles = config.rope_theta ** (
        -torch.arange(FAST_PAIRS, dtype=torch.float32) / half
    )  # radians per position
    key = torch.zeros(size)
    key[:FAST_PAIRS] = 1.0
    for back, place in ((1, before), (2, before_that))[: 1 + gap]:
        query = torch.zeros(size)
        query[:FAST_PAIRS], query[half : half + FAST_PAIRS] = (
            (back * angles).cos(),
            -(back * angles).sin(),
        )
        q, kv = rows((back - 1) * shared), rows(back - 1)
        first.q_proj.weight[q] = first.k_proj.weight[kv] = first.v_proj.weight[kv] = 0.0
        first.q_proj.weight[q, 0] = query.to(first.q_proj.weight.device)
        first.k_proj.weight[kv, 0] = key.to(first.k_proj.weight.device)
        first.v_proj.weight[kv][:content] = present
        first.o_proj.weight[:, q][:, :content] = 1.5 * scale * place.T

    # The first looks for two tokens in a row, so that common words do not lead it astray, and is
    # content with one.
    even, odd, share = slow[0::2], slow[1::2], content // 2
    matches = [
        [(even, present[:share], before[:share]), (odd, before[:share], before_that[:share])],
        [(slow, before_that, before_that)],
    ]
    for number, parts in enumerate(matches[: 1 + gap]):
        q, kv = rows(number * shared), rows(number)
        second.q_proj.weight[q] = second.k_proj.weight[kv] = 0.0
        for place, sought, found in parts:
            second.q_proj.weight[q][place] = sought
            second.k_proj.weight[kv][place] = found
        if number == 1:  # a position matches itself best: its own distance, zero, is made repulsive
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
