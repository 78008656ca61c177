"""Rotary positions (Su et al. 2021, arXiv:2104.09864), stretched to longer contexts as
`transformers` stretches them.

Formulas: `transformers.modeling_rope_utils`. `dynamic` and `longrope` are not among them: their
    angles depend on the
length of the sequence at hand, so a cache of rotated keys would hold those of another length.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def frequencies(
    head_dim: int, theta: float, scaling: dict[str, Any] | None, device: torch.device | None = None
) -> tuple[Tensor, float]:
    """Radians per position of each rotary pair (head_dim / 2,), float32, and a factor on cosines
    and sines.

    linear: Chen et al. 2023, arXiv:2306.15595. yarn: Peng et al. 2023, arXiv:2309.00071. llama3:
        Llama 3.1's.
    """
    plain = 1.0 / theta ** (
        torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    )
    kind = scaling["rope_type"] if scaling else "default"
    if scaling is None or kind == "default":
        return plain, 1.0
    factor = float(scaling["factor"])
    if kind == "linear":
        return plain / factor, 1.0
    if kind == "llama3":
        return _llama3(plain, factor, scaling), 1.0
    return _yarn(plain, head_dim, theta, factor, scaling)


def _llama3(plain: Tensor, factor: float, scaling: dict[str, Any]) -> Tensor:
    """Long wavelengths are divided by `factor`, short ones kept, those between are interpolated."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    wavelengths = 2 * math.pi / plain
    smooth = (context / wavelengths - low) / (high - low)
    between = (1 - smooth) * plain / factor + smooth * plain
    stretched = torch.where(wavelengths > context / low, plain / factor, plain)
    medium = (wavelengths >= context / high) & (wavelengths <= context / low)
    return torch.where(medium, between, stretched)


def _yarn(
    plain: Tensor, head_dim: int, theta: float, factor: float, scaling: dict[str, Any]
) -> tuple[Tensor, float]:
    """Pairs that turn often within the context are kept, those that turn seldom are divided by
    `factor`.
    """
    context = scaling["original_max_position_embeddings"]

    def pair_of(turns: float) -> float:
        return head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_of(scaling.get("beta_fast") or 32), pair_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    if first == last:
        last += 0.001
    pairs = torch.arange(head_dim // 2, device=plain.device, dtype=torch.float32)
    ramp = ((pairs - first) / (last - first)).clamp(0, 1)
    stretched = (1.0 / (factor * (1.0 / plain))) * ramp + plain * (1 - ramp)

    def scale(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    attention = scaling.get("attention_factor")
    if attention is None:
        both = scaling.get("mscale"), scaling.get("mscale_all_dim")
        attention = scale(both[0]) / scale(both[1]) if both[0] and both[1] else scale(1.0)
    return stretched, float(attention)
