"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685), in PEFT's file format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.errors import UserError, say_once
from llm.model.attention import Linear
from llm.model.config import check_fields
from llm.model.quantized import QuantizedLinear
from llm.model.sharded_tensor import fill
from llm.model.transformer import Transformer
from llm.runtime.io import read_json, save_tensors, write_json

PREFIX = "base_model.model."  # PEFT's name for the wrapped model
# Values of fields that a file lacks.
PEFT_DEFAULTS: dict[str, Any] = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraLinear(Linear):
    """A frozen linear map plus a trained update: W x + (alpha / r) · B A dropout(x)."""

    def __init__(self, base: nn.Linear, r: int, alpha: float, dropout: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.quantized = base if isinstance(base, QuantizedLinear) else None
        if self.quantized is None:
            self.weight, self.bias = base.weight, base.bias
            device = base.weight.device
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
            device = self.quantized.packed.device
        self.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.zeros(r, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, device=device))
        self.scaling, self.dropout = alpha / r, dropout

    def forward(self, x: Tensor) -> Tensor:
        down = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A.to(x.dtype))
        base = super().forward(x) if self.quantized is None else self.quantized(x)
        return base + F.linear(down, self.lora_B.to(x.dtype)) * self.scaling

    @torch.no_grad()
    def merged(self) -> Tensor:
        """Return W + (alpha / r) B A, summed in float64 and rounded once to the weight's type.

        Raises:
            UserError: W is quantized; the sum would include its rounding error.
        """
        if self.quantized is not None:
            raise UserError(
                "an adapter is not merged into a base in 4 bits; load the base unquantized for that."
            )
        update = self.lora_B.double() @ self.lora_A.double() * self.scaling
        return (self.weight.double() + update).to(self.weight.dtype)


def add_lora(
    model: Transformer,
    r: int,
    alpha: float,
    dropout: float,
    target_modules: list[str],
    seed: int,
    rslora: bool = False,
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

    Raises:
        UserError: no module has the name of a target, or the rank exceeds a side of its matrix.
    """
    names = _targets(model, target_modules, "finetune.lora.target_modules")
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
    _wrap(model, names, r, alpha, dropout, rslora)
    draw_lora(model, seed)
    return names


def _targets(model: Transformer, targets: list[str], where: str) -> list[str]:
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


def _wrap(
    model: Transformer, names: list[str], r: int, alpha: float, dropout: float, rslora: bool
) -> None:
    """Freeze the model and replace each of these modules by a LoraLinear."""
    model.requires_grad_(False)
    for name in names:
        module = model.get_submodule(name)
        assert isinstance(module, nn.Linear)
        parent, _, child = name.rpartition(".")
        setattr(
            model.get_submodule(parent),
            child,
            LoraLinear(module, r, alpha * r**0.5 if rslora else alpha, dropout),
        )


def draw_lora(model: Transformer, seed: int) -> None:
    """Draw the initial values of the updates, in place."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            drawn = torch.rand(module.lora_A.shape, generator=generator) * 2 - 1
            fill(module.lora_A, drawn * module.in_features**-0.5)
            fill(module.lora_B, torch.zeros(module.lora_B.shape))


def merge_lora(model: Transformer) -> None:
    """Fold every update into its weight and unwrap, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            with torch.device("meta"):
                plain = Linear(module.in_features, module.out_features)
            plain.weight, plain.bias = nn.Parameter(module.merged()), module.bias
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, plain)


def save_adapter(model: Transformer, directory: Path, lora: dict[str, Any], base: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` in PEFT's format."""
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
            "use_rslora": lora.get("rslora", False),
        },
    )


# Fields of PEFT's LoraConfig with the values that are supported.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "use_dora": (False, None),
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
    "init_lora_weights",
}
# Fields that do not affect a trained adapter: provenance, and how it was initialized or trained.
SILENT = {
    "task_type", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping",
    "megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying", "velora_config",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config",
}  # fmt: skip
# Values of `init_lora_weights` that do not change the base.
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
# Values that subtract the initial update from the base, where it can be recomputed from the base.
EXACT_STARTS = ("pissa", "olora")


def load_adapter(model: Transformer, directory: Path, base: Path | None = None) -> tuple[int, ...]:
    """Add an adapter in PEFT's format to the model: a LoRA or a soft prompt.

    Args:
        model: the base; it is changed in place.
        directory: the adapter's directory.
        base: the model's directory, to check that the adapter was trained on it.

    Returns:
        The ids of a soft prompt's virtual tokens.

    Raises:
        UserError: a file is missing or broken, the adapter belongs to another base or is of a kind
            that is not supported, its rank is below 1, or the model lacks a target.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    where = directory / "adapter_config.json"
    config = read_json(where)
    if not isinstance(config, dict):
        raise UserError(f"{where}: expected an object, found {type(config).__name__}.")
    check_base(directory, base)
    if config.get("peft_type") == "PROMPT_TUNING":
        from llm.model.soft_prompt import load_prompt

        return load_prompt(model, directory)
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{where}: peft_type {config.get('peft_type')!r} is not supported; expected LORA."
        )
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
    targets = config.get("target_modules")
    if targets == "all-linear":
        targets = list(MATRICES)
    if not isinstance(targets, list):
        raise UserError(
            f"{where}: target_modules = {targets!r}; expected a list of module names, or 'all-linear'."
        )
    path = directory / "adapter_model.safetensors"
    if not path.exists() and (directory / "adapter_model.bin").exists():
        raise UserError(
            f"{directory} holds a pickled adapter, which can run code when loaded; convert it to safetensors first."
        )
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}). Run `dvc repro` to write it again."
        ) from None
    names = _targets(model, targets, f"{where}: target_modules")
    _wrap(model, names, r, alpha, dropout, bool(config.get("use_rslora")))
    parameters = {
        f"{PREFIX}{name}.{part}.weight": getattr(module, part)
        for name, module in model.named_modules()
        if isinstance(module, LoraLinear)
        for part in ("lora_A", "lora_B")
    }
    if set(parameters) != set(tensors):
        different = sorted(set(parameters) ^ set(tensors))
        raise UserError(
            f"{path} belongs to another model: {different[0]} and {len(different) - 1} more tensors do not match."
        )
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise UserError(
                f"{path} belongs to another model: {name} is {tuple(tensors[name].shape)}, "
                f"expected {tuple(parameter.shape)}."
            )
        parameter.data.copy_(tensors[name])
    if start in EXACT_STARTS:
        say_once(
            f"{where}: init_lora_weights = {start!r}: the start is computed again from the base and subtracted."
        )
    for name in names if start in EXACT_STARTS else ():
        _subtract_start(
            model.get_submodule(name), start, f"{where}: init_lora_weights = {start!r}: {name}"
        )
    return ()


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


def write_base(directory: Path, base: dict[str, str]) -> None:
    """Write the digests of its base (`llm.model.hf_files.digests`) into an adapter's directory.

    PEFT ignores the file.
    """
    write_json(directory / "base.json", base)


def check_base(directory: Path, base: Path | None) -> None:
    """Check that an adapter was trained on the model in `base`.

    Raises:
        UserError: the adapter's directory has the digests of another model.
    """
    from llm.model.hf_files import digests

    if base is None or not (directory / "base.json").exists():
        return
    trained_on, present = read_json(directory / "base.json"), digests(base)
    if trained_on != present:
        different = min(
            name
            for name in trained_on.keys() | present.keys()
            if trained_on.get(name) != present.get(name)
        )
        raise UserError(
            f"{directory} is an adapter for another base than {base}: {different} has other bytes than what it was "
            "trained on. Choose the base that adapter_config.json names, or train the adapter again."
        )
