"""The likelihood of given text is that of a plain computation."""

from __future__ import annotations

import pytest
import torch

from llm.likelihood import log_likelihoods
from llm.model.transformer import Transformer
from tests.decoding.test_generate import prompts_of_many_lengths
from tests.model.conftest import KINDS, random_model


@pytest.fixture(params=list(KINDS))
def model(request: pytest.FixtureRequest) -> Transformer:
    return random_model(**KINDS[request.param])


def test_log_likelihoods_equal_a_plain_float64_computation(model: Transformer) -> None:
    prompts = prompts_of_many_lengths()
    continuations = [[7, 9, 11][: 1 + i % 3] for i in range(len(prompts))]
    sums, greedy = log_likelihoods(model, prompts, continuations, batch_size=3)
    for i, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + continuation])).double()[0].log_softmax(-1)
        rows = range(len(prompt) - 1, len(prompt) + len(continuation) - 1)
        expected = sum(float(logits[row, token]) for row, token in zip(rows, continuation, strict=True))
        assert sums[i] == pytest.approx(expected, abs=1e-4)
        assert greedy[i] == all(int(logits[r].argmax()) == t for r, t in zip(rows, continuation, strict=True))
