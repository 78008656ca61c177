"""Frozen matrices in 4 bits: NF4 with doubly quantized scales (Dettmers et al. 2023,
arXiv:2305.14314).

`bitsandbytes` packs and unpacks them, so a base quantized by this module equals one quantized by
`transformers`. It has kernels for CUDA. On a CPU the same functions run in plain PyTorch, which is
slower than an unquantized base.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.errors import UserError
from llm.model.attention import Linear

# Bits of a weight: 4, plus a scale of 8 bits for 64 weights and one of 32 bits for 256 scales.
BITS = 4.127


def require_bitsandbytes() -> str:
    """Return the version of bitsandbytes.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "finetune.method=qlora needs bitsandbytes, which is not installed: pip install -c constraints.txt -e "
            "'.[qlora]', or set finetune.method=lora."
        )
    from importlib.metadata import version

    return version("bitsandbytes")


class _Product(torch.autograd.Function):
    """x Wᵀ with a packed W, which is unpacked in each pass so that no unpacked copy is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, state: Any) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(packed)
        ctx.state = state
        return F.linear(x, _unpack(packed, state, x.dtype))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (packed,) = ctx.saved_tensors
        by_x = slope @ _unpack(packed, ctx.state, slope.dtype) if ctx.needs_input_grad[0] else None
        return by_x, None, None


def _unpack(packed: Tensor, state: Any, dtype: torch.dtype) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(packed, state).to(dtype)


class QuantizedLinear(Linear):
    """A frozen linear map whose matrix is kept in 4 bits."""

    packed: Tensor

    def __init__(self, base: nn.Linear) -> None:
        """Quantize the weight of `base`, which is not needed afterwards."""
        require_bitsandbytes()
        from bitsandbytes.functional import quantize_4bit

        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.register_parameter("weight", None)
        self.bias = base.bias
        # The state records the type of the weight (bfloat16 or float32), to which it is unpacked.
        packed, self.state = quantize_4bit(
            base.weight.detach(), compress_statistics=True, quant_type="nf4"
        )
        self.register_buffer("packed", packed, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x, self.packed, self.state)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantizedLinear:
        """Move the scales together with the weights."""
        super()._apply(fn, recurse)
        self.state.to(self.packed.device)
        return self
