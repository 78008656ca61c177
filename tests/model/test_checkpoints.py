"""Checkpoints of others: every family computes what `transformers` computes, and goes out again as
what it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.errors import UserError
from llm.generation.kv_cache import Cache, Step, prefill
from llm.model.config import ROTARY, Config
from llm.model.hf_files import digests, load_config, load_model, save_model
from llm.model.transformer import Transformer

transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32, "rope_theta": 10000.0}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 10000.0,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-untied": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
    ),
    "llama-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "llama-yarn-mscale": (
        "Llama",
        {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0}},
    ),
    "llama-head-dim": ("Llama", {"head_dim": 32}),
    "mistral-window": ("Mistral", {"sliding_window": 9}),
    "mistral-no-window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-biases": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
}


def peer_of(family: str, **changes: Any) -> Any:
    """A tiny model of `transformers` with random weights, biases and norms too."""
    kind, fields = FAMILIES[family]
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **fields, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.inference_mode()
def cached_logits(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    """Logits behind `ids` (batch, seq) from the tenth on: ten tokens at once, then one by one
    through the cache.
    """
    batch, seq = ids.shape
    cache, step = Cache.empty(model, batch, seq), Step(model)
    parts = [
        torch.stack([prefill(model, row[:10].tolist(), cache, i) for i, row in enumerate(ids)])[
            :, None
        ]
    ]
    for at in range(10, seq):
        parts.append(step(ids[:, at : at + 1], torch.full((batch,), at), cache.keys, cache.values))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_logits_equal_transformers_with_cache_and_without_and_the_class_survives_the_round_trip(
    family: str, tmp_path: Path
) -> None:
    peer = peer_of(family)
    peer.save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    model = load_model(tmp_path / "theirs")
    assert model.config.parameters() == sum(p.numel() for p in peer.parameters())
    ids = torch.randint(0, 300, (2, 100), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs = peer(ids).logits
        torch.testing.assert_close(model(ids), theirs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cached_logits(model, ids), theirs[:, 9:], rtol=1e-4, atol=1e-4)
    (tmp_path / "ours").mkdir()
    save_model(model, tmp_path / "ours", tmp_path / "theirs", eos_id=0)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is type(peer)
    assert again.config.eos_token_id == peer.config.eos_token_id
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, theirs, rtol=1e-5, atol=1e-5)
    assert load_config(tmp_path / "ours") == model.config


def test_a_bfloat16_checkpoint_can_stay_in_its_type_and_computes_the_same(tmp_path: Path) -> None:
    peer_of("qwen2").to(torch.bfloat16).save_pretrained(tmp_path)
    wide, kept = load_model(tmp_path), load_model(tmp_path, keep_stored=True)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert {p.dtype for p in kept.parameters()} == {torch.bfloat16}
    ids = torch.randint(0, 300, (2, 30), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(wide(ids), kept(ids))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"sliding_window": 16}, "sliding_window"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "high_freq_factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 3}}, "beta_fast"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"attention_multiplier": 0.1}, "attention_multiplier"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"head_dim": 15}, "head_dim"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"use_mrope": True}, "use_mrope"),
        ({"no_rope_layers": [1]}, "no_rope_layers"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
    ],
)
def test_what_would_be_another_function_is_refused_by_name(
    change: dict[str, Any], named: str
) -> None:
    plain = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **SIZES,
        "rms_norm_eps": 1e-6,
    }
    assert Config.from_json(plain, "config.json").architecture == "LlamaForCausalLM"
    with pytest.raises(UserError, match=named):
        Config.from_json(plain | change, "config.json")


@pytest.mark.parametrize(
    "change",
    [
        {"use_mrope": False},  # Qwen2.5's own file
        {"_model_name_or_path": "tiny.gguf", "_commit_hash": "0" * 40},
        {
            "rope_scaling": None,
            "partial_rotary_factor": None,
            "rope_parameters": {"rope_theta": 10000.0, "f": None},
        },
        {
            "scale_residual": None,
            "use_parallel_residual": False,
            "extra_heads": 0,
            "tags": [],
            "adapters": {},
        },
    ],
)
def test_what_cannot_change_the_function_is_left_aside_and_said_once(
    change: dict[str, Any], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plain = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **SIZES,
        "rms_norm_eps": 1e-6,
    }
    where = str(tmp_path / "config.json")  # a place of its own: the note comes once for each
    expected = Config.from_json(plain, where)
    assert not capfd.readouterr().err
    assert [Config.from_json(plain | change, where) for _ in range(2)] == [expected, expected]
    said = capfd.readouterr().err
    unknown = [key for key in change if key != "use_mrope" and key not in ROTARY]
    assert all(said.count(key) == 1 for key in unknown), said


@pytest.mark.parametrize("stored", ["another head", "the same head", "only the head"])
def test_the_weights_decide_whether_embeddings_are_tied(stored: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    peer_of("llama-untied").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    if stored != "another head":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    if stored == "only the head":
        del tensors["model.embed_tokens.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    content = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(content))
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    model = load_model(tmp_path)
    assert model.config.tie_word_embeddings == (stored != "another head")
    (tmp_path / "again").mkdir()
    save_model(model, tmp_path / "again", tmp_path, eos_id=0)
    ids = torch.arange(30)[None]
    with torch.no_grad():
        theirs = peer(ids).logits
        for each in (model, load_model(tmp_path / "again")):
            torch.testing.assert_close(each(ids), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("old_shards", ["gone", "still there"])
def test_a_model_file_goes_before_an_older_index(old_shards: str, tmp_path: Path) -> None:
    old, new = peer_of("llama-untied"), peer_of("llama-untied")
    old.save_pretrained(tmp_path / "old", max_shard_size="50KB")
    new.lm_head.weight.data.mul_(2)
    new.save_pretrained(tmp_path)
    for path in (tmp_path / "old").glob("model*"):
        if old_shards == "still there" or path.suffix == ".json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(30)[None]
    with torch.no_grad():
        theirs = peer(ids).logits
        torch.testing.assert_close(load_model(tmp_path)(ids), theirs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(new(ids).logits, theirs)
    assert set(digests(tmp_path)) == {"config.json", "model.safetensors"}


def test_a_qwen_with_a_sliding_window_in_use_is_refused() -> None:
    config = peer_of("qwen3").config.to_dict() | {"use_sliding_window": True, "sliding_window": 8}
    with pytest.raises(UserError, match="use_sliding_window"):
        Config.from_json(config | {"architectures": ["Qwen3ForCausalLM"]}, "config.json")


@pytest.mark.parametrize(
    "damage", ["truncated shard", "shard gone", "extra tensor", "integers", "path in index"]
)
def test_broken_sharded_checkpoints_are_named(damage: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    peer_of("llama-untied").save_pretrained(tmp_path, max_shard_size="50KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    expected = shards[1].name
    if damage == "truncated shard":
        shards[1].write_bytes(shards[1].read_bytes()[:-10])
    elif damage == "shard gone":
        shards[1].unlink()
    elif damage == "extra tensor":
        save_file({**load_file(shards[1]), "model.vision.weight": torch.zeros(2)}, shards[1])
        expected = "model.vision.weight"
    elif damage == "integers":
        save_file({k: v.to(torch.int8) for k, v in load_file(shards[1]).items()}, shards[1])
        expected = "int8"
    else:
        index = tmp_path / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        content["weight_map"]["lm_head.weight"] = "../elsewhere.safetensors"
        index.write_text(json.dumps(content))
        expected = "path"
    with pytest.raises(UserError, match=expected):
        load_model(tmp_path)


MEASURE = """
import sys
import torch
from llm.model.hf_files import load_model

def high_water():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

load_model(sys.argv[1])  # what torch and safetensors need by themselves
before = high_water()
model = load_model(sys.argv[2])
print(high_water() - before, sum(p.numel() * 4 for p in model.parameters()))
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads the high-water mark of memory from /proc"
)
def test_loading_needs_the_model_and_one_tensor(tmp_path: Path) -> None:
    peer_of("llama-untied").save_pretrained(tmp_path / "tiny")
    sizes = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 10,
        "vocab_size": 4096,
    }
    peer_of("llama-untied", **sizes).save_pretrained(tmp_path / "large")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "tiny"), str(tmp_path / "large")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    grown, model = map(int, done.stdout.split())
    assert model > 150e6
    largest = 4 * 4096 * 512
    assert grown < model + 3 * largest, (
        grown,
        model,
    )  # the tensor, its pages in the file, and the allocator's slack
