"""One dial: what it derives, what wins over it, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm import params
from llm.errors import UserError
from llm.model.config import Config
from llm.params import presets
from llm.params.depth import AUTO, SHAPE, TRAINING, layer_weights

ROOT = Path(__file__).parents[2]
DEFAULT = yaml.safe_load((ROOT / "params.yaml").read_text())


def dial(depth: Any, **stated: Any) -> dict[str, Any]:
    """params.yaml with every derivable key on `auto`, but for those stated as `section__key=value`."""
    data = copy.deepcopy(DEFAULT)
    presets._merge(data, yaml.safe_load((ROOT / "presets" / "depth.yaml").read_text()))
    data["model"]["depth"] = depth
    for key, value in stated.items():
        section, _, name = key.partition("__")
        data[section][name] = value
    return data


@pytest.mark.parametrize(
    (
        "depth",
        "hidden",
        "intermediate",
        "heads",
        "head_dim",
        "million_parameters",
        "batch_sequences",
        "rate",
        "decay",
    ),
    [
        (4, 256, 704, 4, 64, 5.3, 64, 0.00367, 0.376),
        (
            12,
            768,
            2048,
            12,
            64,
            91.2,
            512,
            0.00175,
            0.367,
        ),  # GPT-2's smallest, but for its vocabulary
        (20, 1280, 3456, 10, 128, 407.0, 1024, 0.0012, 0.24),
    ],
)
def test_depth_gives_the_shape_and_the_training(
    depth: int,
    hidden: int,
    intermediate: int,
    heads: int,
    head_dim: int,
    million_parameters: float,
    batch_sequences: int,
    rate: float,
    decay: float,
) -> None:
    p = params.parse(dial(depth))
    m, t = p.model, p.pretrain
    assert (m.num_hidden_layers, m.hidden_size, m.intermediate_size) == (
        depth,
        hidden,
        intermediate,
    )
    assert (m.num_attention_heads, m.num_key_value_heads, m.head_dim) == (heads, heads, head_dim)
    n = Config(vocab_size=p.tokenize.vocab_size, **m.dimensions()).parameters()
    assert n == pytest.approx(million_parameters * 1e6, rel=0.01)
    assert t.tokens == pytest.approx(20 * n, rel=0.001)
    assert t.batch_tokens == batch_sequences * t.sequence_length
    assert (t.learning_rate, t.weight_decay) == (rate, decay)


def test_the_published_figures_come_out() -> None:
    """DeepSeek LLM 7B (arXiv:2401.02954, tables 2 and 3): 2T tokens, 9.4M tokens a batch, learning
    rate 4.2e-4.
    """
    shape = {
        "num_hidden_layers": 30,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
    }
    data = dial(30, **{f"model__{k}": v for k, v in shape.items()}, pretrain__tokens=2 * 10**12)
    data["model"]["max_position_embeddings"] = data["pretrain"]["sequence_length"] = 4096
    t = params.parse(data).pretrain
    assert t.batch_tokens == pytest.approx(
        9.4e6, rel=0.5
    )  # to the nearest power of two of sequences
    assert t.learning_rate == pytest.approx(4.2e-4, rel=0.1)


@pytest.mark.parametrize("depth", range(1, 40))
def test_every_depth_is_a_model_that_its_own_params_accept_again(depth: int) -> None:
    p = params.parse(dial(depth))
    again = dial(None, **{f"model__{k}": getattr(p.model, k) for k in SHAPE})
    again["pretrain"] |= {k: getattr(p.pretrain, k) for k in TRAINING}
    assert params.parse(again).pretrain == p.pretrain
    assert (
        layer_weights(p.model.model_dump())
        < Config(vocab_size=1000, **p.model.dimensions()).parameters()
    )


def test_a_stated_number_wins_and_the_rest_follows_from_it() -> None:
    free, p = (
        params.parse(dial(6, **stated))
        for stated in ({}, {"model__hidden_size": 320, "pretrain__tokens": 10**7})
    )
    assert (p.model.hidden_size, p.model.num_attention_heads, p.model.num_hidden_layers) == (
        320,
        5,
        6,
    )
    assert p.pretrain.tokens == 10**7
    assert p.pretrain.batch_tokens < free.pretrain.batch_tokens
    assert p.pretrain.learning_rate > free.pretrain.learning_rate
    slower = params.parse(dial(6, pretrain__learning_rate=free.pretrain.learning_rate / 2))
    assert slower.pretrain.weight_decay == pytest.approx(2 * free.pretrain.weight_decay, rel=0.01)
    wide = params.parse(dial(6, model__num_attention_heads=2)).model
    assert (wide.hidden_size, wide.num_attention_heads, wide.head_dim) == (384, 2, 192)


def test_without_a_depth_the_file_counts_as_it_is() -> None:
    p = params.load(ROOT / "params.yaml")
    assert p.model.depth is None
    assert p.model.dimensions() == {k: v for k, v in DEFAULT["model"].items() if k != "depth"}
    assert p.pretrain.model_dump(mode="json") == DEFAULT["pretrain"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (dial(None), r"model\.hidden_size, .*pretrain\.weight_decay: `auto` needs model\.depth"),
        (
            dial("deep"),
            "model.depth: expected a whole number of layers above 0, or null; found 'deep'",
        ),
        (dial(0), "model.depth: expected .* found 0"),
        (dial(True), "model.depth: expected .* found True"),
        (
            {**DEFAULT, "model": {**DEFAULT["model"], "depth": 8}},
            "model.depth is 8, but no key follows it.*preset depth",
        ),
        (
            dial(8, model__hidden_size=250),
            r"model\.num_attention_heads: .* 250 is no multiple of 64",
        ),
        (dial(8, model__head_dim=63), r"head_dim \(63\) must be even"),
        (dial(8, model__num_key_value_heads=3), "multiple of num_key_value_heads"),
        (dial(8, model__hidden_size="wide"), "model.hidden_size: .*'wide'"),
        (dial(8, model__rope_theta=AUTO), "model.rope_theta: .*'auto'"),
        (dial(8, finetune__learning_rate=AUTO), "finetune.learning_rate: .*'auto'"),
        (
            dial(8, pretrain__learning_rate=-1),
            r"1 invalid value:\n  pretrain\.learning_rate: .* found -1",
        ),
        (
            dial(8, pretrain__sequence_length="long"),
            r"1 invalid value:\n  pretrain\.sequence_length",
        ),
        (dial(8, pretrain__batch_tokens=1000), "multiple of sequence_length"),
    ],
)
def test_misuse_is_refused_by_the_name_of_the_key(data: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        params.parse(data)


def test_resolving_leaves_what_was_read_as_it_was() -> None:
    data = dial(4)
    before = copy.deepcopy(data)
    params.parse(data)
    assert data == before
