"""Filters are those of transformers, and draws follow the distribution that they leave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.generation.sampling import choose, draws, filtered, penalised
from llm.params import Decoding

SETTINGS = st.builds(
    Decoding,
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([None, 1, 3, 12, 99]),
    top_p=st.sampled_from([None, 0.1, 0.5, 0.9, 0.99]),
    min_p=st.sampled_from([None, 0.02, 0.2, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(SETTINGS, min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_scores_are_those_of_transformers_processors(rows: list[Decoding], seed: int) -> None:
    logits_process = pytest.importorskip(
        "transformers.generation.logits_process", reason="needs the extra `peers`"
    )
    generator = torch.Generator().manual_seed(seed)
    logits = 3.0 * torch.randn(len(rows), 40, generator=generator)
    ids = torch.randint(0, 40, (len(rows), 6), generator=generator)
    seen = torch.zeros(len(rows), 40, dtype=torch.bool).scatter(1, ids, True)
    ours = penalised(logits, seen, torch.tensor([[row.repetition_penalty] for row in rows]))
    ours = filtered(ours, rows)
    for i, row in enumerate(rows):
        chain = [logits_process.RepetitionPenaltyLogitsProcessor(row.repetition_penalty)]
        chain.append(logits_process.TemperatureLogitsWarper(row.temperature))
        chain += [logits_process.TopKLogitsWarper(row.top_k)] if row.top_k else []
        chain += [logits_process.TopPLogitsWarper(row.top_p)] if row.top_p else []
        chain += [logits_process.MinPLogitsWarper(row.min_p)] if row.min_p else []
        scores = logits[i : i + 1]
        for processor in chain:
            scores = processor(ids[i : i + 1], scores)
        torch.testing.assert_close(ours[i : i + 1], scores)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([2.0, 0.5, -1.0, 1.0, -torch.inf])
    count = 20_000
    points = draws(3, count).tolist()
    rows = logits.expand(count, -1)
    tokens = choose(rows, [Decoding(temperature=0.7)] * count, None, points)
    expected = count * (logits.double() / 0.7).softmax(-1)
    found = torch.bincount(tokens, minlength=5).double()
    assert found[4] == 0
    chi_squared = float(((found - expected)[:4] ** 2 / expected[:4]).sum())
    assert chi_squared < 16.3, "0.1 % of fair draws are further off (three degrees of freedom)"


def test_the_ends_of_the_unit_interval_choose_tokens_that_are_left() -> None:
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf]] * 2)
    tokens = choose(
        logits, [Decoding(temperature=1.0)] * 2, None, [0.0, float(np.nextafter(1.0, 0.0))]
    )
    assert tokens.tolist() == [1, 2]


def test_cold_rows_take_the_best_token_beside_rows_that_draw() -> None:
    logits = torch.tensor([[0.0, 5.0, 4.9]] * 2)
    tokens = choose(logits, [Decoding(), Decoding(temperature=1.0)], None, [0.999, 0.999])
    assert tokens.tolist() == [1, 2]


@pytest.mark.parametrize(
    "extreme", [{"temperature": 1e-40}, {"temperature": 1.0, "repetition_penalty": 1e-300}]
)
def test_settings_beyond_float32_choose_a_token_of_the_vocabulary(
    extreme: dict[str, float],
) -> None:
    logits = torch.tensor([[0.5, 3.0, -1.0, 2.0]] * 2)
    seen = torch.tensor([[False, True, False, False]] * 2)
    tokens = choose(
        logits, [Decoding(**extreme), Decoding(temperature=1.0, top_k=1)], seen, [0.3, 0.99]
    )
    assert tokens.tolist() == [1, 1]
