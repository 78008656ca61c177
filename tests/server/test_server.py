"""What a server must survive: wrong requests, clients that go away, models that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest
import torch

from llm.errors import UserError
from llm.generation.loaded_models import Shelf, stop_ids
from llm.generation.request import Request
from llm.server.engine import ClosedError, Engine, Ticket
from llm.server.schema import NEUTRAL, NEUTRAL_IN_MESSAGE
from tests.server.conftest import QUEUE, ROWS, Running, until

LONG = {"model": "base", "prompt": "the cat", "max_tokens": 150, "seed": 0}
CHAT = {"model": "base", "messages": [{"role": "user", "content": "hi"}]}

HI = {"role": "user", "content": "hi"}

WRONG: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "unknown field": ({"maxtokens": 3}, "unknown field maxtokens; did you mean max_tokens?", "maxtokens"),
    "not computed": ({"logprobs": 2}, "logprobs is not supported here", "logprobs"),
    "zero logprobs": ({"logprobs": 0}, "logprobs is not supported here", "logprobs"),
    "penalty": ({"presence_penalty": 0.5}, "presence_penalty is not supported here", "presence_penalty"),
    "no number": ({"temperature": "hot"}, "temperature: input should be a valid number; found \"hot\"", "temperature"),
    "out of range": ({"top_p": 1.5}, "top_p: input should be less than or equal to 1; found 1.5", "top_p"),
    "no integer": ({"seed": 1.5}, "seed: input should be a valid integer", "seed"),
    "too long": ({"prompt": "the cat " * 300}, "context holds 200 tokens; your request has", "prompt"),
    "too long with the answer": ({"prompt": "x" * 100, "max_tokens": 120}, "and 120 for the answer", "prompt"),
    "too many tokens": ({"max_tokens": 151}, "max_tokens is 151; at most 150", "max_tokens"),
    "no tokens": ({"max_tokens": 0}, "max_tokens: input should be greater than or equal to 1; found 0", "max_tokens"),
    "too many choices": ({"n": 6}, "6 answers; this server takes at most 5", "n"),
    "too many stops": ({"stop": list("abcde")}, "at most 4 items", "stop"),
    "empty stop": ({"stop": ""}, "at least 1 character", "stop"),
    "empty prompt": ({"prompt": ""}, "prompt is empty", "prompt"),
    "no prompts": ({"prompt": []}, "prompt is empty", "prompt"),
    "unknown token": ({"prompt": [1, 2, 99999]}, "token 99999 is none of this model's", "prompt"),
    "negative token": ({"prompt": [-1]}, "token -1 is none of this model's", "prompt"),
    "odd prompt": ({"prompt": {"text": "a"}}, "prompt: input should be a valid string", "prompt"),
    "options of no stream": ({"stream_options": {"include_usage": True}}, "goes with stream = true only", None),
}  # fmt: skip
WRONG_CHAT: dict[str, tuple[Any, str, str]] = {
    "no messages": ([], "at least 1 item", "messages"),
    "no list": ("hi", "messages: input should be a valid list", "messages"),
    "unknown role": ([{"role": "bot", "content": "a"}], "messages.0.role: input should be 'system'", "messages.0.role"),
    "no content": ([{"role": "user"}], "messages.0.content is missing", "messages.0.content"),
    "null content": ([{"role": "user", "content": None}], "messages.0.content is missing", "messages.0.content"),
    "a picture": ([HI, {"role": "user", "content": [{"type": "image_url"}]}],
                  "messages.1.content.0.type: input should be 'text'; found \"image_url\"",
                  "messages.1.content.0.type"),
    "a number": ([HI, {"role": "user", "content": 3}],
                 "messages.1.content: input should be a valid string or input should be a valid list; found 3",
                 "messages.1.content"),
    "no text": ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0.text is missing",
                "messages.0.content.0.text"),
    "no parts": ([{"role": "user", "content": []}], "or list should have at least 1 item", "messages.0.content"),
    "no message": ([HI, None], "messages.1: input should be a valid dictionary", "messages.1"),
    "a tool's call": ([HI, {"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}],
                      "messages.1.tool_calls is not supported here: leave it out (or give null or [])",
                      "messages.1.tool_calls"),
    "a refusal": ([HI, {"role": "assistant", "refusal": "no"}], "messages.1.refusal is not supported here",
                  "messages.1.refusal"),
    "unknown in a message": ([{**HI, "contents": "b"}], "unknown field messages.0.contents", "messages.0.contents"),
    "a name that is none": ([HI, {**HI, "name": 3}], "messages.1.name: input should be a valid string; found 3",
                            "messages.1.name"),
    "a tool": ([{"role": "tool", "content": "4"}], "messages.0.role: input should be 'system', ", "messages.0.role"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(WRONG))
def test_a_wrong_request_is_refused_and_its_field_named(server: Running, case: str) -> None:
    changes, message, param = WRONG[case]
    response = server.client.post(
        "/v1/completions", json={"model": "base", "prompt": "a", **changes}
    )
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (
        400,
        "invalid_request_error",
        param,
    )
    assert message in error["message"]


@pytest.mark.parametrize("case", list(WRONG_CHAT))
def test_a_wrong_conversation_is_refused_and_the_message_named(server: Running, case: str) -> None:
    messages, message, param = WRONG_CHAT[case]
    response = server.client.post(
        "/v1/chat/completions", json={"model": "base", "messages": messages}
    )
    error = response.json()["error"]
    assert response.status_code == 400
    assert message in error["message"]
    assert error["param"] == param


def test_an_optional_field_may_be_null_and_parts_of_text_are_text(server: Running) -> None:
    parts = [
        {"role": "developer", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "a"}] * 2},
    ]
    plain = [{"role": "system", "content": "b"}, {"role": "user", "content": "aa"}]
    nothing = dict.fromkeys(
        ("stop", "n", "stream", "top_p", "logit_bias", "tools", "user", "max_tokens")
    )
    nothing |= dict.fromkeys(NEUTRAL) | {"stream_options": None, "top_k": -1, "min_p": 0}
    nulls = dict.fromkeys((*NEUTRAL_IN_MESSAGE, "name", "tool_call_id"))
    empty = {"refusal": "", "tool_calls": [], "annotations": []}
    found = [
        server.client.post(
            "/v1/chat/completions", json={**CHAT, **more, "messages": messages, "seed": 1}
        ).json()
        for messages, more in (
            (plain, {}),
            (parts, nothing),
            ([{**nulls, **message} for message in plain], nothing | {"top_k": 0}),
            ([{**message, **empty, "name": "someone"} for message in plain], {}),
        )
    ]
    assert [each["choices"] for each in found[1:]] == [found[0]["choices"]] * 3


def test_an_assistant_that_said_nothing_is_one_that_said_an_empty_text(server: Running) -> None:
    found = []
    for said in ({"content": None}, {}, {"content": ""}):
        messages = [HI, {"role": "assistant", **said}, HI]
        response = server.client.post(
            "/v1/chat/completions", json={**CHAT, "messages": messages, "seed": 1}
        )
        assert response.status_code == 200
        found.append(response.json()["choices"])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"model": "base",', "the body is not valid JSON: Expecting property name"),
        (b"", "the body is not valid JSON: Expecting value"),
        (b"\xff\xfe", "the body is not valid JSON"),
        (b'["base"]', "the body must be a JSON object, found list"),
        (b'{"model": "base", "prompt": "a", "temperature": NaN}', "NaN is no JSON"),
        (b"[" * 100_000, "the body is not valid JSON"),
    ],
)  # fmt: skip
def test_bad_json_is_said_to_be_that(server: Running, body: bytes, message: str) -> None:
    response = server.client.post("/v1/completions", content=body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
    assert response.json()["error"]["code"] == "invalid_json"


def test_half_of_a_surrogate_pair_is_answered_whatever_it_stands_in(server: Running) -> None:
    for body, status in (
        (b'{"model": "base", "\\ud800": 1}', 400),
        (b'{"model": "base", "prompt": "\\ud800"}', 200),
    ):
        assert server.client.post("/v1/completions", content=body).status_code == status


def test_what_comes_from_elsewhere_or_is_huge_is_not_answered(server: Running) -> None:
    def post(**headers: str) -> httpx.Response:
        return server.client.post(
            "/v1/completions", json={**LONG, "max_tokens": 1}, headers=headers
        )

    assert post(Origin="https://elsewhere.example").status_code == 403
    assert post(Origin="null").status_code == 403
    assert (
        post(Host="elsewhere.example").status_code == 400
    )  # its name was made to point to this machine
    assert post(Origin=server.url).status_code == 200
    huge = server.client.post("/v1/completions", content=b" " * 1_000_001)
    assert (huge.status_code, huge.json()["error"]["code"]) == (413, "request_too_large")
    assert (
        server.client.get("/v1/nothing").json()["error"]["message"] == "Not Found: GET /v1/nothing"
    )
    assert server.client.get("/v1/completions").status_code == 405


def test_requests_join_while_others_are_under_way(server: Running) -> None:
    with ThreadPoolExecutor(2) as threads, server.stalled() as allow:
        long = threads.submit(server.client.post, "/v1/completions", json=LONG)
        until(lambda: server.load() == (1, 0))
        short = threads.submit(
            server.client.post, "/v1/completions", json={**LONG, "max_tokens": 3}
        )
        until(lambda: server.load() == (1, 1))
        allow(1)
        until(lambda: server.load() == (2, 0))
        allow(2)
        assert short.result(30).json()["usage"]["completion_tokens"] == 3
        assert not long.done()
        assert server.load() == (1, 0)
    assert long.result().json()["usage"]["completion_tokens"] > 3


def test_tokens_come_out_as_they_are_made(server: Running) -> None:
    with (
        server.stalled() as allow,
        server.client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response,
    ):
        lines = response.iter_lines()
        allow(5)
        first = next(line for line in lines if line)
        assert json.loads(first.removeprefix("data: "))["choices"][0]["text"]
        assert server.load() == (1, 0)


@pytest.mark.parametrize("how", ["whole", "stream"])
def test_a_client_that_goes_away_frees_its_place(server: Running, how: str) -> None:
    places = ROWS + QUEUE
    body = {**LONG, "stream": how == "stream"}
    clients = [httpx.Client(base_url=server.url, timeout=60) for _ in range(places)]
    with ThreadPoolExecutor(places) as threads, server.stalled() as allow:
        waiting = [threads.submit(client.post, "/v1/completions", json=body) for client in clients]
        until(lambda: sum(server.load()) == places)
        allow(ROWS - 1)  # a prompt is read before each step
        until(lambda: server.load() == (ROWS, QUEUE))
        for client in clients:
            _hang_up(client)
        lane = server.engine.lanes["base"]
        until(lambda: not lane.waiting and all(ticket.cancelled for ticket in lane.running))
        allow(1)  # of 150 that the answers would take
        until(lambda: server.load() == (0, 0))
    for future in waiting:
        assert future.exception() is not None


def _hang_up(client: httpx.Client) -> None:
    """Shut the client's connection down under a request that waits in another thread."""
    for connection in client._transport._pool.connections:  # type: ignore[attr-defined]
        connection._connection._network_stream.get_extra_info("socket").shutdown(2)


def test_an_error_of_a_model_ends_its_requests_and_not_the_server(
    server: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    lane = server.engine.lanes["base"]

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("out of memory")

    lane.batch._step = broken
    response = server.client.post("/v1/completions", json=LONG)
    assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
    assert "RuntimeError" in response.json()["error"]["message"]
    assert "out of memory" in capfd.readouterr().err
    assert server.client.post("/v1/completions", json=LONG).status_code == 200


@pytest.mark.parametrize("streamed", [False, True])
def test_a_model_that_gives_no_numbers_says_so(shelf: Shelf, streamed: bool) -> None:
    named = Shelf(shelf.directories, torch.device("cpu"), torch.float32).get("base")
    named.model.model.norm.weight.data.fill_(torch.nan)
    running = Running(Engine([named], 1, 64, 0))
    response = running.client.post(
        "/v1/completions", json={"model": "base", "prompt": "a", "stream": streamed}
    )
    running.stop()
    assert response.status_code == (200 if streamed else 500)
    assert "the model's output was not finite" in response.text


def test_a_server_that_ends_says_so_to_those_who_wait(shelf: Shelf) -> None:
    engine = Engine([shelf.get("base")], 1, 64, 3)
    ends: list[Any] = []
    tickets = [Ticket(Request([5], 50), ends.append) for _ in range(3)]
    engine.submit("base", tickets)
    engine.close()
    assert len(ends) == 3
    assert any(isinstance(end, ClosedError) for end in ends)
    with pytest.raises(ClosedError):
        engine.submit("base", [Ticket(Request([5], 50), ends.append)])


# -- models by name


def test_adapters_share_the_memory_of_the_base_and_leave_it_as_it_is(shelf: Shelf) -> None:
    base, skill = shelf.get("base").model, shelf.get("skill").model
    own = {p.data_ptr() for p in skill.parameters()} - {p.data_ptr() for p in base.parameters()}
    assert len(own) == 2 * 2 * base.config.num_hidden_layers  # A and B of two matrices a layer
    ids = torch.tensor([[5, 6, 7]])
    fresh = Shelf(shelf.directories, torch.device("cpu"), torch.float32).get("base").model
    assert torch.equal(base(ids), fresh(ids))
    assert not torch.allclose(base(ids), skill(ids))


def test_a_model_that_is_not_there_is_refused_by_name(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="no model 'bass': expected base, finetuned, skill, or a directory"
    ):
        shelf.get("bass")
    alone = Shelf({"finetuned": shelf.directories["finetuned"]}, torch.device("cpu"), torch.float32)
    with pytest.raises(UserError, match="is an adapter, but there is no model called `base`"):
        alone.get(str(shelf.directories["skill"]))


def test_the_stop_tokens_of_a_generation_config_are_heeded(shelf: Shelf, tmp_path: Path) -> None:
    tokenizer = shelf.get("base").tokenizer
    for written, expected in ((None, set()), (7, {7}), ([7, 8], {7, 8})):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": written}))
        assert stop_ids(tmp_path, tokenizer) == expected | {tokenizer.eos_id}


# -- the command


def test_the_command_serves_this_machine_alone_until_it_is_interrupted(
    directories: dict[str, Path],
) -> None:
    command = [
        sys.executable,
        "-m",
        "llm",
        "serve",
        "--port",
        "0",
        "--base",
        str(directories["base"]),
    ]
    command += [
        "--finetuned",
        str(directories["finetuned"]),
        "--adapter",
        str(directories["skill"]),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        try:
            assert process.stdout
            lines = [process.stdout.readline() for _ in range(4)]
            url = lines[-1].split()[1].rstrip("/")
            assert [
                model["id"] for model in httpx.get(f"{url}/v1/models", timeout=60).json()["data"]
            ] == [
                "base",
                "finetuned",
                "skill",
            ]
            listening = [
                c
                for c in psutil.Process(process.pid).net_connections()
                if c.status == psutil.CONN_LISTEN
            ]
            assert {c.laddr.ip for c in listening} == {"127.0.0.1"}
            taken = subprocess.run(
                [*command[:5], url.rpartition(":")[2]], capture_output=True, text=True, check=False
            )
            assert taken.returncode == 1
            assert "cannot be used" in taken.stderr
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 0
            assert process.stderr
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()  # where a promise was broken; nothing else would end it
