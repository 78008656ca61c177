"""Learned scales of activations (IA3, Liu et al. 2022, arXiv:2205.05638), with PEFT's files.

Keys, values and the activations inside the MLP are multiplied element by element by trained
vectors, which begin as ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm.errors import UserError
from llm.model.adapted_linear import AdaptedLinear, target_names, wrap
from llm.model.adapter_files import (
    CONFIG,
    PREFIX,
    PROVENANCE,
    TENSORS,
    fill_parameters,
    listed_modules,
)
from llm.model.config import check_fields
from llm.model.transformer import Transformer
from llm.runtime.io import save_tensors, write_json

# The places of the paper, and PEFT's for Llama and Mistral.
TARGETS = ["k_proj", "v_proj", "down_proj"]
FEEDFORWARD = ["down_proj"]  # its input is scaled; the others' output is

# Fields of PEFT's IA3Config that are read, or that do not affect a trained adapter.
FIELDS = {"peft_type", "target_modules", "feedforward_modules", "init_ia3_weights"} | PROVENANCE
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "exclude_modules": (None, [], ""),
}


class Ia3Linear(AdaptedLinear):
    """A frozen linear map whose output, or in the MLP whose input, is scaled: l ⊙ (W x + b) or W (l ⊙ x) + b."""

    def __init__(self, base: nn.Linear, feedforward: bool) -> None:
        super().__init__(base)
        self.feedforward = feedforward
        size = base.in_features if feedforward else base.out_features
        self.ia3_l = nn.Parameter(torch.ones(size, device=self.base_device))

    def forward(self, x: Tensor) -> Tensor:
        if self.feedforward:
            return self.frozen((x * self.ia3_l).to(x.dtype))
        return (self.frozen(x) * self.ia3_l).to(x.dtype)

    def in_file(self) -> Tensor:
        """Return a view of the vector with PEFT's shape, (1, in_features) or (out_features, 1)."""
        return self.ia3_l.detach()[None if self.feedforward else (slice(None), None)]

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Return W with scaled columns or rows, and the bias (`AdaptedLinear.merged`)."""
        weight = (self.exact_weight() * self.in_file().double()).to(self.weight.dtype)
        if self.bias is None or self.feedforward:
            return weight, self.bias
        return weight, (self.bias.double() * self.ia3_l.double()).to(self.bias.dtype)


def add_ia3(model: Transformer) -> list[str]:
    """Freeze the model, wrap keys, values and the MLP's last matrix, and return their names."""
    names = target_names(model, TARGETS, "finetune.method=ia3")
    _wrap(model, names, set(target_names(model, FEEDFORWARD, "finetune.method=ia3")))
    return names


def _wrap(model: Transformer, names: list[str], feedforward: set[str]) -> None:
    wrap(model, names, lambda name, module: Ia3Linear(module, name in feedforward))


def save_ia3(model: Transformer, directory: Path, base: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` in PEFT's format."""
    tensors = {name: value.cpu().contiguous() for name, value in _parameters(model).items()}
    save_tensors(tensors, directory / TENSORS, metadata={"format": "pt"})
    write_json(
        directory / CONFIG,
        {
            "peft_type": "IA3",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "target_modules": sorted(TARGETS),
            "feedforward_modules": sorted(FEEDFORWARD),
            "fan_in_fan_out": False,
            "init_ia3_weights": True,
            "inference_mode": True,
            "modules_to_save": None,
        },
    )


def load_ia3(model: Transformer, directory: Path, config: dict[str, Any]) -> None:
    """Add the adapter in `directory` to the model, in place.

    Args:
        config: the content of its `adapter_config.json`.

    Raises:
        UserError: a file is missing or broken, a field is not supported, or the adapter belongs to
            another model.
    """
    where = directory / CONFIG
    check_fields(config, FIELDS, NEUTRAL, str(where))
    targets = listed_modules(config, "target_modules", where)
    feedforward = listed_modules(config, "feedforward_modules", where)
    scaled_inputs = set(target_names(model, feedforward, f"{where}: feedforward_modules"))
    names = target_names(model, targets, f"{where}: target_modules")
    if outside := sorted(scaled_inputs - set(names)):
        raise UserError(
            f"{where}: feedforward_modules has {outside[0]}, which target_modules does not; PEFT "
            "writes a part of target_modules there."
        )
    _wrap(model, names, scaled_inputs)
    fill_parameters(_parameters(model), directory)


def _parameters(model: Transformer) -> dict[str, Tensor]:
    """Return views of the vectors by their names in PEFT's file, in its shapes."""
    return {
        f"{PREFIX}{name}.ia3_l": module.in_file()
        for name, module in model.named_modules()
        if isinstance(module, Ia3Linear)
    }
