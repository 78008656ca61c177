"""Weight-decomposed low-rank adaptation (DoRA, Liu et al. 2024, arXiv:2402.09353).

A row of a matrix has a length, which is trained as one number, and a direction, which LoRA's update
changes.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.errors import UserError
from llm.model.lora import LoraLinear, add_lora
from llm.model.quantized import QuantizedLinear
from llm.model.transformer import Transformer


class DoraLinear(LoraLinear):
    """A frozen linear map with a trained update V = (alpha / r) B A and trained lengths m of rows.

    The function is m / ‖W + V‖ · (W + V) x, with the norm of each row. The gradient takes the norm
    as a constant (section 4.3), as PEFT does. With dropout W x stays whole, and what is added to it
    comes from dropout(x), as in PEFT.
    """

    fixed_scale: Tensor | None

    def __init__(self, base: nn.Linear, r: int, alpha: float, dropout: float) -> None:
        """Start with the lengths that the rows of W have.

        Raises:
            UserError: the base is in 4 bits.
        """
        if isinstance(base, QuantizedLinear):
            raise UserError("DoRA needs the base's own weights; load the base unquantized.")
        super().__init__(base, r, alpha, dropout)
        self.lora_magnitude_vector = nn.Parameter(self.norms().to(torch.float32))
        self.register_buffer("fixed_scale", None, persistent=False)

    @torch.no_grad()
    def norms(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the norms of the rows of W + V, (out_features,), computed in `dtype`."""
        update = self.lora_B.to(dtype) @ self.lora_A.to(dtype) * self.scaling
        return torch.linalg.vector_norm(self.weight.to(dtype) + update, dim=1)

    def scale(self) -> Tensor:
        """Return m / ‖W + V‖, (out_features,), in float32."""
        return self.lora_magnitude_vector / self.norms()

    def train(self, mode: bool = True) -> Self:
        """Switch as every module does; in evaluation mode the present scale is computed once.

        Otherwise each generated token would cost a product of B and A.
        """
        super().train(mode)
        self.fixed_scale = None if mode else self.scale().detach()
        return self

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        scale = self.scale() if self.fixed_scale is None else self.fixed_scale
        plain = changed = F.linear(x, weight)
        if self.training and self.dropout:
            x = F.dropout(x, self.dropout)
            changed = F.linear(x, weight)
        down = F.linear(x, self.lora_A.to(x.dtype))
        update = F.linear(down, self.lora_B.to(x.dtype)) * self.scaling
        # A scale in bfloat16 would be 1 for a long time; its distance from 1 is not.
        y = plain + update + (scale - 1).to(x.dtype) * (changed + update)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Return m / ‖W + V‖ · (W + V) and the bias (`AdaptedLinear.merged`)."""
        exact = self.exact_weight() + self.lora_B.double() @ self.lora_A.double() * self.scaling
        scale = self.lora_magnitude_vector.double() / self.norms(torch.float64)
        return (scale[:, None] * exact).to(self.weight.dtype), self.bias


def add_dora(
    model: Transformer,
    r: int,
    alpha: float,
    dropout: float,
    target_modules: list[str],
    seed: int,
    rslora: bool = False,
) -> list[str]:
    """Freeze the model, wrap its target modules and return their names.

    Arguments and initial values of the updates are those of `add_lora`.

    Raises:
        UserError: as in `add_lora`, or a row of a target is zero.
    """
    names = add_lora(model, r, alpha, dropout, target_modules, seed, rslora, DoraLinear)
    refuse_zero_rows(model, "finetune.method=dora")
    return names


def refuse_zero_rows(model: Transformer, where: str) -> None:
    """Check that every row has a direction.

    Raises:
        UserError: a row of W + V is zero, so that its scale would be infinite; the message begins
            with `where`.
    """
    for name, module in model.named_modules():
        if isinstance(module, DoraLinear) and not bool(module.norms().all()):
            row = int(module.norms().argmin())
            raise UserError(
                f"{where}: row {row} of {name} is zero and has no direction, which DoRA needs; use "
                "method lora, or leave the module out of target_modules."
            )
