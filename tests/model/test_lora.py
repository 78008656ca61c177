"""Adapters are PEFT's: same function, same files, exact merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.errors import UserError
from llm.model.adapted_linear import merge_adapter
from llm.model.adapters import load_adapter
from llm.model.hf_files import save_model
from llm.model.lora import LoraLinear, add_lora
from llm.model.lora_files import save_lora
from llm.model.transformer import Transformer
from tests.model.conftest import random_model

TARGETS = ["q_proj", "v_proj", "down_proj"]
LORA = {"r": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": TARGETS}


def adapted(seed: int = 0) -> Transformer:
    model = random_model(seed, qk_norm=True)
    add_lora(model, 4, 8.0, 0.0, TARGETS, seed)
    generator = torch.Generator().manual_seed(9)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.lora_B.data = torch.randn(module.lora_B.shape, generator=generator) * 0.1
    return model.eval()


def test_adapter_loads_in_peft_with_equal_logits(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    peft = pytest.importorskip("peft", reason="needs the extra `peers`")
    base, model = random_model(0, qk_norm=True), adapted()
    (tmp_path / "base").mkdir(), (tmp_path / "adapter").mkdir()
    save_model(base, tmp_path / "base", tmp_path, eos_id=0)
    save_lora(model, tmp_path / "adapter", LORA, base="models/base")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peer = peft.PeftModel.from_pretrained(peer, tmp_path / "adapter").eval()
    ids = torch.randint(0, 300, (2, 20))
    with torch.no_grad():
        assert (model(ids) - base(ids)).abs().max() > 0.01
        torch.testing.assert_close(model(ids), peer(ids).logits, rtol=1e-4, atol=1e-4)


def test_adapters_written_by_peft_load_here(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    peft = pytest.importorskip("peft", reason="needs the extra `peers`")
    base = random_model(0, qk_norm=True)
    save_model(base, tmp_path, tmp_path, eos_id=0)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False, use_rslora=True
    )
    peer = peft.get_peft_model(peer, config).eval()
    peer.save_pretrained(tmp_path / "adapter")
    load_adapter(base, tmp_path / "adapter")
    ids = torch.randint(0, 300, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(base.eval()(ids), peer(ids).logits, rtol=1e-4, atol=1e-4)


def peft_adapter(folder: Path, base: Transformer, **fields: Any) -> Any:
    """A trained adapter as PEFT saves it to `folder`/adapter on the model in `folder`/base; returns
    PEFT's model.
    """
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    peft = pytest.importorskip("peft", reason="needs the extra `peers`")
    (folder / "base").mkdir()
    save_model(base, folder / "base", folder, eos_id=0)
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    config = {
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": TARGETS,
        **fields,
    }
    peer = peft.get_peft_model(peer, peft.LoraConfig(**config)).eval()
    generator = torch.Generator().manual_seed(9)
    for name, parameter in peer.named_parameters():
        if "lora_" in name:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    peer.save_pretrained(folder / "adapter")
    again = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    return peft.PeftModel.from_pretrained(again, folder / "adapter").eval()


@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {
            "init_lora_weights": "pissa",
            "use_rslora": True,
            "lora_alpha": 3,
            "target_modules": "all-linear",
        },
        {
            "init_lora_weights": "olora",
            "r": 16,
            "target_modules": ["k_proj", "down_proj", "up_proj"],
        },
        {"init_lora_weights": "pissa", "r": 32, "target_modules": ["k_proj"]},  # all of the matrix
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "eva"},
        {"init_lora_weights": "mica"},
        {"target_modules": "all-linear"},
        {"target_modules": ["layers.1.self_attn.q_proj", "0.mlp.up_proj"]},
    ],
    ids=str,
)
def test_every_start_of_peft_loads_as_peft_loads_it(fields: dict[str, Any], tmp_path: Path) -> None:
    base, model = random_model(0), random_model(0)
    peer = peft_adapter(tmp_path, base, **fields)
    shared = {name: value.clone() for name, value in model.state_dict().items()}
    load_adapter(model, tmp_path / "adapter")
    ids = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = peer(ids).logits
        assert (base(ids) - theirs).abs().max() > 0.01
        torch.testing.assert_close(model(ids), theirs, rtol=1e-4, atol=1e-4)
        assert all(torch.equal(model.state_dict()[name], value) for name, value in shared.items())
        merge_adapter(model)
        torch.testing.assert_close(model(ids), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ["pissa_niter_4", "loftq", "corda", "lora_ga", "new_start"])
def test_a_start_that_cannot_be_computed_again_is_refused_by_name(
    start: str, tmp_path: Path
) -> None:
    save_lora(adapted(), tmp_path, LORA, base="models/base")
    change(tmp_path, {"init_lora_weights": start})
    with pytest.raises(UserError, match=f"{start}.*path_initial_model_for_weight_conversion"):
        load_adapter(random_model(0, qk_norm=True), tmp_path)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_the_weights_do_not_decide_is_refused(start: str, tmp_path: Path) -> None:
    save_lora(adapted(), tmp_path, LORA, base="models/base")
    change(tmp_path, {"init_lora_weights": start})
    model = random_model(0, qk_norm=True)
    model.model.layers[1].self_attn.q_proj.weight.data.copy_(
        torch.eye(64) if start == "pissa" else torch.ones(64, 64)
    )
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.q_proj.*not determined"):
        load_adapter(model, tmp_path)


def test_unknown_fields_of_an_adapter_are_treated_as_those_of_a_model(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_lora(adapted(), tmp_path, LORA, base="models/base")
    change(
        tmp_path,
        {
            "use_newlora": False,
            "newlora_config": None,
            "_private": "x",
            "loftq_config": {"loftq_bits": 4},
        },
    )
    for _ in range(2):
        load_adapter(random_model(0, qk_norm=True), tmp_path)
    assert (
        capfd.readouterr().err.count("use_newlora = False, newlora_config = None, _private = 'x'")
        == 1
    )
    change(tmp_path, {"use_newlora": True})
    with pytest.raises(UserError, match="use_newlora = True is unknown"):
        load_adapter(random_model(0, qk_norm=True), tmp_path)


def change(directory: Path, fields: dict[str, Any]) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_merging_keeps_the_function() -> None:
    model = adapted()
    ids = torch.randint(0, 300, (2, 20))
    with torch.no_grad():
        before = model(ids)
        merge_adapter(model)
        torch.testing.assert_close(model(ids), before, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(m, LoraLinear) for m in model.modules())


def test_a_new_adapter_changes_nothing_and_trains_only_itself() -> None:
    base, model = random_model(0), random_model(0)
    names = add_lora(model, 4, 8.0, 0.0, TARGETS, 0)
    ids = torch.randint(0, 300, (2, 20))
    with torch.no_grad():
        assert torch.equal(base(ids), model(ids))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.{part}" for name in names for part in ("lora_A", "lora_B")}


@pytest.mark.parametrize(
    ("r", "targets", "named"),
    [(4, ["query"], "query"), (4, ["lm_head"], "lm_head"), (65, ["q_proj"], "65")],
)
def test_impossible_adapters_are_refused(r: int, targets: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        add_lora(random_model(0), r, 8.0, 0.0, targets, 0)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    save_lora(adapted(), tmp_path, LORA, base="models/base")
    with pytest.raises(UserError, match="another model"):
        load_adapter(random_model(0, qk_norm=True, intermediate_size=80), tmp_path)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"r": 0}, "rank is at least 1"),
        ({"peft_type": "VERA"}, "VERA"),
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ".*_proj"}, "target_modules"),
        ({"target_modules": ["c_attn"]}, "c_attn"),
        ({"target_modules": ["proj"]}, "'proj'"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"kasa_config": {"beta": 1.0}}, "kasa_config"),
    ],
)
def test_an_adapter_that_would_be_another_function_is_refused(
    fields: dict[str, object], named: str, tmp_path: Path
) -> None:
    save_lora(adapted(), tmp_path, LORA, base="models/base")
    change(tmp_path, fields)
    with pytest.raises(UserError, match=named):
        load_adapter(random_model(0, qk_norm=True), tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "pickled"])
def test_broken_adapters_are_named(damage: str, tmp_path: Path) -> None:
    save_lora(adapted(), tmp_path, LORA, base="models/base")
    path = tmp_path / "adapter_model.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        path.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match=damage if damage == "pickled" else "cannot be read"):
        load_adapter(random_model(0, qk_norm=True), tmp_path)
