"""Recomputed activations change memory, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llm.model.lora import add_lora
from llm.model.transformer import Transformer
from tests.model.conftest import random_model
from tests.train.test_trainer import same, train, weights


def gradients(model: Transformer) -> tuple[dict[str, Tensor], int]:
    """Of one batch of two packed rows; and the bytes kept for the backward pass."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 300, (4, 33), generator=generator)
    segments = (torch.arange(32) > 12).int().expand(4, 32)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(11)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.loss(ids[:, :-1], ids[:, 1:], segments=segments)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(
        kept.values()
    )


def pair(dropout: float | None, compiled: bool) -> list[Transformer]:
    """The same model without and with checkpointing."""
    models = []
    for checkpointing in (False, True):
        model = random_model(0, qk_norm=True)
        if dropout is not None:
            add_lora(model, 4, 8.0, dropout, ["q_proj", "o_proj", "down_proj"], 0)
            generator = torch.Generator().manual_seed(5)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:  # zero at the start, which would hide A's gradient
                    parameter.data.normal_(generator=generator)
        model.train()
        model.grad_checkpointing = checkpointing
        if compiled:
            model.compile_parts()
        models.append(model)
    return models


@pytest.mark.parametrize("dropout", [None, 0.0, 0.5])
def test_gradients_are_the_same_and_less_is_kept(dropout: float | None) -> None:
    (plain, kept), (recomputed, kept_less) = map(gradients, pair(dropout, compiled=False))
    assert plain.keys() == recomputed.keys()
    assert same(plain, recomputed)
    assert all(gradient.abs().sum() > 0 for gradient in plain.values())
    assert kept_less < kept / 2


@pytest.mark.slow
def test_gradients_are_the_same_when_compiled_with_dropout() -> None:
    """Slow: compiling takes ten seconds; its sibling is the test above, which compiles nothing."""
    (plain, _), (recomputed, _) = map(gradients, pair(0.5, compiled=True))
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-6)


def test_a_run_with_checkpointing_ends_with_the_same_bytes() -> None:
    first, expected = train()
    second, result = train(grad_checkpointing=True)
    assert second.grad_checkpointing
    assert same(weights(first), weights(second))
    assert result.history == expected.history
