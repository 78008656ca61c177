"""Decoding gives what `transformers` gives, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llm.generate import generate, log_likelihoods
from llm.model.files import save_model
from llm.model.transformer import Transformer
from tests.model.conftest import KINDS, random_model


@pytest.fixture(params=list(KINDS))
def model(request: pytest.FixtureRequest) -> Transformer:
    return random_model(**KINDS[request.param])


def prompts_of_many_lengths() -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(1, 300, size=n).tolist() for n in (1, 2, 3, 5, 8, 13, 21, 34, 1, 30)]


def test_greedy_equals_transformers_token_for_token(model: Transformer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    save_model(model, tmp_path, tmp_path, eos_id=0)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ours = generate(model, prompts_of_many_lengths(), 20, eos_id=0, batch_size=4)
    for prompt, answer in zip(prompts_of_many_lengths(), ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = peer.generate(ids, max_new_tokens=20, do_sample=False, attention_mask=torch.ones_like(ids))
        expected = theirs[0, len(prompt) :].tolist()
        assert answer == (expected[: expected.index(0)] if 0 in expected else expected)


def test_a_result_does_not_depend_on_its_neighbours(model: Transformer) -> None:
    prompts = prompts_of_many_lengths()
    together = generate(model, prompts, 12, eos_id=0, batch_size=16)
    assert together == [generate(model, [prompt], 12, eos_id=0)[0] for prompt in prompts]


def test_generation_ends_at_the_context(model: Transformer) -> None:
    limit = model.config.max_position_embeddings
    (answer,) = generate(model, [[5] * (limit - 3)], 50, eos_id=-1)
    assert len(answer) == 4  # the last token needs no room of its own


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
