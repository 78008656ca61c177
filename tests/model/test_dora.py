"""DoRA is PEFT's: same function and gradients, same files, exact merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llm.errors import UserError
from llm.model.adapted_linear import merge_adapter
from llm.model.adapters import load_adapter
from llm.model.dora import DoraLinear, add_dora
from llm.model.lora_files import save_lora
from llm.model.transformer import Transformer
from tests.model.conftest import random_model
from tests.model.peft_peer import assert_close, ids, moved, peer_base, same_training

TARGETS = ["q_proj", "v_proj", "o_proj", "down_proj"]
LORA = {"r": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": TARGETS}


def adapted(dropout: float = 0.0, **changes: Any) -> Transformer:
    """A model with an adapter whose every value is random."""
    model = random_model(0, **changes)
    add_dora(model, 4, 8.0, dropout, TARGETS, 0)
    moved(model, "lora_")
    return model.eval()


@pytest.mark.parametrize("changes", [{"qk_norm": True}, {"qkv_bias": True}], ids=str)
def test_peft_computes_the_same_and_the_same_gradients(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    base, model = random_model(0, **changes), adapted(**changes)
    save_lora(model, tmp_path, LORA, base="models/base")
    peft, plain = peer_base(base, tmp_path / "base")
    peer = peft.PeftModel.from_pretrained(plain, tmp_path, is_trainable=True)
    assert peer.peft_config["default"].use_dora
    with torch.no_grad():
        assert (model(ids()) - base(ids())).abs().max() > 0.05
    same_training(model, peer, "lora_")
    merged = peer.eval().merge_and_unload()
    with torch.no_grad():
        merge_adapter(model)
        assert_close(model(ids()), merged(ids()).logits)
    for name, value in model.state_dict().items():
        assert_close(value, merged.state_dict()[name])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3, "target_modules": "all-linear"},
        {"init_lora_weights": "pissa"},
        {"target_modules": ["layers.1.self_attn.q_proj", "0.mlp.up_proj"]},
    ],
    ids=str,
)
def test_adapters_of_peft_load_here(fields: dict[str, Any], tmp_path: Path) -> None:
    base, model = random_model(0), random_model(0)
    peft, plain = peer_base(base, tmp_path / "base")
    config = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": TARGETS}
    peer = peft.get_peft_model(plain, peft.LoraConfig(**{**config, "use_dora": True, **fields}))
    moved(peer, "lora_")
    peer.eval().save_pretrained(tmp_path / "adapter")
    load_adapter(model, tmp_path / "adapter")
    # PiSSA's start is computed again from the base, to float32's digits.
    bound = 1e-4 if "init_lora_weights" in fields else 1e-5
    with torch.no_grad():
        theirs = peer(ids()).logits
        assert (base(ids()) - theirs).abs().max() > 0.05
        assert_close(model(ids()), theirs, bound)
        assert_close(model.eval()(ids()), theirs, bound)
        merge_adapter(model)
        assert_close(model(ids()), peer.merge_and_unload()(ids()).logits, bound)


def test_dropout_falls_on_what_is_added_to_the_base_as_in_peft() -> None:
    model = adapted(dropout=0.5)
    module = model.model.layers[0].self_attn.q_proj
    assert isinstance(module, DoraLinear)
    x = torch.randn(7, module.in_features, generator=torch.Generator().manual_seed(3))
    module.train()
    torch.manual_seed(5)
    found = module(x)
    torch.manual_seed(5)
    dropped = torch.nn.functional.dropout(x, 0.5).double()
    weight, update = module.weight.double(), module.lora_B.double() @ module.lora_A.double() * 2
    scale = module.lora_magnitude_vector.double() / (weight + update).square().sum(1).sqrt()
    expected = x.double() @ weight.T + dropped @ (scale[:, None] * (weight + update) - weight).T
    assert_close(found.double(), expected)


def test_the_scale_of_evaluation_is_that_of_the_present_values() -> None:
    model = adapted()
    with torch.no_grad():
        before = model(ids())
        moved(model.train(), "lora_")
        expected = model(ids())
        assert (expected - before).abs().max() > 0.05
        assert_close(model.eval()(ids()), expected)


def test_a_new_adapter_changes_nothing_and_trains_only_itself() -> None:
    base, model = random_model(0), random_model(0)
    names = add_dora(model, 4, 8.0, 0.0, TARGETS, 0)
    with torch.no_grad():
        assert torch.equal(base(ids()), model(ids()))
    parts = ("lora_A", "lora_B", "lora_magnitude_vector")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.{part}" for name in names for part in parts}


def test_a_row_of_zeros_is_refused_by_name(tmp_path: Path) -> None:
    model = random_model(0)
    model.model.layers[1].self_attn.v_proj.weight.data[3] = 0
    with pytest.raises(UserError, match=r"row 3 of model\.layers\.1\.self_attn\.v_proj is zero"):
        add_dora(model, 4, 8.0, 0.0, TARGETS, 0)
    trained = adapted()
    trained.model.layers[1].self_attn.v_proj.lora_B.data[3] = 0
    save_lora(trained, tmp_path, LORA, base="models/base")
    other = random_model(0)
    other.model.layers[1].self_attn.v_proj.weight.data[3] = 0
    with pytest.raises(UserError, match=r"adapter_config\.json: row 3 of"):
        load_adapter(other, tmp_path)
