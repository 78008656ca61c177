"""Models by name: adapters share the base's memory, and what is not there is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llm.errors import UserError
from llm.generation.loaded_models import Shelf
from llm.model.adapted_linear import merge_adapter
from llm.model.dora import add_dora
from llm.model.hf_files import load_model, stop_ids
from llm.model.ia3 import add_ia3, save_ia3
from llm.model.lora_files import save_lora
from tests.model.peft_peer import moved
from tests.server.conftest import model_directories


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    directories = model_directories(tmp_path_factory.mktemp("models"))
    return Shelf(directories, torch.device("cpu"), torch.float32)


def test_adapters_share_the_memory_of_the_base_and_leave_it_as_it_is(shelf: Shelf) -> None:
    base, skill = shelf.get("base").model, shelf.get("skill").model
    own = {p.data_ptr() for p in skill.parameters()} - {p.data_ptr() for p in base.parameters()}
    assert len(own) == 2 * 2 * base.config.num_hidden_layers  # A and B of two matrices a layer
    ids = torch.tensor([[5, 6, 7]])
    fresh = Shelf(shelf.directories, torch.device("cpu"), torch.float32).get("base").model
    assert torch.equal(base(ids), fresh(ids))
    assert not torch.allclose(base(ids), skill(ids))


@pytest.mark.parametrize("method", ["dora", "ia3"])
def test_every_kind_of_adapter_shares_the_base(method: str, shelf: Shelf, tmp_path: Path) -> None:
    base, model = shelf.get("base").model, load_model(shelf.directories["base"])
    if method == "dora":
        lora = {"r": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ["q_proj", "down_proj"]}
        add_dora(model, 4, 8.0, 0.0, lora["target_modules"], 0)
        moved(model, "lora_")
        save_lora(model, tmp_path, lora, base="base")
    else:
        add_ia3(model)
        moved(model, "ia3_l")
        save_ia3(model, tmp_path, base="base")
    found = shelf.get(str(tmp_path)).model
    own = {p.data_ptr() for p in found.parameters()} - {p.data_ptr() for p in base.parameters()}
    assert len(own) == sum(p.requires_grad for p in model.parameters())
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        merge_adapter(model)
        torch.testing.assert_close(found(ids), model.eval()(ids), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found(ids), base(ids), atol=1e-2)


def test_a_model_that_is_not_there_is_refused_by_name(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="no model 'bass': expected base, finetuned, skill, or a directory"
    ):
        shelf.get("bass")
    alone = Shelf({"finetuned": shelf.directories["finetuned"]}, torch.device("cpu"), torch.float32)
    with pytest.raises(UserError, match="is an adapter, but there is no model called `base`"):
        alone.get(str(shelf.directories["skill"]))


def test_the_stop_tokens_of_a_generation_config_are_heeded(shelf: Shelf, tmp_path: Path) -> None:
    tokenizer = shelf.get("base").tokenizer
    for written, expected in ((None, set()), (7, {7}), ([7, 8], {7, 8})):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": written}))
        assert stop_ids(tmp_path, tokenizer) == expected | {tokenizer.eos_id}
