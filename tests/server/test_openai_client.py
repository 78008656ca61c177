"""OpenAI's own client finds here what it finds there, and the answers are those of the decoder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llm.generation.generate import complete
from llm.generation.loaded_models import Shelf
from llm.generation.request import Completion, Request
from llm.params import Decoding
from tests.server.conftest import Running, until

openai = pytest.importorskip("openai", reason="needs the extra `dev`")
MESSAGES = [{"role": "system", "content": "the mat"}, {"role": "user", "content": "the cat?"}]
HOT = {"temperature": 0.9, "top_p": 0.9, "seed": 7}


@pytest.fixture
def client(server: Running) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none is needed", max_retries=0)


def offline(
    shelf: Shelf, name: str, ids: list[int], most: int, seed: int = 0, **settings: Any
) -> Completion:
    named = shelf.get(name)
    request = Request(ids, most, Decoding(**settings), seed)
    return complete(named.model, [request], named.stop_ids, named.tokenizer.decode)[0]


def test_the_models_are_listed_and_one_can_be_looked_at(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["base", "finetuned", "skill"]
    assert client.models.retrieve("skill").id == "skill"
    with pytest.raises(
        openai.NotFoundError, match="no model 'gpt-5'; there are base, finetuned, skill"
    ):
        client.models.retrieve("gpt-5")


@pytest.mark.parametrize("name", ["base", "finetuned", "skill"])
def test_an_answer_is_that_of_the_decoder_for_the_same_seed(
    client: Any, shelf: Shelf, name: str
) -> None:
    ids = shelf.get(name).tokenizer.conversation_ids(MESSAGES)
    expected = offline(shelf, name, ids, 20, 7, temperature=0.9, top_p=0.9)
    found = client.chat.completions.create(
        model=name, messages=MESSAGES, max_completion_tokens=20, **HOT
    )
    assert found.choices[0].message.content == expected.text
    assert found.choices[0].finish_reason == expected.reason
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (
        len(ids),
        len(expected.ids),
    )


def test_models_and_adapters_differ(client: Any) -> None:
    answers = [
        client.completions.create(model=m.id, prompt="the cat", max_tokens=12, temperature=0)
        for m in client.models.list()
    ]
    assert len({answer.choices[0].text for answer in answers}) == 3


def test_a_completion_goes_on_from_its_prompt_of_text_or_of_ids(client: Any, shelf: Shelf) -> None:
    ids = shelf.get("base").tokenizer.encode("the cat sat")
    expected = offline(shelf, "base", ids, 16)
    for prompt in ("the cat sat", ids, ["the cat sat"], [ids]):
        found = client.completions.create(model="base", prompt=prompt, temperature=0)
        assert found.choices[0].text == expected.text
        assert found.usage.total_tokens == len(ids) + len(expected.ids)


def test_several_prompts_and_choices_are_numbered_prompt_by_prompt(
    client: Any, shelf: Shelf
) -> None:
    alone = {
        prompt: [
            c.text
            for c in client.completions.create(model="base", prompt=prompt, n=2, **HOT).choices
        ]
        for prompt in ("the cat", "a dog")
    }
    first, second = alone["the cat"]
    assert first != second
    assert first == client.completions.create(model="base", prompt="the cat", **HOT).choices[0].text
    both = client.completions.create(model="base", prompt=["the cat", "a dog"], n=2, **HOT)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in both.choices[:2]] == alone["the cat"]
    read = sum(len(shelf.get("base").tokenizer.encode(prompt)) for prompt in alone)
    assert both.usage.prompt_tokens == read


def test_without_a_seed_answers_differ_and_a_temperature_of_0_takes_none(client: Any) -> None:
    def ask(**settings: Any) -> str:
        return (
            client.completions.create(model="base", prompt="the", max_tokens=20, **settings)
            .choices[0]
            .text
        )

    assert ask() != ask()
    assert ask(temperature=0) == ask(temperature=0) == ask(top_p=0) == ask(temperature=0, top_p=0.5)


@pytest.mark.parametrize("stop", [None, ["e", "zz"]], ids=["to the end", "with stop strings"])
def test_a_stream_is_the_whole_in_pieces(client: Any, stop: list[str] | None) -> None:
    settings = {**HOT, "stop": stop, "n": 2}
    whole = client.chat.completions.create(
        model="base", messages=MESSAGES, max_tokens=30, **settings
    )
    streamed = client.chat.completions.create(
        model="base",
        messages=MESSAGES,
        max_tokens=30,
        stream=True,
        stream_options={"include_usage": True},
        **settings,
    )
    texts, reasons, events = ["", ""], [None, None], list(streamed)
    for event in events[:-1]:
        (choice,) = event.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        assert event.usage is None
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert events[-1].choices == []
    assert events[-1].usage == whole.usage
    assert len(events) > 4
    if stop:
        assert all("e" not in text for text in texts)
        assert "stop" in reasons


def test_a_completion_streams_too(client: Any) -> None:
    asked = {"model": "base", "prompt": "the cat", "max_tokens": 20, **HOT}
    events = list(client.completions.create(stream=True, **asked))
    assert (
        "".join(event.choices[0].text for event in events)
        == client.completions.create(**asked).choices[0].text
    )
    assert (
        events[-1].choices[0].finish_reason
        == client.completions.create(**asked).choices[0].finish_reason
    )


def test_an_answer_does_not_depend_on_what_is_asked_beside_it(client: Any) -> None:
    def ask(seed: int) -> str:
        prompt = "the cat sat on " * (1 + seed % 3)
        return (
            client.completions.create(
                model="base", prompt=prompt, max_tokens=25, temperature=1, seed=seed
            )
            .choices[0]
            .text
        )

    alone = [ask(seed) for seed in range(5)]
    for _ in range(3):
        with ThreadPoolExecutor(5) as threads:
            assert list(threads.map(ask, range(5))) == alone


def test_a_conversation_goes_on_with_the_reply_as_the_client_gives_it(client: Any) -> None:
    settings = {"model": "finetuned", "max_tokens": 8, "temperature": 0}
    reply = client.chat.completions.create(messages=MESSAGES, **settings).choices[0].message
    more = {"role": "user", "content": "the dog?"}
    found = [
        client.chat.completions.create(messages=[*MESSAGES, said, more], **settings)
        .choices[0]
        .message.content
        for said in (reply.model_dump(), reply, {"role": "assistant", "content": reply.content})
    ]
    assert found[0] == found[1] == found[2]


def test_a_full_queue_is_a_rate_limit_that_the_client_waits_out(
    server: Running, client: Any
) -> None:
    ask = {"model": "base", "prompt": "a", "max_tokens": 20, "n": 5, "seed": 0}
    with ThreadPoolExecutor(2) as threads:
        with server.stalled() as allow:
            first = threads.submit(client.completions.create, **ask)
            allow(2)  # a prompt is read before each step
            until(lambda: server.load() == (3, 2))
            with pytest.raises(
                openai.RateLimitError, match="answers 3 requests at a time and lets 2 wait"
            ) as refused:
                client.completions.create(**ask)
            assert refused.value.code == "queue_full"
            assert refused.value.response.headers["Retry-After"] == "1"
            second = threads.submit(client.with_options(max_retries=5).completions.create, **ask)
        assert [c.text for c in second.result().choices] == [c.text for c in first.result().choices]
