"""The learning rate of each step."""

from __future__ import annotations

import math


def learning_rate(
    step: int, steps: int, peak: float, schedule: str, warmup: float, decay: float, floor: float
) -> float:
    """Rate for step 0 … steps-1.

    Both rise linearly over `warmup`·steps. `wsd` then stays at the peak and falls linearly over the
    last `decay`·steps (warmup-stable-decay: Hu et al. 2024, arXiv:2404.06395; linear to zero:
    Bergsma et al. 2025, arXiv:2502.15938); `cosine` falls over all the rest (Loshchilov and Hutter
    2016, arXiv:1608.03983). `floor` is the share of the peak that they fall to; it is reached after
    the last step."""
    rise = warmup * steps
    if step < rise:
        return peak * min(1.0, (step + 1) / rise)
    if schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))
    else:
        share = min(1.0, (steps - step) / max(1.0, decay * steps))
    return peak * (floor + (1 - floor) * share)
