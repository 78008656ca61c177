"""Losses of preference and their gradients, against the papers' formulas written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm.align.alignment import log_probs
from llm.align.losses import Answers, PreferenceLoss, preference_loss
from llm.data.batches import host_tensors
from llm.data.pairs import PackedPairs, Pair
from llm.model.config import Config
from llm.model.transformer import Transformer

METHODS = ("dpo", "ipo", "orpo", "simpo")
BETA, GAMMA, EOS = 0.3, 0.5, 0


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def written_out(method: str, c: float, r: float, c0: float, r0: float, m: int, n: int) -> float:
    """The loss of one pair; c and r are log-probabilities, c0 and r0 those of the reference, m and n
    the tokens of the answers.

    dpo: Rafailov et al. 2023, eq. 7. ipo: Azar et al. 2023, eq. 17, with means as in trl. orpo: Hong
    et al. 2024, eq. 4 to 7. simpo: Meng et al. 2024, eq. 6.
    """
    if method == "dpo":
        return -math.log(sigmoid(BETA * ((c - c0) - (r - r0))))
    if method == "ipo":
        return (((c - c0) / m - (r - r0) / n) - 1 / (2 * BETA)) ** 2
    p, q = math.exp(c / m), math.exp(r / n)
    if method == "orpo":
        ratio = (p / (1 - p)) / (q / (1 - q))
        return -c / m - BETA * math.log(sigmoid(math.log(ratio)))
    return -math.log(sigmoid(BETA * (c / m - r / n) - GAMMA))


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_is_the_papers(method: str) -> None:
    values = [(-3.0, -5.0, -4.0, -4.5, 3, 7), (-9.0, -2.0, -1.0, -6.0, 5, 2)]
    c, r, c0, r0, m, n = (torch.tensor(x, dtype=torch.float64) for x in zip(*values, strict=True))
    answers = Answers(torch.stack((c, r), 1), torch.stack((c0, r0), 1), torch.stack((m, n), 1))
    found = preference_loss(method, answers, BETA, GAMMA)
    assert found.tolist() == pytest.approx([written_out(method, *row) for row in values], rel=1e-12)


@pytest.fixture(scope="module")
def model() -> Transformer:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    rest = {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
    model = Transformer(Config(vocab_size=61, **sizes, **heads, **rest))
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def pairs(count: int = 7) -> list[Pair]:
    draw = np.random.default_rng(5)

    def ids(low: int, high: int) -> list[int]:
        return draw.integers(1, 61, draw.integers(low, high)).tolist()

    return [Pair(ids(2, 9), [*ids(1, 6), EOS], [*ids(1, 9), EOS]) for _ in range(count)]


def packed(model: Transformer, count: int = 7) -> PackedPairs:
    data = PackedPairs(pairs(count), 48, EOS, seed=1)
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(count, 2, generator=generator)
    data.reference = (log_probs(model, data).policy + noise).numpy()
    return data


def answer_log_prob(model: Transformer, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Log-probability of an answer, computed alone, in float64."""
    logits = model(torch.tensor([prompt + answer])).double()[0, len(prompt) - 1 : -1]
    return F.log_softmax(logits, -1).gather(-1, torch.tensor(answer)[:, None]).sum()


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_of_packed_pairs_are_those_of_each_answer_alone(
    method: str, model: Transformer
) -> None:
    data = packed(model)
    assert 1 < data.num_rows < len(data.pairs)
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for pair, reference in zip(data.pairs, data.reference, strict=True):
        policy = torch.stack(
            [answer_log_prob(model, pair.prompt, each) for each in (pair.chosen, pair.rejected)]
        )
        tokens = torch.tensor([[len(pair.chosen), len(pair.rejected)]])
        answers = Answers(policy[None], torch.from_numpy(reference).double()[None], tokens)
        total = total + preference_loss(method, answers, BETA, GAMMA).sum()
    total.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = PreferenceLoss(model, method, BETA, GAMMA)
    value = loss(**host_tensors(data, np.arange(data.num_rows), data.num_rows + 1, pin=False))
    value.backward()
    assert value.item() == pytest.approx(total.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        scale = float(expected[name].abs().max())
        assert parameter.grad is not None
        assert (parameter.grad - expected[name]).abs().max() <= 1e-5 * scale + 1e-7, name


def test_the_split_into_micro_batches_changes_rounding_only(model: Transformer) -> None:
    data = packed(model, 12)
    loss = PreferenceLoss(model, "dpo", BETA, GAMMA)
    with torch.no_grad():
        whole = loss(**host_tensors(data, np.arange(data.num_rows), data.num_rows, pin=False))
        parts = [
            loss(**host_tensors(data, np.array([i]), 1, pin=False)) for i in range(data.num_rows)
        ]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-5)


def test_both_answers_of_a_pair_lie_in_one_row_and_only_answers_are_targets(
    model: Transformer,
) -> None:
    data = packed(model)
    rows = data.rows(np.arange(data.num_rows))
    seen = []
    for r in range(data.num_rows):
        for place, number in enumerate(data.packed[r].tolist()):
            pair = data.pairs[number]
            for side, answer in enumerate((pair.chosen, pair.rejected)):
                own = rows.answers[r] == 2 * place + side + 1
                assert rows.targets[r][own].tolist() == answer
                inside = rows.segments[r] == 2 * place + side + 1
                assert rows.tokens[r][inside].tolist() == [*pair.prompt, *answer]
                assert rows.positions[r][inside].tolist() == list(range(inside.sum()))
            seen.append(number)
    assert sorted(seen) == list(range(len(data.pairs)))
    assert ((rows.targets >= 0) == (rows.answers > 0)).all()
    assert data.label_counts(np.arange(data.num_rows)).sum() == len(data.pairs)


def test_log_probabilities_are_those_of_each_answer_alone(model: Transformer) -> None:
    data = PackedPairs(pairs(), 48, EOS, seed=1)
    found = log_probs(model, data)
    with torch.no_grad():
        expected = [
            [float(answer_log_prob(model, p.prompt, a)) for a in (p.chosen, p.rejected)]
            for p in data.pairs
        ]
    torch.testing.assert_close(found.policy, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert found.tokens.tolist() == [[len(p.chosen), len(p.rejected)] for p in data.pairs]
