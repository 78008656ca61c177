"""IA3 is PEFT's: same function and gradients, same files, exact merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.errors import UserError
from llm.model.adapted_linear import merge_adapter
from llm.model.adapters import load_adapter
from llm.model.ia3 import FEEDFORWARD, TARGETS, add_ia3, save_ia3
from llm.model.transformer import Transformer
from tests.model.conftest import random_model
from tests.model.peft_peer import assert_close, ids, moved, peer_base, same_training

KINDS = [{"qk_norm": True}, {"qkv_bias": True}]


def adapted(**changes: Any) -> Transformer:
    """A model with an adapter whose every value is random."""
    model = random_model(0, **changes)
    add_ia3(model)
    moved(model, "ia3_l")
    moved(model, "ia3_l")  # twice as far from ones
    return model.eval()


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_peft_computes_the_same_and_the_same_gradients(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    base, model = random_model(0, **changes), adapted(**changes)
    save_ia3(model, tmp_path, base="models/base")
    peft, plain = peer_base(base, tmp_path / "base")
    peer = peft.PeftModel.from_pretrained(plain, tmp_path, is_trainable=True)
    with torch.no_grad():
        assert (model(ids()) - base(ids())).abs().max() > 0.05
    same_training(model, peer, "ia3_l")
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
        {"target_modules": ["q_proj", "v_proj", "down_proj"]},
        {"target_modules": ["k_proj", "up_proj"], "feedforward_modules": []},
        {
            "target_modules": ["layers.1.self_attn.k_proj", "0.mlp.down_proj", "o_proj"],
            "feedforward_modules": ["0.mlp.down_proj", "o_proj"],
        },
    ],
    ids=str,
)
@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_adapters_of_peft_load_here(
    fields: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    base, model = random_model(0, **changes), random_model(0, **changes)
    peft, plain = peer_base(base, tmp_path / "base")
    config = {"target_modules": TARGETS, "feedforward_modules": FEEDFORWARD, **fields}
    peer = peft.get_peft_model(plain, peft.IA3Config(task_type="CAUSAL_LM", **config))
    moved(peer, "ia3_l")
    peer.eval().save_pretrained(tmp_path / "adapter")
    load_adapter(model, tmp_path / "adapter")
    with torch.no_grad():
        theirs = peer(ids()).logits
        assert (base(ids()) - theirs).abs().max() > 0.01
        assert_close(model(ids()), theirs)
        merge_adapter(model)
        assert_close(model(ids()), peer.merge_and_unload()(ids()).logits)


def test_a_new_adapter_changes_nothing_and_trains_only_itself() -> None:
    base, model = random_model(0), random_model(0)
    names = add_ia3(model)
    with torch.no_grad():
        assert torch.equal(base(ids()), model(ids()))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.ia3_l" for name in names}
    assert {name.rpartition(".")[2] for name in names} == set(TARGETS)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"target_modules": ".*_proj"}, "target_modules"),
        ({"feedforward_modules": None}, "feedforward_modules"),
        ({"feedforward_modules": ["o_proj"]}, "o_proj"),
        ({"target_modules": ["c_attn"]}, "c_attn"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"exclude_modules": ["k_proj"]}, "exclude_modules"),
        ({"target_modules": ["v_proj", "down_proj"]}, "another model"),
    ],
)
def test_an_adapter_that_would_be_another_function_is_refused(
    fields: dict[str, object], named: str, tmp_path: Path
) -> None:
    save_ia3(adapted(), tmp_path, base="models/base")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(UserError, match=named):
        load_adapter(random_model(0), tmp_path)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    save_ia3(adapted(), tmp_path, base="models/base")
    with pytest.raises(UserError, match="another model"):
        load_adapter(random_model(0, intermediate_size=80), tmp_path)
