"""The seeded circuit copies from the context before any training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llm.model.config import Config
from llm.model.induction import seed_induction
from llm.model.transformer import Transformer

CONFIG = Config(500, 256, 320, 2, 4, 2, 64, 512, 10000.0, 1e-6, False, True)


@torch.no_grad()
def losses(model: Transformer) -> tuple[float, float]:
    """Mean loss of random tokens, and of the same tokens when they come again."""
    ids = torch.randint(0, 500, (8, 60), generator=torch.Generator().manual_seed(1))
    twice = torch.cat((ids, ids), dim=1)
    logs = model(twice)[:, :-1].log_softmax(-1).gather(-1, twice[:, 1:, None])[..., 0]
    return float(-logs[:, :59].mean()), float(-logs[:, 60:].mean())


def test_a_repeated_passage_is_predicted_better_and_only_with_the_circuit() -> None:
    plain, seeded = Transformer(CONFIG), Transformer(CONFIG)
    plain.initialize(0), seeded.initialize(0)
    seed_induction(seeded, 0)
    first, again = losses(seeded)
    assert again < first - 0.3
    first, again = losses(plain)
    assert abs(again - first) < 0.1


@torch.no_grad()
def test_of_several_positions_after_the_current_token_the_longest_match_is_copied() -> None:
    model = Transformer(CONFIG)
    model.initialize(0)
    seed_induction(model, 0)
    generator = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randperm(500, generator=generator)[:200] for _ in range(50)])
    ids[:, 197:] = ids[:, 80:83]
    ids[:, 40] = ids[:, 150] = ids[:, 82]  # the last token alone, with another one after it
    guessed = model(ids)[:, -1].argmax(-1)
    assert int((guessed == ids[:, 83]).sum()) > 40


@pytest.mark.parametrize("heads", [{"num_attention_heads": 3, "num_key_value_heads": 3}, {}])
def test_a_model_without_room_for_a_fourth_token_has_the_circuit_all_the_same(
    heads: dict[str, int],
) -> None:
    model = Transformer(replace(CONFIG, hidden_size=192, **heads))
    model.initialize(0)
    seed_induction(model, 0)
    first, again = losses(model)
    assert again < first - 0.3


def test_drawing_is_a_function_of_the_seed() -> None:
    models = [Transformer(CONFIG) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        model.initialize(0)
        seed_induction(model, seed)
    a, b, c = (m.model.layers[1].self_attn.q_proj.weight for m in models)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize(
    "change",
    [{"num_hidden_layers": 1}, {"hidden_size": 64, "head_dim": 64}, {"tie_word_embeddings": True}],
)
def test_a_model_that_the_circuit_does_not_fit_is_left_alone(change: dict[str, int | bool]) -> None:
    model = Transformer(replace(CONFIG, **change))
    model.initialize(0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    seed_induction(model, 0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
