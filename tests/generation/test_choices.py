"""Reading a prompt once for all choices gives the likelihoods of reading it once for each."""

from __future__ import annotations

import numpy as np
import pytest

from llm.generation.choices import choice_log_likelihoods
from tests.evaluate.standins import log_likelihood
from tests.model.conftest import KINDS, random_model


@pytest.mark.parametrize("kind", KINDS)
def test_shared_prompts_give_the_likelihoods_of_separate_ones(kind: str) -> None:
    model = random_model(**KINDS[kind])
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 300, size=n).tolist() for n in (1, 9, 30, 2, 17)]
    options = [[7, 0], [7, 9, 0], [250, 11, 12, 0], [3]]
    choices = [options, options[:2], options, options[::-1], options]
    for batch_tokens in (1, 10_000):
        sums = choice_log_likelihoods(model, prompts, choices, batch_tokens=batch_tokens)
        for prompt, texts, values in zip(prompts, choices, sums, strict=True):
            expected = [log_likelihood(model, prompt, text) for text in texts]
            np.testing.assert_allclose(values, expected, atol=2e-4)


def test_progress_counts_every_prompt() -> None:
    seen: list[int] = []
    choice_log_likelihoods(random_model(), [[1], [2, 3], [4]], [[[5]]] * 3, on_progress=seen.append)
    assert sum(seen) == 3
