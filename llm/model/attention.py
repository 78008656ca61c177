"""Causal attention with rotary positions and grouped key-value heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.model.config import Config
from llm.model.rope import frequencies

Pair = tuple[Tensor, Tensor]

# at most, of the plain form: more compute less, down to half, but each compiles to kernels of its
# own
QUERY_BLOCKS = 4
MIN_QUERIES = 128  # of a block, so that matrix products stay large


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
    """Cosines and sines (…, seq, head_dim) of rotary positions (llm/model/rope.py), float32."""
    turns, factor = frequencies(
        config.head_dim, config.rope_theta, config.rope_scaling, positions.device
    )
    angles = positions.float()[..., None] * turns
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * factor, angles.sin() * factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + head_dim/2) of x (batch, heads, seq, head_dim); Hugging Face's layout."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention; q (batch, heads, seq, head_dim), k and v (batch, kv_heads, keys,
    head_dim).

    `mask` is true where a query may look, broadcast to (batch, 1, seq, keys); None means causal.
    While compiling for a CPU the plain form is used, which the compiler fuses; elsewhere PyTorch's
    own kernels, which keep no scores for the backward pass.
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if q.device.type != "cpu" or not torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    elif (
        q.shape[2] != k.shape[2]
    ):  # decoding: the keys are a cache, of which any part may be in use
        return _plain(q, k, v, mask)
    # Blocks of queries against the keys before their end: what no query of a block may see is not
    # computed.
    size = max(MIN_QUERIES, -(-q.shape[2] // QUERY_BLOCKS))
    starts = range(0, q.shape[2], size)
    ends = [min(start + size, q.shape[2]) for start in starts]
    parts = [
        _plain(q[:, :, start:end], k[:, :, :end], v[:, :, :end], mask[..., start:end, :end])
        for start, end in zip(starts, ends, strict=True)
    ]
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(-1).to(v.dtype) @ v


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245), optionally with normalised
    queries and keys.
    """

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

    def project(self, x: Tensor, rotary: Pair) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (batch, heads, seq, head_dim), keys and values (batch, kv_heads, …) of x (batch,
        seq, hidden).
        """
        batch, seq, _ = x.shape
        q, k, v = (
            proj(x).view(batch, seq, -1, self.head_dim).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = rotary
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def join(self, heads: Tensor) -> Tensor:
        """What goes to the residual stream (batch, seq, hidden) of heads' outputs (batch, heads,
        seq, head_dim).
        """
        batch, _, seq, _ = heads.shape
        return self.o_proj(heads.transpose(1, 2).reshape(batch, seq, -1))

    def forward(self, x: Tensor, rotary: Pair, mask: Tensor | None) -> Tensor:
        """x (batch, seq, hidden); mask as in `attend`."""
        return self.join(attend(*self.project(x, rotary), mask))
