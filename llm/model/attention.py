"""Causal attention with rotary positions and grouped key-value heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.model.config import Config
from llm.model.rope import frequencies

Pair = tuple[Tensor, Tensor]

# Blocks of queries in compiled training, at most. More blocks compute less, down to half, but each
# block compiles to kernels of its own.
QUERY_BLOCKS = 4
MIN_QUERIES = 128  # queries in a block, so that matrix products stay large


class LayerCache(Protocol):
    """The keys and values that one layer remembers (llm/generation/kv_cache.py)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Store new keys and values, and return the heads' outputs; shapes as in `attend` below."""


class Linear(nn.Linear):
    """A linear map whose float32 weight is cast to the activations' type at use (mixed precision)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(
            x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        )


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019, arXiv:1910.07467), computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight.float()).to(x.dtype)


def rotary_table(config: Config, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (…, seq, head_dim) of rotary positions, float32."""
    radians, factor = frequencies(
        config.head_dim, config.rope_theta, config.rope_scaling, positions.device
    )
    angles = positions.float()[..., None] * radians
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * factor, angles.sin() * factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + head_dim/2) of x (batch, heads, seq, head_dim), as Hugging Face does."""
    half = x.shape[-1] // 2
    rotated = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + rotated * sin


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax attention (batch, heads, seq, head_dim).

    A function compiled for a CPU uses the plain form, which the compiler fuses. All others use
    PyTorch's own kernels, which keep no scores for the backward pass.

    Args:
        q: (batch, heads, seq, head_dim).
        k: (batch, kv_heads, keys, head_dim); v has the same shape.
        mask: true where a query may look, broadcast to (batch, 1, seq, keys); None means causal.
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if q.device.type != "cpu" or not torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    elif q.shape[2] != k.shape[2]:  # the keys are a cache, and any part of it may be in use
        return _plain(q, k, v, mask)
    return attend_in_blocks(_plain, q, k, v, mask, max(MIN_QUERIES, -(-q.shape[2] // QUERY_BLOCKS)))


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(-1).to(v.dtype) @ v


def attend_grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Return attention (batch, heads, seq, head_dim) without a copy of k or v for each query head.

    The query heads of a key-value head are read as further queries. In decoding, keys and values
    are most of what a step reads from memory.

    Args:
        q: (batch, heads, seq, head_dim).
        k: (batch, kv_heads, keys, head_dim); v has the same shape.
        mask: (batch or 1, 1, seq, keys), true where a query may look.
    """
    batch, heads, seq, size = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    queries = q.reshape(batch, kv_heads, -1, size)
    # The compiler turns products with a single query into loops, which take four times as long as
    # the library's kernel.
    single = queries.shape[2] == 1 and q.device.type == "cpu" and torch.compiler.is_compiling()
    if single:
        queries = queries.expand(-1, -1, 2, -1)
    scores = (queries @ k.transpose(-1, -2)).float() * size**-0.5
    scores = scores.view(batch, kv_heads, -1, seq, keys).masked_fill(~mask[:, :, None], -torch.inf)
    outputs = scores.softmax(-1).to(v.dtype).view(batch, kv_heads, -1, keys) @ v
    return (outputs[:, :, :1] if single else outputs).reshape(batch, heads, seq, size)


def attend_in_blocks(
    form: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    size: int,
) -> Tensor:
    """Return causal attention of `size` queries at a time to the keys before their end.

    Scores that no query of a block may see are not computed.

    Args:
        form: `_plain` or `attend_grouped`, which say the shapes.
        mask: (…, seq, seq), true where a query may look; nothing after the query itself.
    """
    starts = range(0, q.shape[2], size)
    ends = [min(start + size, q.shape[2]) for start in starts]
    parts = [
        form(q[:, :, start:end], k[:, :, :end], v[:, :, :end], mask[..., start:end, :end])
        for start, end in zip(starts, ends, strict=True)
    ]
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245).

    Queries and keys are normalised where the configuration says so."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        bias = config.qkv_bias or config.attention_bias
        self.q_proj = Linear(config.hidden_size, config.num_attention_heads * config.head_dim, bias)
        self.k_proj = Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias)
        self.v_proj = Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias)
        self.o_proj = Linear(
            config.num_attention_heads * config.head_dim, config.hidden_size, config.attention_bias
        )
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.qk_norm = config.qk_norm

    def forward(
        self, x: Tensor, rotary: Pair, mask: Tensor | None, cache: LayerCache | None = None
    ) -> Tensor:
        """Return what the residual stream receives, (batch, seq, hidden).

        Args:
            x: (batch, seq, hidden).
            rotary: cosines and sines, (batch or 1, 1, seq, head_dim) each.
            mask: as in `attend`.
            cache: stores keys and values, and attends in place of `attend`. It may return outputs
                of the last position only.
        """
        batch, seq, _ = x.shape
        q, k, v = (
            proj(x).view(batch, seq, -1, self.head_dim).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = rotary
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        heads = attend(q, k, v, mask) if cache is None else cache.attend(q, k, v, mask)
        return self.o_proj(heads.transpose(1, 2).reshape(batch, heads.shape[2], -1))
