"""params.yaml is refused by name, never by a traceback from inside a stage."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm import params
from llm.errors import UserError

ROOT = Path(__file__).parents[2]
DEFAULT = yaml.safe_load((ROOT / "params.yaml").read_text())


def changed(path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(DEFAULT)
    node = data
    *parents, last = path.split(".")
    for key in parents:
        node = node.setdefault(key, {})
    node[last] = value
    return data


def test_the_default_is_valid() -> None:
    p = params.load(ROOT / "params.yaml")
    assert p.pretrain.steps * p.pretrain.batch_tokens >= p.pretrain.tokens


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("pretrain.lerning_rate", 0.1, "did you mean learning_rate"),
        ("pretrian", {}, "did you mean pretrain"),
        ("finetune.lora.rank", 3, "finetune.lora.rank: unknown key"),
        ("finetune.lora.r", 0, "finetune.lora.r: "),
        ("finetune.method", "vera", "finetune.method: "),
        (
            "finetune.prompt_tuning",
            {"num_virtual_tokens": 0},
            "finetune.prompt_tuning.num_virtual_tokens: ",
        ),
        ("tokenize.tokenizer", "pretrained", "tokenize: origin (data/raw/pretrain)"),
        ("checkpoints", {"a": {"id": "x/y", "revision": "main"}}, "checkpoints.a.revision: "),
        ("checkpoints", {"a": {"id": "y", "revision": "0" * 40}}, "checkpoints.a.id: "),
        ("model.hidden_size", 250, "hidden_size (250) must be divisible by num_attention_heads"),
        ("model.num_key_value_heads", 3, "multiple of num_key_value_heads"),
        ("model.head_dim", 63, "must be even"),
        ("model.sliding_window", 64, "sliding_window and qk_norm"),
        ("model.num_hidden_layers", 0, "model.num_hidden_layers"),
        ("pretrain.learning_rate", -1, "greater than 0, found -1"),
        ("pretrain.learning_rate", float("nan"), "finite"),
        ("pretrain.learning_rate", "fast", "valid number"),
        ("pretrain.batch_tokens", 1000, "multiple of sequence_length"),
        ("pretrain.sequence_length", 1024, "max_position_embeddings"),
        ("pretrain.optimizer", "adam", "'muon' or 'adamw'"),
        ("mix.max_tokens", 4096, "mix.max_tokens"),
        ("mix.tasks.sumarization", {"weight": 1.0}, "has no source"),
        (
            "download.pretrain",
            {"source": "web"},
            "'web' is unknown; expected docs, files, hub or mixture",
        ),
        ("download.pretrain", {}, "source: missing"),
        ("download.pretrain", {"source": "files"}, "paths: missing"),
        ("download.pretrain", {"source": "files", "paths": []}, "at least 1 item"),
        ("download.pretrain", {"source": "files", "path": ["x"]}, "did you mean paths"),
        ("download.pretrain", {"source": "hub", "id": "a/b", "revision": "main"}, "revision"),
        ("download.../etc", {"source": "docs"}, "letters, digits"),
        ("evaluate.variants", {"beams/4": {"num_beams": 4}}, "evaluate.variants.beams/4"),
        ("evaluate.perplexity_tokens", 1, "evaluate.perplexity_tokens"),
        ("seed", -1, "seed"),
        ("seed", None, "seed"),
    ],
)
def test_an_impossible_value_is_named_with_what_was_expected(
    path: str, value: Any, expected: str
) -> None:
    if path.startswith("download..."):
        data = copy.deepcopy(DEFAULT)
        data["download"]["../etc"] = value
    else:
        data = changed(path, value)
    with pytest.raises(UserError) as caught:
        params.parse(data, "params.yaml")
    assert expected in str(caught.value)


def test_all_mistakes_are_listed_at_once() -> None:
    data = changed("pretrain.lerning_rate", 1)
    data["tokenize"]["vocab_size"] = 1
    with pytest.raises(UserError, match="2 invalid values"):
        params.parse(data)


def test_words_and_numbers_are_what_they_are_for_dvc_also_after_it_has_rewritten_the_file(
    tmp_path: Path,
) -> None:
    """DVC writes YAML 1.2, where `no` needs no quotes; read as YAML 1.1 it would be false."""
    from dvc.utils.serialize import modify_yaml

    path = tmp_path / "params.yaml"
    shutil.copyfile(ROOT / "params.yaml", path)
    source = {
        "source": "files",
        "kind": "classification",
        "paths": ["a.csv"],
        "labels": ["no", "yes"],
    }
    with modify_yaml(str(path)) as data:  # what `dvc exp run -S` does
        data["download"]["answers"] = source
        data["mix"]["tasks"]["answers"] = {"weight": 1}
        data["tokenize"]["clean"]["languages"] = ["no", "en"]
    text = path.read_text().replace("learning_rate: 0.005", "learning_rate: 5e-3")
    assert "- no\n" in text
    path.write_text(text)
    found = params.load(path)
    assert found.download["answers"].labels == ["no", "yes"]
    assert found.tokenize.clean.languages == ["no", "en"]
    assert found.pretrain.learning_rate == 0.005


@pytest.mark.parametrize("content", [None, "a: [", "- 1\n- 2\n", "\xff"])
def test_a_file_that_is_missing_or_no_mapping_is_named(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"params\.yaml"):
        params.load(path)
