"""LoRA and DoRA adapters in PEFT's file format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm.errors import UserError, say_once
from llm.model.adapted_linear import target_names
from llm.model.adapter_files import (
    CONFIG,
    PREFIX,
    PROVENANCE,
    TENSORS,
    fill_parameters,
    listed_modules,
)
from llm.model.config import check_fields
from llm.model.dora import DoraLinear, refuse_zero_rows
from llm.model.lora import LoraLinear, wrap_lora
from llm.model.transformer import Transformer
from llm.runtime.io import save_tensors, write_json

# Values of fields that a file lacks.
PEFT_DEFAULTS: dict[str, Any] = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0}

# Fields of PEFT's LoraConfig with the values that are supported.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layers_to_transform": (None, []),
    "layers_pattern": (None, [], ""),
    "layer_replication": (None, []),
    "lora_bias": (False, None),
    "trainable_token_indices": (None, [], {}),
    "exclude_modules": (None, [], ""),
    "target_parameters": (None, []),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None, []),
    "megatron_config": (None, {}),
    "arrow_config": (None, {}),
    "kasa_config": (None, {}),
    "monteclora_config": (None, {}),
    "use_bdlora": (None, False, {}),
}
READ = {
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
}
# Fields that do not affect a trained adapter: how it was initialized or trained.
SILENT = {
    "megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying", "velora_config",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config",
} | PROVENANCE  # fmt: skip
# Values of `init_lora_weights` that do not change the base.
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
# Values that subtract the initial update from the base, where it can be recomputed from the base.
EXACT_STARTS = ("pissa", "olora")


def save_lora(model: Transformer, directory: Path, lora: dict[str, Any], base: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` in PEFT's format.

    Args:
        lora: the values of `finetune.lora`.
        base: the path of the base, for the config.
    """
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in _parameters(model).items()
    }
    save_tensors(tensors, directory / TENSORS, metadata={"format": "pt"})
    config = {
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
        "use_rslora": lora.get("rslora", False),
    }
    if any(isinstance(module, DoraLinear) for module in model.modules()):
        config["use_dora"] = True
    write_json(directory / CONFIG, config)


def load_lora(model: Transformer, directory: Path, config: dict[str, Any]) -> None:
    """Add the LoRA or DoRA in `directory` to the model, in place.

    Args:
        config: the content of its `adapter_config.json`.

    Raises:
        UserError: a file is missing or broken, a field is not supported, or the adapter belongs to
            another model.
    """
    where = directory / CONFIG
    check_fields(config, READ | SILENT, NEUTRAL, str(where))
    r, alpha, dropout = (config.get(key, value) for key, value in PEFT_DEFAULTS.items())
    if not isinstance(r, int) or r < 1:
        raise UserError(f"{where}: r = {r!r}; a rank is at least 1.")
    if not all(isinstance(value, (int, float)) for value in (alpha, dropout)):
        raise UserError(
            f"{where}: lora_alpha = {alpha!r} and lora_dropout = {dropout!r}; expected numbers."
        )
    start = config.get("init_lora_weights", True)
    if start not in (*PLAIN_STARTS, *EXACT_STARTS):
        raise UserError(
            f"{where}: init_lora_weights = {start!r} is not supported: such an adapter goes with a "
            "base whose weights its start had changed, and they cannot be computed again from the "
            "base alone. Convert it to a plain LoRA where it was trained: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...) of PEFT."
        )
    targets = listed_modules(config, "target_modules", where)
    names = target_names(model, targets, f"{where}: target_modules")
    kind = DoraLinear if config.get("use_dora") else LoraLinear
    wrap_lora(model, names, r, alpha, dropout, bool(config.get("use_rslora")), kind)
    fill_parameters(_parameters(model), directory)
    if start in EXACT_STARTS:
        say_once(
            f"{where}: init_lora_weights = {start!r}: the start is computed again from the base and subtracted."
        )
    for name in names if start in EXACT_STARTS else ():
        _subtract_start(
            model.get_submodule(name), start, f"{where}: init_lora_weights = {start!r}: {name}"
        )
    refuse_zero_rows(model, str(where))


def _parameters(model: Transformer) -> dict[str, Tensor]:
    """Return the trained tensors by their names in PEFT's file."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            found[f"{PREFIX}{name}.lora_A.weight"] = module.lora_A
            found[f"{PREFIX}{name}.lora_B.weight"] = module.lora_B
        if isinstance(module, DoraLinear):
            found[f"{PREFIX}{name}.lora_magnitude_vector"] = module.lora_magnitude_vector
    return found


@torch.no_grad()
def _subtract_start(module: nn.Module, start: str, where: str) -> None:
    """Convert an adapter that PEFT trained on W - s B₀ A₀ instead of W to a plain LoRA.

    The result is B A - B₀ A₀, of twice the rank, as in PEFT's own conversion
    (`subtract_mutated_init`). B₀ and A₀ are computed from W in float32 by the same calls as in
    PEFT, so that the model equals the one that PEFT loads. They are the largest singular values and
    their vectors (PiSSA, Meng et al. 2024, arXiv:2404.02948), or the first columns of a QR
    decomposition (OLoRA, Büyükakyüz 2024, arXiv:2406.01775).

    Raises:
        UserError: W does not determine B₀ A₀, so that rounding errors would decide.
    """
    assert isinstance(module, LoraLinear)
    r, weight = module.lora_A.shape[0], module.weight.float()
    if start == "pissa":
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        ambiguous = r < len(values) and values[r - 1] - values[r] < 1e-6 * values[0]
        root = (values[:r] / module.scaling).sqrt()
        down, up = root[:, None] * right[:r], left[:, :r] * root
    else:
        orthogonal, triangle = torch.linalg.qr(weight)
        ambiguous = triangle.diagonal()[:r].abs().min() < 1e-6 * triangle.diagonal().abs().max()
        down, up = triangle[:r], orthogonal[:, :r]
    if ambiguous:
        raise UserError(
            f"{where}: its start is not determined by the base's weights. Convert the adapter to a "
            "plain LoRA where it was trained: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...) of PEFT."
        )
    module.lora_A = nn.Parameter(torch.cat([module.lora_A, down]))
    module.lora_B = nn.Parameter(torch.cat([module.lora_B, -up], 1))
