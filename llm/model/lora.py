"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685), in PEFT's file format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.errors import UserError
from llm.io import read_json, save_tensors, write_json
from llm.model.attention import Linear
from llm.model.transformer import Transformer

PREFIX = "base_model.model."  # PEFT's name for the wrapped model


class LoraLinear(Linear):
    """A frozen linear map plus a trained update: W x + (alpha / r) · B A dropout(x)."""

    def __init__(self, base: nn.Linear, r: int, alpha: float, dropout: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.register_parameter("bias", None)
        self.weight = base.weight
        self.weight.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.zeros(r, base.in_features, device=base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, device=base.weight.device))
        self.scaling, self.dropout = alpha / r, dropout

    def forward(self, x: Tensor) -> Tensor:
        down = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A.to(x.dtype))
        return super().forward(x) + F.linear(down, self.lora_B.to(x.dtype)) * self.scaling

    @torch.no_grad()
    def merged(self) -> Tensor:
        """W + (alpha / r) B A, added up in float64 and rounded once to the weight's type."""
        update = self.lora_B.double() @ self.lora_A.double() * self.scaling
        return (self.weight.double() + update).to(self.weight.dtype)


def add_lora(
    model: Transformer, r: int, alpha: float, dropout: float, target_modules: list[str], seed: int
) -> list[str]:
    """Freeze the model and wrap its target modules; return their names.

    A is drawn uniformly as PEFT draws it (Kaiming, a = √5, so ±1/√fan_in), B is zero: training starts at the base.

    Raises:
        UserError: a target that no module has, or a rank that is no smaller than the matrix.
    """
    present = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
    for target in target_modules:
        if target not in present or target == "lm_head":
            choices = ", ".join(name for name in present if name != "lm_head")
            raise UserError(f"finetune.lora.target_modules: the model has no module {target!r}; it has {choices}.")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    wrapped = []
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or name.rsplit(".", 1)[-1] not in target_modules:
            continue
        if r > min(module.in_features, module.out_features):
            raise UserError(
                f"finetune.lora.r = {r} exceeds {name} ({module.out_features} × {module.in_features}): "
                f"choose at most {min(module.in_features, module.out_features)}."
            )
        lora = LoraLinear(module, r, alpha, dropout)
        bound = module.in_features**-0.5
        lora.lora_A.data.copy_((torch.rand(lora.lora_A.shape, generator=generator) * 2 - 1) * bound)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, lora)
        wrapped.append(name)
    return wrapped


def merge_lora(model: Transformer) -> None:
    """Fold every update into its weight and unwrap, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            plain = Linear(module.in_features, module.out_features)
            plain.weight = nn.Parameter(module.merged())
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, plain)


def save_adapter(model: Transformer, directory: Path, lora: dict[str, Any], base: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` as PEFT reads them."""
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            tensors[f"{PREFIX}{name}.lora_A.weight"] = module.lora_A.detach().cpu().contiguous()
            tensors[f"{PREFIX}{name}.lora_B.weight"] = module.lora_B.detach().cpu().contiguous()
    save_tensors(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(
        directory / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": lora["r"],
            "lora_alpha": lora["alpha"],
            "lora_dropout": lora["dropout"],
            "target_modules": sorted(lora["target_modules"]),
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "inference_mode": True,
            "modules_to_save": None,
            "use_rslora": False,
        },
    )


def load_adapter(model: Transformer, directory: Path) -> None:
    """Wrap the model with an adapter in PEFT's format.

    Raises:
        UserError: the files are missing or broken, or the adapter belongs to a model of other shapes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_json(directory / "adapter_config.json")
    path = directory / "adapter_model.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}). Run `dvc repro` to write it again.") from None
    alpha = config["lora_alpha"] * (config["r"] ** 0.5 if config.get("use_rslora") else 1.0)
    add_lora(model, config["r"], alpha, config["lora_dropout"], list(config["target_modules"]), seed=0)
    wanted = {
        f"{PREFIX}{name}.{part}.weight": getattr(module, part)
        for name, module in model.named_modules()
        if isinstance(module, LoraLinear)
        for part in ("lora_A", "lora_B")
    }
    if set(wanted) != set(tensors):
        odd = sorted(set(wanted) ^ set(tensors))
        raise UserError(f"{path} belongs to another model: {odd[0]} and {len(odd) - 1} more tensors do not match.")
    for name, parameter in wanted.items():
        if parameter.shape != tensors[name].shape:
            raise UserError(
                f"{path} belongs to another model: {name} is {tuple(tensors[name].shape)}, "
                f"expected {tuple(parameter.shape)}."
            )
        parameter.data.copy_(tensors[name])
