"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.errors import UserError
from llm.model.adapted_linear import AdaptedLinear, target_names, wrap
from llm.model.sharded_tensor import fill
from llm.model.transformer import Transformer


class LoraLinear(AdaptedLinear):
    """A frozen linear map plus a trained update: W x + (alpha / r) · B A dropout(x)."""

    def __init__(self, base: nn.Linear, r: int, alpha: float, dropout: float) -> None:
        super().__init__(base)
        device = self.base_device
        self.lora_A = nn.Parameter(torch.zeros(r, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, device=device))
        self.scaling, self.dropout = alpha / r, dropout

    def forward(self, x: Tensor) -> Tensor:
        down = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A.to(x.dtype))
        return self.frozen(x) + F.linear(down, self.lora_B.to(x.dtype)) * self.scaling

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Return W + (alpha / r) B A and the bias (`AdaptedLinear.merged`)."""
        exact = self.exact_weight() + self.lora_B.double() @ self.lora_A.double() * self.scaling
        return exact.to(self.weight.dtype), self.bias


def add_lora(
    model: Transformer,
    r: int,
    alpha: float,
    dropout: float,
    target_modules: list[str],
    seed: int,
    rslora: bool = False,
    kind: type[LoraLinear] = LoraLinear,
) -> list[str]:
    """Freeze the model, wrap its target modules and return their names.

    A is drawn uniformly as in PEFT (Kaiming, a = √5, so ±1/√fan_in) and B is zero, so training
    starts at the base.

    Args:
        model: the base; it is changed in place.
        r: rank of the updates.
        alpha: updates are scaled by alpha / r.
        dropout: dropout probability of an update's input.
        target_modules: names of modules, or ends of names.
        seed: seed of the initial values.
        rslora: scale by alpha / √r instead (Kalajdzievski 2023, arXiv:2312.03732).
        kind: the class of the wrapped modules.

    Raises:
        UserError: no module has the name of a target, or the rank exceeds a side of its matrix.
    """
    names = target_names(model, target_modules, "finetune.lora.target_modules")
    if r < 1:
        raise UserError(f"finetune.lora.r = {r}: a rank is at least 1.")
    for name in names:
        module = model.get_submodule(name)
        assert isinstance(module, nn.Linear)
        most = min(module.in_features, module.out_features)
        if r > most:
            raise UserError(
                f"finetune.lora.r = {r} exceeds {name} ({module.out_features} × {module.in_features}): "
                f"choose at most {most}."
            )
    wrap_lora(model, names, r, alpha, dropout, rslora, kind)
    draw_lora(model, seed)
    return names


def wrap_lora(
    model: Transformer,
    names: list[str],
    r: int,
    alpha: float,
    dropout: float,
    rslora: bool,
    kind: type[LoraLinear],
) -> None:
    """Freeze the model and replace each of these modules by one of `kind` whose values are zero."""
    alpha = alpha * r**0.5 if rslora else alpha
    wrap(model, names, lambda name, module: kind(module, r, alpha, dropout))


def draw_lora(model: Transformer, seed: int) -> None:
    """Draw the initial values of the updates, in place."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            drawn = torch.rand(module.lora_A.shape, generator=generator) * 2 - 1
            fill(module.lora_A, drawn * module.in_features**-0.5)
            fill(module.lora_B, torch.zeros(module.lora_B.shape))
