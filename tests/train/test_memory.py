"""The memory formula against what autograd, the optimizers and a checkpoint really hold."""

from __future__ import annotations

import pytest
import torch

from llm.model.config import Config
from llm.model.lora import add_lora
from llm.model.transformer import Transformer
from llm.train import memory
from llm.train.optimizer import Optimizers

BASE = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "rope_theta": 1e4,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip


def saved_bytes(config: Config, dtype: torch.dtype, batch: int, length: int, compiled: bool) -> int:
    """Distinct storage that one forward pass keeps for its backward pass, parameters apart."""
    model = Transformer(config)
    model.initialize(0)
    model.compute_dtype = dtype
    if compiled:
        model.compile_parts()
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
@pytest.mark.parametrize("lora", [False, True])
def test_the_optimizer_keeps_what_the_formula_counts(kind: str, lora: bool) -> None:
    config = Config(num_hidden_layers=2, qk_norm=True, **BASE)
    model = Transformer(config)
    model.initialize(0)
    targets = ["q_proj", "v_proj", "down_proj"]
    adapter = memory.adapter_parameters(config, 8, targets) if lora else 0
    if lora:
        add_lora(model, 8, 16.0, 0.0, targets, 0)
        assert adapter == sum(p.numel() for p in model.parameters() if p.requires_grad)
    optimizers = Optimizers(model, kind, 0.01, 0.1, (0.9, 0.95))
    ids = torch.zeros(1, 16, dtype=torch.int64)
    model.loss(ids, ids).backward()
    optimizers.step(0.01)
    held = sum(tensor.nbytes for tensor in optimizers.tensors().values())
    assert held == pytest.approx(memory.optimizer_bytes(config, kind, adapter), rel=0.01)


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
    assert peak(width=4) > peak() > peak(adapter=1000)
    assert peak(optimizer="adamw") > peak(optimizer="muon")
    assert peak() > peak(device="cuda") - memory.RUNTIME["cuda"]
