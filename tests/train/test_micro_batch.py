"""A dry batch finds the micro-batch that fits and leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llm.data.windows import Rows
from llm.errors import UserError
from llm.model.lora import add_lora
from llm.model.transformer import Transformer
from llm.train import micro_batch
from tests.model.conftest import random_model

LENGTH = 16


class Data:
    def rows(self, ids: np.ndarray) -> Rows:
        tokens = np.arange(len(ids) * LENGTH).reshape(len(ids), LENGTH) % 290
        return Rows(tokens, np.full_like(tokens, -100), None, None)


def limited(monkeypatch: pytest.MonkeyPatch, most: int, after_forward: bool = False) -> list[int]:
    """A device on which more than `most` sequences run out of memory; returns the sizes that were
    tried.
    """
    loss, tried = Transformer.loss, []

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    def fake(self: Transformer, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert (targets >= 0).all()  # a label everywhere
        tried.append(len(input_ids))
        if len(input_ids) > most and not after_forward:
            out_of_memory()
        value = loss(self, input_ids, targets)
        if len(input_ids) > most:
            value.register_hook(out_of_memory)
        return value

    monkeypatch.setattr(Transformer, "loss", fake)
    return tried


@pytest.mark.parametrize("after_forward", [False, True])
def test_the_micro_batch_is_halved_until_it_fits_and_nothing_else_changes(
    after_forward: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    model = random_model(0, qk_norm=True)
    add_lora(model, 4, 8.0, 0.5, ["q_proj", "down_proj"], 0)  # dropout draws random numbers
    model.train()
    for number, parameter in enumerate(model.parameters()):
        if parameter.requires_grad and number % 2:
            parameter.grad = torch.full_like(parameter, float(number))
    weights = [p.detach().clone() for p in model.parameters()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    tried = limited(monkeypatch, 3, after_forward)
    assert micro_batch.fitting_micro_batch("finetune", model, Data(), 16) == 2
    assert tried == [16, 8, 4, 2, 2]  # two passes once it fits: the second meets gradients
    assert "trying micro-batches of 2" in capfd.readouterr().out
    assert torch.equal(torch.get_rng_state(), random)
    for parameter, weight, gradient in zip(model.parameters(), weights, gradients, strict=True):
        assert torch.equal(parameter, weight)
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]


def test_one_sequence_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 0)
    with pytest.raises(UserError, match=r"one sequence of 16 tokens .* pretrain\.sequence_length"):
        micro_batch.fitting_micro_batch("pretrain", random_model(0), Data(), 4)


def test_another_error_is_not_taken_for_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Transformer, **_: object) -> torch.Tensor:
        raise RuntimeError("something else")

    monkeypatch.setattr(Transformer, "loss", broken)
    with pytest.raises(RuntimeError, match="something else"):
        micro_batch.fitting_micro_batch("pretrain", random_model(0), Data(), 4)
