"""Every method of finetuning: resumed in the middle, its files PEFT's, its merged model the same
function.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llm.data.examples import packed_examples
from llm.errors import UserError
from llm.model.adapted_linear import merge_adapter
from llm.model.adapters import load_adapter
from llm.model.hf_files import digests, load_model, save_model
from llm.model.quantized import QuantizedLinear
from llm.model.transformer import Transformer
from llm.params import Finetune
from llm.runtime import outputs
from llm.runtime.io import other_files
from llm.tokenizer.bpe import Tokenizer
from llm.train import finetune_methods
from llm.train.checkpoint.local import State
from llm.train.trainer import Trainer
from llm.train.training_log import Untracked
from tests.model.conftest import random_model

METHODS = ["lora", "qlora", "dora", "ia3", "full", "prompt_tuning"]
LORA = {
    "r": 4,
    "alpha": 8.0,
    "dropout": 0.1,
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "rslora": True,
}


def settings(base: Path, method: str, **changes: Any) -> Finetune:
    values = {
        "base": str(base), "method": method, "lora": LORA, "prompt_tuning": {"num_virtual_tokens": 5}, "epochs": 2,
        "batch_tokens": 128, "sequence_length": 64, "optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.0,
        "betas": (0.9, 0.95), "grad_clip": 1.0, "schedule": "cosine", "warmup_fraction": 0.1, "decay_fraction": 0.5,
        "min_lr_fraction": 0.1, "eval_every": 5, "eval_tokens": 640, "precision": "fp32", "compile": False,
    }  # fmt: skip
    return Finetune(**{**values, **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    tokenizer = Tokenizer.train(["the cat and the dog sat on the mat " * 3], 290)
    model = random_model(0, qk_norm=True, hidden_size=64)
    save_model(model, directory, directory, tokenizer.eos_id)
    tokenizer.save(directory)
    return directory


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mix") / "train.parquet"
    words = ["cat", "dog", "mat", "sat", "on", "the", "and"]
    rows = [
        {
            "id": str(i),
            "task": "copy" if i % 5 else "language_modeling",
            "prompt": f"say {words[i % 7]} {words[i % 3]}" if i % 5 else "",
            "response": f"{words[i % 7]} {words[i % 3]}",
        }
        for i in range(60)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def train(s: Finetune, examples: Path, run: str) -> tuple[Transformer, Tokenizer, float]:
    tokenizer = Tokenizer.load(s.base)
    model = finetune_methods.prepare(s, tokenizer, seed=1)
    data = packed_examples(examples, tokenizer, s.sequence_length, 1)[""]
    state = State("finetune", {"run": run})
    loss = Trainer(model, data, data, data, s, 12, 1, state, Untracked()).run().val_loss
    return model, tokenizer, loss


def trained(model: Transformer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def needs(method: str) -> None:
    if method == "qlora":
        pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`")


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_continues_to_the_same_bytes_and_learns(
    method: str, base: Path, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(method)
    s = settings(base, method)
    whole, tokenizer, loss = train(s, examples, "whole")
    fresh = finetune_methods.prepare(s, tokenizer, seed=1)
    data = packed_examples(examples, tokenizer, s.sequence_length, 1)[""]
    before = Trainer(
        fresh, data, data, data, s, 12, 1, State("finetune", {"run": "none"}), Untracked()
    ).engine.evaluate(data)
    assert loss < before - 0.1
    step = Trainer.step

    def interrupted(self: Trainer, number: int, batches: Iterator) -> tuple[float, float, float]:
        if number == 4:  # of 12, in the middle of the first epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number, batches)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(SystemExit, match="step 5"):
        train(s, examples, "stopped")
    monkeypatch.setattr(Trainer, "step", step)
    resumed, _, again = train(s, examples, "stopped")
    assert again == loss
    expected = trained(whole)
    assert trained(resumed).keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in trained(resumed).items())


@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_is_what_was_trained_and_peft_reads_it(
    method: str, base: Path, examples: Path, tmp_path: Path
) -> None:
    needs(method)
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    peft = pytest.importorskip("peft", reason="needs the extra `peers`")
    s = settings(base, method)
    model, tokenizer, _ = train(s, examples, f"written {method}")
    finetune_methods.write(
        model, s, tokenizer, digests(base), tmp_path / "adapter", tmp_path / "finetuned"
    )
    assert other_files(tmp_path / "adapter", outputs.ADAPTER) == []
    assert other_files(tmp_path / "finetuned", outputs.MODEL) == []
    ids = torch.tensor([tokenizer.chat_ids("say cat"), tokenizer.chat_ids("say mat")])
    words = ids[:, len(tokenizer.prefix) :]
    plain = load_model(base).eval()
    merged = load_model(tmp_path / "finetuned")
    assert Tokenizer.load(tmp_path / "finetuned").chat_ids("say cat") == ids[0].tolist()
    with torch.no_grad():
        logits = merged(ids)[:, len(tokenizer.prefix) :]
        assert (logits - plain(words)).abs().max() > 0.05
        stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "finetuned").eval()
        if method == "full":
            torch.testing.assert_close(logits, model.eval()(ids), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(logits, stock(words).logits, rtol=1e-4, atol=1e-4)
            return
        peer = transformers.AutoModelForCausalLM.from_pretrained(base)
        theirs = peft.PeftModel.from_pretrained(peer, tmp_path / "adapter").eval()(words).logits
        torch.testing.assert_close(logits, theirs[:, -words.shape[1] :], rtol=1e-4, atol=1e-4)
        chosen = load_model(base)
        load_adapter(chosen, tmp_path / "adapter", base)
        torch.testing.assert_close(
            chosen.eval()(ids)[:, len(tokenizer.prefix) :], logits, rtol=1e-4, atol=1e-4
        )
        if method == "prompt_tuning":
            again = (
                peft.PeftModel.from_pretrained(stock, tmp_path / "finetuned" / "prompt")
                .eval()(words)
                .logits
            )
            torch.testing.assert_close(logits, again[:, -words.shape[1] :], rtol=1e-4, atol=1e-4)
        else:
            torch.testing.assert_close(logits, stock(words).logits, rtol=1e-4, atol=1e-4)


def test_a_base_in_4_bits_is_that_of_transformers(base: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    how = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        base, quantization_config=how, device_map="cpu", dtype=torch.float32
    ).train()  # in eval mode bitsandbytes packs again for a CPU kernel, with scales in bfloat16
    ids = torch.randint(0, 290, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, exact = load_model(base, quantize=True)(ids), load_model(base)(ids)
        assert (ours - exact).abs().max() > 1e-3
        torch.testing.assert_close(ours, peer(ids).logits, rtol=1e-4, atol=1e-4)


def test_an_adapter_for_another_base_is_refused(base: Path, examples: Path, tmp_path: Path) -> None:
    s = settings(base, "lora")
    model, tokenizer, _ = train(s, examples, "adapter")
    finetune_methods.write(
        model, s, tokenizer, digests(base), tmp_path / "adapter", tmp_path / "finetuned"
    )
    with pytest.raises(UserError, match=r"another base.*model\.safetensors"):
        load_adapter(
            load_model(tmp_path / "finetuned"), tmp_path / "adapter", tmp_path / "finetuned"
        )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sequence_length": 128, "batch_tokens": 128}, "max_position_embeddings"),
        (
            {"method": "prompt_tuning", "prompt_tuning": {"num_virtual_tokens": 64}},
            "num_virtual_tokens",
        ),
        ({"lora": {**LORA, "target_modules": ["query"]}}, "query"),
        ({"lora": {**LORA, "r": 33}}, "33"),
    ],
)
def test_what_does_not_fit_the_base_is_refused(
    changes: dict[str, Any], named: str, base: Path
) -> None:
    s = settings(base, **{"method": "lora", **changes})
    with pytest.raises(UserError, match=named):
        finetune_methods.prepare(s, Tokenizer.load(base), seed=1)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(base: Path) -> None:
    tokenizer = Tokenizer.load(base)
    tokenizer.vocab_size = 301
    with pytest.raises(UserError, match="vocab_size = 300"):
        finetune_methods.prepare(settings(base, "lora"), tokenizer, seed=1)


@pytest.mark.parametrize("method", ["qlora", "dora", "ia3", "prompt_tuning"])
def test_methods_that_are_not_sharded_are_refused_where_sharding_is_asked_for(
    method: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LLM_SHARDING", "fsdp")
    with pytest.raises(UserError, match=f"finetune.method={method} is not sharded"):
        finetune_methods.prepare(settings(base, method), Tokenizer.load(base), seed=1)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_a_base_in_4_bits_takes_an_adapter_that_can_be_on_it_and_none_is_merged_into_it(
    method: str, base: Path, examples: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`")
    s = settings(base, method, epochs=1)
    model, tokenizer, _ = train(s, examples, f"4 bits {method}")
    finetune_methods.write(model, s, tokenizer, digests(base), tmp_path / "a", tmp_path / "f")
    packed, unpacked = load_model(base, quantize=True), load_model(base)
    if method == "dora":
        with pytest.raises(UserError, match="DoRA needs the base's own weights"):
            load_adapter(packed, tmp_path / "a", base)
        return
    ids = torch.tensor([tokenizer.chat_ids("say cat")])
    with torch.no_grad():
        for name, module in packed.named_modules():
            if isinstance(module, QuantizedLinear):
                rounded = module(torch.eye(module.in_features)).T
                unpacked.get_submodule(name).weight.copy_(rounded)
        before = packed(ids)
        for model in (packed, unpacked):
            load_adapter(model, tmp_path / "a", base)
        found = packed.eval()(ids)
        assert (found - before).abs().max() > 0.02
        torch.testing.assert_close(found, unpacked.eval()(ids), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="not merged into a base in 4 bits"):
        merge_adapter(packed)
