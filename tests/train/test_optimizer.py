"""The optimizers are the published ones, and their state survives a round trip."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llm.train.optimizer import Muon, Optimizers, orthogonalize
from tests.model.conftest import random_model

SHAPES = [(16, 24), (16, 24), (40, 8), (8, 8)]


def test_muon_equals_torchs() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    a = Muon(ours, lr=0.01, weight_decay=0.1)
    b = torch.optim.Muon(
        theirs,
        lr=0.01,
        weight_decay=0.1,
        momentum=0.95,
        nesterov=True,
        adjust_lr_fn="match_rms_adamw",
    )
    for _ in range(6):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step(), b.step()
    for p, q in zip(ours, theirs, strict=True):
        assert (
            float((p - q).detach().norm() / q.detach().norm()) < 2e-3
        )  # both round to bfloat16, in another order


@pytest.mark.parametrize("shape", [(3, 16, 24), (2, 40, 8)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices).float())
    assert values.min() > 0.5
    assert values.max() < 1.3


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_state_round_trip_continues_exactly(kind: str) -> None:
    def train(model: nn.Module, optimizers: Optimizers, first: int, last: int) -> None:
        for i in range(first, last):
            ids = torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(i))
            model.loss(ids[:, :-1], ids[:, 1:]).backward()
            optimizers.step(1e-3)

    whole, half = random_model(0, qk_norm=True), random_model(0, qk_norm=True)
    a = Optimizers(whole, kind, 1e-3, 0.1, (0.9, 0.95))
    train(whole, a, 0, 6)
    b = Optimizers(half, kind, 1e-3, 0.1, (0.9, 0.95))
    train(half, b, 0, 3)
    kept = {name: value.clone() for name, value in b.tensors().items()}
    resumed = random_model(5, qk_norm=True)
    resumed.load_state_dict(half.state_dict())
    c = Optimizers(resumed, kind, 1e-3, 0.1, (0.9, 0.95))
    c.load(kept)
    train(resumed, c, 3, 6)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_every_trainable_parameter_has_exactly_one_optimizer() -> None:
    model = random_model(0, qk_norm=True, tie_word_embeddings=False)
    optimizers = Optimizers(model, "muon", 1e-3, 0.1, (0.9, 0.95))
    owned = [p for o in optimizers.optimizers for g in o.param_groups for p in g["params"]]
    assert len(owned) == len({id(p) for p in owned}) == len(list(model.parameters()))


@pytest.mark.parametrize("tied", [False, True])
def test_only_untied_input_embeddings_learn_at_the_multiplied_rate(tied: bool) -> None:
    def moved(multiplier: float) -> dict[str, torch.Tensor]:
        model = random_model(0, qk_norm=True, tie_word_embeddings=tied)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizers = Optimizers(model, "muon", 1e-3, 0.1, (0.9, 0.95), multiplier)
        ids = torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(0))
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
        optimizers.step(1e-3)
        return {name: p.detach() - before[name] for name, p in model.named_parameters()}

    once, twelve = moved(1.0), moved(12.0)
    for name, change in once.items():
        factor = 12.0 if "embed_tokens" in name and not tied else 1.0
        if factor == 1.0:
            assert torch.equal(twelve[name], change), name
        else:  # the decay of a step, 1e-4 of a weight, is not multiplied
            rows = change.abs().amax(1) > 5e-4  # tokens that occur
            assert rows.any()
            torch.testing.assert_close(twelve[name][rows], factor * change[rows], atol=5e-3, rtol=0)
