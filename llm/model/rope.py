"""Rotary positions (Su et al. 2021, arXiv:2104.09864), scaled to longer contexts.

The formulas are those of `transformers.modeling_rope_utils`. `dynamic` and `longrope` are not
supported: their angles depend on the length of the current sequence, so keys that were rotated
earlier and cached would have the wrong angles.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def frequencies(
    head_dim: int, theta: float, scaling: dict[str, Any] | None, device: torch.device | None = None
) -> tuple[Tensor, float]:
    """Return the frequencies of the rotary pairs and a factor on cosines and sines.

    Scaling types: `linear` (Chen et al. 2023, arXiv:2306.15595), `yarn` (Peng et al. 2023,
    arXiv:2309.00071) and `llama3` (Llama 3.1).

    Args:
        head_dim: dimensions of an attention head.
        theta: base of the geometric sequence of wavelengths.
        scaling: `rope_type` and its fields (llm/model/rope_config.py); None for plain positions.
        device: device of the result.

    Returns:
        Radians per position (head_dim / 2,), float32, and the factor.
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
    """Divide low frequencies by `factor`, keep high ones, interpolate those between them."""
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
    """Keep pairs that turn often within the context; divide those that turn seldom by `factor`."""
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
        mscale, mscale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
        attention = scale(mscale) / scale(mscale_all) if mscale and mscale_all else scale(1.0)
    return stretched, float(attention)
