"""OpenAI's own client gets from llama.cpp, in float32, the text that `evaluate` scores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llm.generation.generate import complete
from llm.generation.loaded_models import Shelf
from llm.generation.request import Completion, Request
from tests.server.conftest import Running

openai = pytest.importorskip("openai", reason="needs the extra `dev`")
MESSAGES = [{"role": "system", "content": "the mat"}, {"role": "user", "content": "the cat?\n"}]


@pytest.fixture
def client(server: Running) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none is needed", max_retries=0)


def offline(shelf: Shelf, name: str, ids: list[int], most: int) -> Completion:
    named = shelf.get(name)
    return complete(named.model, [Request(ids, most)], named.stop_ids, named.tokenizer.decode)[0]


def test_the_models_are_listed_and_one_can_be_looked_at(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["base", "finetuned", "skill"]
    assert client.models.retrieve("skill").id == "skill"
    with pytest.raises(
        openai.NotFoundError, match="no model 'gpt-5'; there are base, finetuned, skill"
    ):
        client.models.retrieve("gpt-5")


@pytest.mark.parametrize("name", ["base", "finetuned", "skill"])
def test_greedy_answers_are_those_of_evaluation(client: Any, shelf: Shelf, name: str) -> None:
    tokenizer = shelf.get(name).tokenizer
    ids = tokenizer.conversation_ids(MESSAGES)
    expected = offline(shelf, name, ids, 60)
    found = client.chat.completions.create(
        model=name, messages=MESSAGES, max_completion_tokens=60, temperature=0
    )
    assert found.choices[0].message.content == expected.text
    assert found.choices[0].finish_reason == expected.reason
    assert found.usage.prompt_tokens == len(ids)
    for prompt in ("the cat sat", "a dog's 12345 mats\n\n  x"):
        ids = tokenizer.encode(prompt)
        expected = offline(shelf, name, ids, 60)
        for given in (prompt, ids):
            found = client.completions.create(
                model=name, prompt=given, max_tokens=60, temperature=0
            )
            assert found.choices[0].text == expected.text
            assert found.usage.prompt_tokens == len(ids)


def test_models_and_adapters_differ(client: Any) -> None:
    answers = [
        client.completions.create(model=m.id, prompt="the cat", max_tokens=12, temperature=0)
        for m in client.models.list()
    ]
    assert len({answer.choices[0].text for answer in answers}) == 3


@pytest.mark.parametrize("stop", [None, ["e"]], ids=["to the end", "with a stop string"])
def test_a_stream_is_the_whole_in_pieces(client: Any, stop: list[str] | None) -> None:
    asked = {
        "model": "base",
        "messages": MESSAGES,
        "max_tokens": 30,
        "temperature": 0,
        "stop": stop,
    }
    whole = client.chat.completions.create(**asked).choices[0]
    events = list(client.chat.completions.create(stream=True, **asked))
    assert "".join(e.choices[0].delta.content or "" for e in events) == whole.message.content
    assert events[-1].choices[0].finish_reason == whole.finish_reason
    assert len(events) > 3


def test_a_seed_repeats_a_draw_from_the_models_own_distribution(client: Any) -> None:
    def ask(**settings: Any) -> str:
        asked = {"model": "base", "prompt": "the", "max_tokens": 20, **settings}
        return str(client.completions.create(**asked).choices[0].text)

    assert ask(seed=1) == ask(seed=1) == ask(seed=1, temperature=1, top_p=1)
    assert ask() != ask()


def test_logprobs_choices_and_schemas_are_the_runtimes(client: Any) -> None:
    asked = {"model": "base", "messages": MESSAGES, "max_tokens": 4, "seed": 0}
    found = client.chat.completions.create(**asked, n=2, logprobs=True, top_logprobs=3)
    assert len(found.choices) == 2
    assert len(found.choices[0].logprobs.content[0].top_logprobs) == 3
    schema = {"name": "x", "schema": {"enum": ["the cat", "the dog"]}}
    form = {"type": "json_schema", "json_schema": schema}
    found = client.chat.completions.create(**asked | {"max_tokens": 40}, response_format=form)
    assert found.choices[0].message.content in ('"the cat"', '"the dog"')


def test_more_clients_than_rows_all_get_their_answers(client: Any) -> None:
    def ask(length: int) -> int:
        asked = {"model": "base", "prompt": "the", "extra_body": {"ignore_eos": True}}
        return int(client.completions.create(max_tokens=length, **asked).usage.completion_tokens)

    with ThreadPoolExecutor(5) as threads:
        assert list(threads.map(ask, range(10, 15))) == list(range(10, 15))
