"""`python -m llm chat`: what is remembered, what is cut, who answers."""

from __future__ import annotations

import argparse
import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.cli import chat
from llm.errors import UserError
from llm.generation.conversation import fit
from llm.generation.generate import complete
from llm.generation.loaded_models import Named, Shelf
from llm.generation.request import Request


def talk(
    lines: list[str], models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, *options: str
) -> None:
    parser = argparse.ArgumentParser()
    chat.add_arguments(parser)
    given = [
        "--base",
        str(models["base"]),
        "--finetuned",
        str(models["finetuned"]),
        "--max-new-tokens",
        "8",
        *options,
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    chat.run(parser.parse_args(given))


def reply(named: Named, messages: list[dict[str, str]]) -> str:
    request = Request(named.tokenizer.conversation_ids(messages), 8)
    return (
        complete(named.model, [request], named.stop_ids, named.tokenizer.decode_response)[0].text
        or ""
    )


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_an_answer_has_the_conversation_before_it_and_the_system_prompt_above(
    models: dict[str, Path],
    shelf: Shelf,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    talk(["the cat", "the dog", "/quit", "never read"], models, monkeypatch, "--system", "be short")
    messages = [{"role": "system", "content": "be short"}]
    expected = ""
    for question in ("the cat", "the dog"):
        messages.append(user(question))
        text = reply(shelf.get("finetuned"), messages)
        messages.append({"role": "assistant", "content": text})
        expected += text + "\n"
    assert capsys.readouterr().out == expected


def test_another_model_goes_on_with_the_conversation_and_reset_forgets_it(
    models: dict[str, Path],
    shelf: Shelf,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    skill = str(models["skill"])
    talk(
        ["the cat", "/model base", "the dog", "/reset", f"/model {skill}", "the mat"],
        models,
        monkeypatch,
    )
    first = reply(shelf.get("finetuned"), [user("the cat")])
    second = reply(
        shelf.get("base"),
        [user("the cat"), {"role": "assistant", "content": first}, user("the dog")],
    )
    third = reply(shelf.get("skill"), [user("the mat")])
    out = capsys.readouterr().out
    assert out == f"{first}\nbase answers\n{second}\n{skill} answers\n{third}\n\n"


def test_a_mistake_is_said_and_the_conversation_goes_on(
    models: dict[str, Path],
    shelf: Shelf,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    talk(["/modle base", "/model nobody", "x" * 999, "", "/help", "the cat"], models, monkeypatch)
    out = capsys.readouterr().out
    assert "error: there is no command /modle" in out
    assert "error: no model 'nobody': expected base, finetuned" in out
    assert re.search(
        r"error: that is too long: \d+ tokens with the system prompt; finetuned reads at most 248",
        out,
    )
    assert "/reset          forget the conversation" in out
    assert out.endswith(reply(shelf.get("finetuned"), [user("the cat")]) + "\n\n")


def test_options_that_cannot_be_used_end_it_before_the_first_line(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, message in (
        (("--max-new-tokens", "0"), "--max-new-tokens is 0"),
        (("--top-p", "0.5"), "give a temperature above 0"),
        (("--model", "nobody"), "no model 'nobody'"),
        (("--adapter", "base=x"), "there is a model called 'base' already"),
    ):
        with pytest.raises(UserError, match=message):
            talk(["the cat"], models, monkeypatch, *options)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(0, 60), st.integers(1, 300)
)
def test_the_oldest_exchanges_go_until_the_rest_and_the_answer_fit(
    shelf: Shelf, sizes: list[int], system: int, most: int
) -> None:
    messages: list[dict[str, str]] = []
    for i, size in enumerate(sizes if len(sizes) % 2 else sizes[1:]):
        messages.append({"role": ("user", "assistant")[i % 2], "content": "x" * size})
    above: list[dict[str, Any]] = [{"role": "system", "content": "y" * system}]
    named = shelf.get("base")
    kept, ids, room = fit(named, above, messages, most)
    assert ids == named.tokenizer.conversation_ids([*above, *kept])
    assert room == min(most, 128)
    assert len(ids) + room <= 256
    assert kept == messages[len(messages) - len(kept) :]
    assert kept[0]["role"] == "user"
    if kept != messages:  # and none went that had room
        before = messages[len(messages) - len(kept) - 2 :]
        assert len(named.tokenizer.conversation_ids([*above, *before])) + room > 256
