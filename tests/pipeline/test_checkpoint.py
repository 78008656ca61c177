"""A checkpoint of others through the DAG: its bytes are dependencies, and no stage that it makes
needless runs.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
import yaml
from tokenizers import decoders, pre_tokenizers, trainers

from llm.model.config import Config
from llm.model.hf_files import load_model, save_model
from llm.model.transformer import Transformer
from tests.pipeline.workspace import copy, run
from tests.tokenizer.test_pretrained import CHATML

THEIRS = "models/theirs"


def make_checkpoint(root: Path) -> None:
    """A random Qwen2 with a byte-level tokenizer of its own."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = pq.read_table(root / "data/raw/pretrain/part-00000.parquet", columns=["text"])[
        "text"
    ].to_pylist()[:300]
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    directory = root / THEIRS
    directory.mkdir(parents=True)
    model = Transformer(Config(710, 32, 64, 2, 2, 1, 16, 256, 10000.0, 1e-6, True, qkv_bias=True))
    model.initialize(3)
    save_model(model, directory, directory, tokenizer.token_to_id("<|im_end|>"))
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "chat_template": CHATML,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def root(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {
        "tokenize": {"tokenizer": "pretrained", "origin": THEIRS},
        "finetune": {
            "base": THEIRS,
            "method": "prompt_tuning",
            "prompt_tuning": {"num_virtual_tokens": 4},
        },
        "mix": {"max_tokens": 240},
    }
    root = copy(prepared, tmp_path_factory.mktemp("checkpoint") / "checkout", changes)
    make_checkpoint(root)
    run(root, "dvc", "repro", "evaluate", timeout=300)
    return root


def test_a_checkpoint_is_finetuned_and_evaluated_without_pretraining(root: Path) -> None:
    assert not (root / "models/base").exists()
    tokenizer = json.loads((root / "data/tokenizer/tokenizer.json").read_text())
    assert tokenizer == json.loads((root / THEIRS / "tokenizer.json").read_text())
    scores = json.loads((root / "metrics/evaluate.json").read_text())
    assert scores["base"].keys() == scores["finetuned"].keys()
    config = json.loads((root / "models/finetuned/config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert (root / "models/finetuned/prompt/adapter_model.safetensors").exists()
    metrics = json.loads((root / "metrics/finetune.json").read_text())
    assert metrics["trainable_parameters"] == 4 * 32


def test_a_base_whose_bytes_change_is_noticed(root: Path) -> None:
    assert "finetune" not in run(root, "dvc", "status", "finetune").stdout
    model = load_model(root / THEIRS)
    model.model.norm.weight.data[0] += 1.0
    (root / "other").mkdir()
    save_model(model, root / "other", root / THEIRS, 702)
    before = (root / THEIRS / "model.safetensors").read_bytes()
    (root / THEIRS / "model.safetensors").write_bytes(
        (root / "other" / "model.safetensors").read_bytes()
    )
    try:
        assert THEIRS in run(root, "dvc", "status", "finetune").stdout
    finally:
        (root / THEIRS / "model.safetensors").write_bytes(before)


def test_pretraining_goes_on_from_a_checkpoint(root: Path) -> None:
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["pretrain"] |= {
        "init": THEIRS,
        "learning_rate": 1e-4,
        "optimizer": "adamw",
        "tokens": 1024,
    }
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    run(root, "dvc", "repro", "pretrain", timeout=300)
    theirs, ours = load_model(root / THEIRS), load_model(root / "models/base")
    assert ours.config == theirs.config
    pairs = list(zip(theirs.parameters(), ours.parameters(), strict=True))
    assert all((a - b).abs().max() < 1e-3 for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert (root / "models/base/tokenizer_config.json").read_bytes() == (
        root / THEIRS / "tokenizer_config.json"
    ).read_bytes()


def test_shards_of_another_tokenizer_are_refused(root: Path) -> None:
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["tokenize"] |= {"tokenizer": "bpe", "origin": "data/raw/pretrain"}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    done = run(root, "dvc", "repro", "pretrain", check=False, timeout=300)
    assert done.returncode != 0
    assert "was not made with the tokenizer of models/theirs" in done.stdout + done.stderr
