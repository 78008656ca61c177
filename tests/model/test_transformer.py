"""The model computes what `transformers` computes, and its files are Hugging Face's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llm.errors import UserError
from llm.model.config import Config
from llm.model.hf_files import load_model, save_model
from llm.model.transformer import Transformer

transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")


def test_logits_equal_transformers(model: Transformer, tmp_path: Path) -> None:
    save_model(model, tmp_path, tmp_path, eos_id=0)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(peer).__name__ == model.config.architecture
    ids = torch.randint(0, 300, (3, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours, theirs = model(ids), peer(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_saved_weights_load_bit_for_bit_and_save_to_the_same_bytes(
    model: Transformer, tmp_path: Path
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir(), second.mkdir()
    save_model(model, first, tmp_path, eos_id=0)
    again = load_model(first)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    save_model(again, second, tmp_path, eos_id=0)
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_checkpoints_written_by_transformers_load_here(model: Transformer, tmp_path: Path) -> None:
    save_model(model, tmp_path, tmp_path, eos_id=0)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    peer.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    again = load_model(tmp_path / "theirs")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_parameter_count_is_exact(model: Transformer) -> None:
    assert model.config.parameters() == sum(p.numel() for p in model.parameters())


def test_packed_segments_give_each_part_its_own_logits(model: Transformer) -> None:
    a = torch.randint(0, 300, (1, 11), generator=torch.Generator().manual_seed(1))
    b = torch.randint(0, 300, (1, 13), generator=torch.Generator().manual_seed(2))
    packed = torch.cat((a, b), dim=1)
    segments = torch.tensor([[1] * 11 + [2] * 13])
    positions = torch.tensor([[*range(11), *range(13)]])
    with torch.no_grad():
        together = model(packed, segments=segments, positions=positions)
        torch.testing.assert_close(together[:, :11], model(a), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together[:, 11:], model(b), rtol=1e-4, atol=1e-4)


def test_gradients_equal_transformers(model: Transformer, tmp_path: Path) -> None:
    save_model(model, tmp_path, tmp_path, eos_id=0)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).train()
    # Ids from 1 on: 0 is the padding id here, and `transformers` gives its embedding no gradient.
    ids = torch.randint(1, 300, (2, 33), generator=torch.Generator().manual_seed(5))
    (model.loss(ids[:, :-1], ids[:, 1:]) / (2 * 32)).backward()
    peer(ids, labels=ids).loss.backward()
    theirs = dict(peer.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-5)


def test_bfloat16_activations_stay_close_to_float32(model: Transformer) -> None:
    ids = torch.randint(0, 300, (2, 32), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        exact = model.loss(ids[:, :-1], ids[:, 1:])
        model.compute_dtype = torch.bfloat16
        rounded = model.loss(ids[:, :-1], ids[:, 1:])
    assert float((exact - rounded).abs() / exact) < 0.02


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"logit_scale": 0.5}, "logit_scale"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, "longrope"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_a_config_that_means_another_function_is_refused(
    change: dict[str, object], named: str
) -> None:
    data = Config(**{**_dimensions(), "qk_norm": False}).to_json(0) | change
    with pytest.raises(UserError, match=named):
        Config.from_json(data, "config.json")


@pytest.mark.parametrize(
    "damage", ["truncated", "missing tensor", "wrong shape", "no weights", "pickle"]
)
def test_broken_model_directories_are_named(damage: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = Transformer(Config(**_dimensions()))
    model.initialize(0)
    save_model(model, tmp_path, tmp_path, eos_id=0)
    weights = tmp_path / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "missing tensor":
        tensors = load_file(weights)
        del tensors["model.norm.weight"]
        save_file(tensors, weights)
    elif damage == "wrong shape":
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 80}))
    else:
        weights.unlink()
        if damage == "pickle":
            (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError) as caught:
        load_model(tmp_path)
    expected = {
        "truncated": "truncated",
        "missing tensor": "model.norm.weight",
        "wrong shape": "shape",
        "no weights": "model.safetensors",
        "pickle": "pickled",
    }
    assert expected[damage] in str(caught.value)


def _dimensions() -> dict[str, object]:
    from tests.model.conftest import BASE

    return dict(BASE)
