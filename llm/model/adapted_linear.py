"""Frozen linear maps that an adapter changes: their choice by name, their wrapping and merging."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from llm.errors import UserError
from llm.model.attention import Linear
from llm.model.quantized import QuantizedLinear
from llm.model.transformer import Transformer

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class AdaptedLinear(Linear, ABC):
    """A frozen linear map whose function an adapter changes. A subclass has its parameters."""

    def __init__(self, base: nn.Linear) -> None:
        """Take over the weight and bias of `base`, which may be in 4 bits, and freeze them."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.quantized = base if isinstance(base, QuantizedLinear) else None
        if self.quantized is None:
            self.weight, self.bias = base.weight, base.bias
            self.base_device = base.weight.device
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
            self.base_device = self.quantized.packed.device
        self.requires_grad_(False)

    def frozen(self, x: Tensor) -> Tensor:
        """Return what the base makes of x, (…, out_features)."""
        return super().forward(x) if self.quantized is None else self.quantized(x)

    @abstractmethod
    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the plain linear map that is the same function.

        They are computed in float64 and rounded once to the weight's type.

        Raises:
            UserError: the weight is quantized; the result would include its rounding error.
        """

    def exact_weight(self) -> Tensor:
        """Return the base's weight in float64, for merging.

        Raises:
            UserError: the weight is quantized.
        """
        if self.quantized is not None:
            raise UserError(
                "an adapter is not merged into a base in 4 bits; load the base unquantized for that."
            )
        return self.weight.double()


def target_names(model: Transformer, targets: list[str], where: str) -> list[str]:
    """Return the names of the linear modules that `targets` match: full names or their ends.

    Raises:
        UserError: an entry matches no module; the message names the list by `where`.
    """
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    ]
    matches = {
        target: {name for name in linear if f".{name}".endswith(f".{target}")} for target in targets
    }
    for target, names in matches.items():
        if not names:
            choices = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise UserError(f"{where}: the model has no module {target!r}; it has {choices}.")
    return [name for name in linear if any(name in names for names in matches.values())]


def wrap(
    model: Transformer, names: list[str], make: Callable[[str, nn.Linear], AdaptedLinear]
) -> None:
    """Freeze the model and replace each of these modules by what `make` returns for it."""
    model.requires_grad_(False)
    for name in names:
        module = model.get_submodule(name)
        assert isinstance(module, nn.Linear)
        _replace(model, name, make(name, module))


@torch.no_grad()
def merge_adapter(model: Transformer) -> None:
    """Fold the adapter into the weights and unwrap its modules, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AdaptedLinear):
            weight, bias = module.merged()
            with torch.device("meta"):
                plain = Linear(module.in_features, module.out_features)
            plain.weight = nn.Parameter(weight)
            plain.bias = cast(nn.Parameter, bias if bias is None else nn.Parameter(bias))
            _replace(model, name, plain)


def _replace(model: Transformer, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
