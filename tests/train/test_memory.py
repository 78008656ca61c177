"""The memory formula against what autograd, the optimizers and a checkpoint really hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llm import params
from llm.model.config import Config
from llm.model.dora import add_dora
from llm.model.ia3 import add_ia3
from llm.model.lora import add_lora
from llm.model.soft_prompt import add_prompt
from llm.model.transformer import Transformer
from llm.params import Finetune
from llm.train import memory
from llm.train.adapter_size import AdapterSize, adapter_size
from llm.train.optimizer import Optimizers

REPOSITORY = Path(__file__).parents[2]
TARGETS = ["q_proj", "v_proj", "down_proj"]
BASE = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "rope_theta": 1e4,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip


def saved_bytes(config: Config, dtype: torch.dtype, batch: int, length: int, compiled: bool) -> int:
    """Distinct storage that one forward pass keeps for its backward pass, parameters apart."""
    model = Transformer(config)
    model.initialize(0)
    if compiled:
        model.compile_parts()
    return saved_of(model, dtype, batch, length)


def saved_of(model: Transformer, dtype: torch.dtype, batch: int, length: int) -> int:
    """`saved_bytes` of this model."""
    model.compute_dtype = dtype
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.zeros(batch, length, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.loss(ids, ids)
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_a_layer_keeps_what_the_formula_counts(
    qk_norm: bool, dtype: torch.dtype, kv_heads: int
) -> None:
    dimensions = {**BASE, "qk_norm": qk_norm, "num_key_value_heads": kv_heads}
    two, four = (
        saved_bytes(Config(num_hidden_layers=layers, **dimensions), dtype, 8, 64, False)
        for layers in (2, 4)
    )
    config = Config(num_hidden_layers=1, **dimensions)
    cast = dtype.itemsize * memory.layer_matrices(config) if dtype != torch.float32 else 0
    counted = memory.layer_activations(config, 64, dtype.itemsize, False, False) * 8 * 64 + cast
    assert (four - two) / 2 == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("method", ["full", "lora", "dora", "ia3", "prompt_tuning"])
def test_the_optimizer_keeps_what_the_formula_counts(kind: str, method: str) -> None:
    config = Config(num_hidden_layers=2, qk_norm=True, **BASE)
    s, model = settings(method), adapted(config, method)
    size = adapter_size(config, s)
    if method != "full":
        assert size.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    optimizers = Optimizers(model, kind, 0.01, 0.1, (0.9, 0.95))
    first = config.vocab_size if method == "prompt_tuning" else 0
    targets = torch.zeros(1, 16, dtype=torch.int64)
    model.loss(targets + first, targets).backward()
    optimizers.step(0.01)
    held = sum(tensor.nbytes for tensor in optimizers.tensors().values())
    assert held == pytest.approx(memory.optimizer_bytes(config, kind, size), rel=0.01)


def settings(method: str) -> Finetune:
    s = params.load(REPOSITORY / "params.yaml").finetune
    lora = s.lora.model_copy(update={"r": 8, "target_modules": TARGETS})
    prompt = s.prompt_tuning.model_copy(update={"num_virtual_tokens": 4})
    return s.model_copy(update={"method": method, "lora": lora, "prompt_tuning": prompt})


def adapted(config: Config, method: str) -> Transformer:
    """A new model with what the method trains, of the values in `settings`."""
    model = Transformer(config)
    model.initialize(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)  # DoRA takes no matrix of zeros
    if method in ("lora", "dora"):
        (add_dora if method == "dora" else add_lora)(model, 8, 16.0, 0.0, TARGETS, 0)
    elif method == "ia3":
        add_ia3(model)
    elif method == "prompt_tuning":
        add_prompt(model, 4, 0)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dora_keeps_the_outputs_that_it_scales_beside_what_lora_keeps(dtype: torch.dtype) -> None:
    def kept(method: str, layers: int) -> int:
        model = adapted(Config(num_hidden_layers=layers, qk_norm=True, **BASE), method)
        return saved_of(model, dtype, 8, 64)

    size = adapter_size(Config(num_hidden_layers=1, qk_norm=True, **BASE), settings("dora"))
    more = [(kept("dora", layers) - kept("lora", layers)) for layers in (2, 4)]
    counted = dtype.itemsize * size.outputs * 8 * 64
    assert (more[1] - more[0]) / 2 == pytest.approx(counted, rel=0.05)


def test_more_of_anything_needs_more() -> None:
    config = Config(num_hidden_layers=4, qk_norm=True, **BASE)
    usual = {
        "optimizer": "adamw",
        "sequence_length": 64,
        "micro_batch": 8,
        "width": 2,
        "compiled": False,
        "device": "cpu",
    }

    def peak(**changes: object) -> int:
        return memory.training_memory(config, **{**usual, **changes}).peak  # type: ignore[arg-type]

    assert peak(micro_batch=16) > peak() > peak(checkpointing=True)
    assert peak(width=4) > peak() > peak(adapter=AdapterSize(900, 100))
    assert peak(optimizer="adamw") > peak(optimizer="muon")
    assert peak() > peak(device="cuda") - memory.RUNTIME["cuda"]
