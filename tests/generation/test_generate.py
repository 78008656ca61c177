"""Decoding gives what `transformers` gives, whatever else is in the batch."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm.errors import UserError
from llm.generation.batch import Batch
from llm.generation.generate import complete, generate
from llm.generation.request import Request
from llm.model.hf_files import save_model
from llm.model.soft_prompt import add_prompt
from llm.model.transformer import Transformer
from llm.params import Decoding
from tests.evaluate.standins import Bytes
from tests.model.conftest import KINDS, random_model

END = frozenset({0})
SAMPLED = Decoding(temperature=0.9, top_k=50, top_p=0.95, min_p=0.02, repetition_penalty=1.2)


@pytest.fixture(params=list(KINDS))
def model(request: pytest.FixtureRequest) -> Transformer:
    return random_model(**KINDS[request.param])


def prompts_of_many_lengths() -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(1, 300, size=n).tolist() for n in (1, 2, 3, 5, 8, 13, 21, 34, 1, 30)]


def peer_of(model: Transformer, directory: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    save_model(model, directory, directory, eos_id=0)
    return transformers.AutoModelForCausalLM.from_pretrained(directory).eval()


def theirs(peer: Any, prompt: list[int], **settings: Any) -> list[int]:
    """What transformers' generate adds to one prompt, up to the end token."""
    ids = torch.tensor([prompt])
    found = peer.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **settings)[
        0, len(prompt) :
    ]
    answer = found.tolist()
    return answer[: answer.index(0)] if 0 in answer else answer


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_transformers_token_for_token(
    model: Transformer, tmp_path: Path, penalty: float
) -> None:
    peer = peer_of(model, tmp_path)
    ours = generate(
        model, prompts_of_many_lengths(), 20, 0, Decoding(repetition_penalty=penalty), batch_size=4
    )
    for prompt, answer in zip(prompts_of_many_lengths(), ours, strict=True):
        assert answer == theirs(peer, prompt, max_new_tokens=20, repetition_penalty=penalty)


@pytest.mark.parametrize(
    ("beams", "length_penalty", "penalty"),
    [(2, 1.0, 1.0), (4, 1.0, 1.0), (4, -0.5, 1.0), (3, 2.0, 1.0), (3, 0.6, 1.4)],
)
def test_beam_search_equals_transformers_token_for_token(
    model: Transformer, tmp_path: Path, beams: int, length_penalty: float, penalty: float
) -> None:
    # An end token that is likely now and then, so that hypotheses of different lengths compete.
    model.lm_head.weight.data[0] *= 6.0
    peer = peer_of(model, tmp_path)
    settings = Decoding(num_beams=beams, length_penalty=length_penalty, repetition_penalty=penalty)
    ours = generate(model, prompts_of_many_lengths(), 12, 0, settings, batch_size=3 * beams)
    names = {"num_beams": beams, "length_penalty": length_penalty, "repetition_penalty": penalty}
    expected = [
        theirs(peer, prompt, max_new_tokens=12, **names) for prompt in prompts_of_many_lengths()
    ]
    assert ours == expected
    assert len(set(map(len, ours))) > 1


@pytest.mark.parametrize(
    "settings", [Decoding(), SAMPLED, Decoding(num_beams=3)], ids=["greedy", "sampled", "beams"]
)
def test_a_result_does_not_depend_on_its_neighbours(model: Transformer, settings: Decoding) -> None:
    prompts = prompts_of_many_lengths()
    seeds = [7 * i for i in range(len(prompts))]
    together = generate(model, prompts, 12, 0, settings, seeds, batch_size=16)
    alone = [
        generate(model, [p], 12, 0, settings, [s])[0] for p, s in zip(prompts, seeds, strict=True)
    ]
    backwards = generate(model, prompts[::-1], 12, 0, settings, seeds[::-1], batch_size=5)
    assert together == alone == backwards[::-1]


def test_a_row_of_a_step_has_the_same_bits_whatever_its_neighbours(model: Transformer) -> None:
    """At one batch size and cache length, the promise is exact: nothing of another row enters a
    row's sums.
    """
    found = []
    for others in (1, 40, 3):
        batch = Batch(model, 4, 64, END)
        logits = []
        batch._step = _recorded(batch._step, logits)
        generator = np.random.default_rng(others)
        for i in range(4):
            prompt = [5, 6, 7] if i == 2 else generator.integers(1, 300, size=others).tolist()
            batch.admit(i, Request(prompt, 8))
        while batch.rows[2] is not None:
            batch.step()
        found.append(torch.stack([step[2] for step in logits]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def _recorded(step: Any, into: list[torch.Tensor]) -> Any:
    def run(*arguments: Any) -> torch.Tensor:
        into.append(step(*arguments))
        return into[-1]

    return run


def test_a_finished_sequence_is_replaced_by_a_waiting_one(model: Transformer) -> None:
    batch = Batch(model, 2, 64, END)
    batch.admit("short", Request([5], 2))
    batch.admit("long", Request([5, 6], 9))
    assert batch.free == []
    (ended,) = batch.step()
    assert ended[0] == "short"
    assert batch.free == [0]
    batch.admit("next", Request([9, 8, 7], 3))
    assert batch.free == []
    assert [key for key, _ in batch.step()] == []
    assert [key for key, _ in batch.step()] == ["next"]


def test_the_same_seed_gives_the_same_sample_and_another_seed_another(model: Transformer) -> None:
    hot = Decoding(temperature=2.0)
    first, again, other = (generate(model, [[5, 6]], 15, -1, hot, [seed])[0] for seed in (1, 1, 2))
    assert first == again != other


def test_requests_of_different_settings_share_a_batch(model: Transformer) -> None:
    settings = [
        Decoding(),
        SAMPLED,
        Decoding(temperature=1.5),
        Decoding(num_beams=2),
        Decoding(top_k=3, temperature=1),
    ]
    requests = [Request([5, 6, 7 + i], 10, s, seed=i) for i, s in enumerate(settings)]
    together = complete(model, requests, END)
    assert together == [complete(model, [request], END)[0] for request in requests]


@pytest.mark.parametrize("settings", [Decoding(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("guesses", [1, 3, 8])
def test_prompt_lookup_changes_no_token(
    model: Transformer, settings: Decoding, guesses: int
) -> None:
    generator = np.random.default_rng(1)
    # Prompts that repeat themselves, as answers and contexts do, so that there is something to
    # find.
    pieces = [generator.integers(1, 300, size=6).tolist() for _ in range(5)]
    prompts = [[t for k in generator.integers(0, 5, size=4) for t in pieces[k]] for _ in range(6)]
    seeds = list(range(6))
    guessing = settings.model_copy(update={"prompt_lookup_num_tokens": guesses})
    expected = generate(model, prompts, 25, 0, settings, seeds, batch_size=4)
    assert generate(model, prompts, 25, 0, guessing, seeds, batch_size=4) == expected
    assert [
        generate(model, [p], 25, 0, guessing, [s])[0] for p, s in zip(prompts, seeds, strict=True)
    ] == expected


def test_prompt_lookup_takes_fewer_steps_where_the_answer_copies() -> None:
    model = random_model()
    cycle = [11, 12, 13, 14, 15, 16]
    for token, following in zip(
        cycle, [*cycle[1:], cycle[0]], strict=True
    ):  # a model that knows one cycle
        model.model.embed_tokens.weight.data[token] = 0.0
        model.model.embed_tokens.weight.data[token, following] = 30.0
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    for token in cycle:
        model.lm_head.weight.data[token, token] = 1.0
    steps = {}
    for guesses in (0, 5):
        batch = Batch(model, 1, 64, END)
        batch.admit(0, Request(cycle + cycle, 24, Decoding(prompt_lookup_num_tokens=guesses)))
        steps[guesses], done = 0, []
        while not done:
            done = batch.step()
            steps[guesses] += 1
        assert done[0][1].ids == (cycle * 4)[:24]
    assert steps == {0: 23, 5: 4}


def test_generation_ends_at_the_context(model: Transformer) -> None:
    limit = model.config.max_position_embeddings
    for settings in (Decoding(), Decoding(num_beams=2), Decoding(prompt_lookup_num_tokens=4)):
        (answer,) = complete(model, [Request([5] * (limit - 3), 50, settings)], frozenset())
        assert len(answer.ids) == 4  # the last token needs no room of its own
        assert answer.reason == "context"
    with pytest.raises(UserError, match=f"65 tokens; the model's context holds {limit}"):
        generate(model, [[5], [5] * (limit + 1)], 3, 0)


def test_why_an_answer_ended_is_said() -> None:
    model, tokens = random_model(), [5, 6, 7]
    (free,) = complete(model, [Request(tokens, 9)], frozenset())
    assert (free.reason, len(free.ids)) == ("length", 9)
    (stopped,) = complete(model, [Request(tokens, 9)], frozenset({free.ids[4]}))
    first = free.ids.index(free.ids[4])
    assert (stopped.reason, stopped.ids) == ("stop", free.ids[:first])


def test_a_stop_string_ends_the_text_before_it_and_may_span_tokens() -> None:
    model = random_model()
    text = "".join(chr(c) for c in b"abcXYdef")
    following = {a: b for a, b in itertools.pairwise(text)} | {"f": "f"}
    model.model.embed_tokens.weight.data.zero_()
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    for i, letter in enumerate(following):
        model.model.embed_tokens.weight.data[ord(letter), i] = 30.0
        model.lm_head.weight.data[ord(following[letter]), i] = 1.0
    for beams in (1, 2):
        settings = Decoding(num_beams=beams, stop_strings=("XY", "nowhere"))
        (answer,) = complete(model, [Request(list(b"a"), 7, settings)], END, Bytes().decode)
        assert (answer.text, answer.ids, answer.reason) == ("bc", list(b"bc"), "stop")
    with pytest.raises(UserError, match="stop_strings need"):
        complete(model, [Request([5], 3, settings)], END)


@pytest.mark.parametrize(
    "settings", [Decoding(), SAMPLED, Decoding(num_beams=2)], ids=["greedy", "sampled", "beams"]
)
def test_logits_that_are_no_numbers_end_an_answer_and_say_so(settings: Decoding) -> None:
    model = random_model(tie_word_embeddings=False)
    model.model.embed_tokens.weight.data[9] = torch.nan  # of one prompt only
    answers = complete(
        model, [Request([5, 6], 4, settings), Request([5, 9], 4, settings)], frozenset()
    )
    assert [answer.reason for answer in answers] == ["length", "not_finite"]


def test_a_compiled_step_gives_the_same_tokens() -> None:
    model = random_model(num_hidden_layers=1)
    requests = [Request(prompt, 6) for prompt in ([5], [6, 7] * 4, [9])]
    assert complete(model, requests, END, batch_size=2, compiled=True) == complete(
        model, requests, END, batch_size=2
    )


@pytest.mark.parametrize("beams", [1, 2])
def test_a_repetition_penalty_goes_with_a_soft_prompt(beams: int) -> None:
    model = random_model()
    virtual = add_prompt(model, 3, seed=0)
    settings = Decoding(repetition_penalty=50.0, num_beams=beams)
    (answer,) = generate(model, [[*virtual]], 8, model.config.vocab_size, settings)
    assert len(set(answer)) == 8
