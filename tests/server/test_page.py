"""The page in a real browser: both models answer the same question, and nothing is loaded from
elsewhere.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm.generation.loaded_models import Shelf
from llm.server import front
from tests.server.conftest import Running, until
from tests.server.test_openai_client import offline

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `dev`")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser on this machine: none of {', '.join(BROWSERS)} is in PATH")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    page = browser.new_page()
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.mistakes = []
    page.on("pageerror", lambda error: page.mistakes.append(str(error)))
    page.on(
        "console", lambda message: message.type == "error" and page.mistakes.append(message.text)
    )
    page.goto(server.url)
    playwright.expect(page.get_by_label("right model")).to_have_value("finetuned")
    yield page
    page.close()


def test_both_models_answer_and_remember_the_conversation(
    page: Any, server: Running, shelf: Shelf
) -> None:
    page.get_by_label("tokens, at most").fill("12")
    conversation: dict[str, list[dict[str, str]]] = {"base": [], "finetuned": []}
    for turn, question in enumerate(("the cat?", "<b>the dog</b>")):
        page.get_by_label("prompt", exact=True).fill(question)
        page.get_by_label("prompt", exact=True).press("Enter")
        for side, (name, said) in zip(("left", "right"), conversation.items(), strict=True):
            talk = page.get_by_role("region", name=side)
            playwright.expect(talk.locator(".assistant small")).to_have_count(turn + 1)
            said.append({"role": "user", "content": question})
            answer = offline(shelf, name, shelf.get(name).tokenizer.conversation_ids(said), 12)
            said.append({"role": "assistant", "content": answer.text or ""})
            shown = talk.locator(".assistant").nth(turn)
            assert shown.evaluate("p => p.firstChild.data") == answer.text
            count = len(answer.ids) + (answer.reason == "stop")  # the end token is one
            assert shown.locator("small").inner_text().startswith(f"{count} tokens, ")
            assert (
                talk.locator(".user").nth(turn).inner_text() == question
            )  # as text: no element <b>
    page.get_by_role("button", name="Start anew").click()
    playwright.expect(page.locator(".talk p")).to_have_count(0)
    assert page.mistakes == []
    assert {re.match(r"\w+:(//[^/]+)?", url)[0] for url in page.asked} <= {server.url, "data:"}


def test_a_text_is_continued_and_an_answer_can_be_stopped(page: Any, server: Running) -> None:
    page.get_by_label("what to do").select_option("text")
    page.get_by_label("tokens, at most").fill("100")
    page.get_by_label("right model").select_option("skill")
    page.get_by_label("prompt", exact=True).fill("the mat")
    with server.held("base"):
        page.get_by_role("button", name="Send").click()
        until(lambda: server.load("base") == (1, 0))
        page.get_by_role("button", name="Stop").click()
        left = page.get_by_role("region", name="left").locator(".assistant")
        playwright.expect(left.locator("small")).to_contain_text("stopped")
        until(lambda: server.load("base") == (0, 0))
    right = page.get_by_role("region", name="right").locator(".assistant")
    playwright.expect(right).not_to_have_text("")
    assert page.mistakes == []


def test_what_the_server_refuses_is_said(page: Any) -> None:
    page.get_by_label("tokens, at most").fill("9999")
    page.get_by_label("prompt", exact=True).fill("the mat")
    page.get_by_role("button", name="Send").click()
    playwright.expect(page.locator(".error").first).to_contain_text(
        "max_tokens is 9999; at most 150"
    )
    playwright.expect(page.get_by_role("button", name="Send")).to_be_enabled()


def test_a_copy_of_the_page_speaks_to_any_other_endpoint(browser: Any) -> None:
    page, other = browser.new_page(), "http://other.example"
    said = 'data: {"choices": [{"delta": {"content": "here"}, "finish_reason": "stop"}]}'
    answers = {
        "/v1/models": '{"data": [{"id": "theirs"}]}',
        "/v1/chat/completions": f": a comment\n\n{said}\n\ndata: [DONE]\n\n",
    }
    page.route(
        f"{other}/**",
        lambda route: route.fulfill(
            body=answers[route.request.url.removeprefix(other)],
            headers={"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Headers": "*"},
        ),
    )
    page.goto(f"{(Path(front.__file__).parent / 'page.html').as_uri()}?endpoint={other}")
    playwright.expect(page.get_by_label("left model")).to_have_value("theirs")
    page.get_by_label("prompt", exact=True).fill("who?")
    page.get_by_role("button", name="Send").click()
    playwright.expect(page.locator(".assistant").first).to_contain_text("here")
    page.close()
