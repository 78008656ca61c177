"""The proxy in front of llama.cpp: whom it refuses, its limits, and how the server stops."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest

from llm.errors import UserError
from llm.server.runtimes import Settings
from llm.server.serve import serve
from tests.server.conftest import QUEUE, ROWS, Running, until

SETTINGS = Settings("f32", "cpu", 1, 1, ROWS, QUEUE, 256, 150)
BODY = {"model": "base", "prompt": "the cat", "max_tokens": 1}
# An answer that lasts: nothing else that a test needs is left when it ends by itself.
LONG = {"model": "base", "prompt": "the cat", "max_tokens": 150, "ignore_eos": True}


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Origin": "https://elsewhere.example"}, 403, "other_origin"),
        ({"Origin": "null"}, 403, "other_origin"),
        ({"Origin": "http://localhost:1"}, 403, "other_origin"),  # another program's page
        ({"Host": "elsewhere.example"}, 400, "other_host"),  # its name was made to point here
        ({"Host": "127.0.0.1.elsewhere.example:80"}, 400, "other_host"),
        ({"Host": "[::1]"}, 400, "other_host"),
        ({"Host": ""}, 400, "other_host"),
    ],
)
@pytest.mark.parametrize("route", ["POST /v1/completions", "GET /v1/models", "GET /"])
def test_pages_of_other_sites_are_not_answered(
    server: Running, headers: dict[str, str], status: int, code: str, route: str
) -> None:
    method, path = route.split()
    response = server.client.request(method, path, json=BODY, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_its_own_page_and_programs_are_answered(server: Running) -> None:
    for headers in ({}, {"Origin": server.url}, {"Host": "localhost"}):
        response = server.client.post("/v1/completions", json=BODY, headers=headers)
        assert response.status_code == 200


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"max_tokens": 151}, 400, "max_tokens is 151; at most 150"),
        ({"max_tokens": None, "n_predict": 151}, 400, "n_predict is 151; at most 150"),
        ({"max_tokens": 1e9}, 400, "at most 150"),
        ({"n": 6}, 400, "6 answers in one request; this server takes at most 5"),
        ({"prompt": ["a"] * 6}, 400, "6 answers in one request"),
        ({"model": None}, 400, "model: expected one of base, finetuned, skill"),
        ({"model": ["base"]}, 400, "model: expected one of base, finetuned, skill"),
        ({"model": "gpt-5"}, 404, "no model 'gpt-5'; there are base, finetuned, skill"),
        ({"prompt": "the cat " * 300}, 400, "exceeds the available context size"),  # llama.cpp's
    ],
)
def test_what_is_too_much_or_not_here_is_refused(
    server: Running, changes: dict[str, Any], status: int, message: str
) -> None:
    response = server.client.post("/v1/completions", json=BODY | changes)
    assert response.status_code == status
    assert message in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b'{"model": "base",', 400, "the body is not valid JSON"),
        (b"\xff\xfe", 400, "the body is not valid JSON"),
        (b'["base"]', 400, "the body must be a JSON object, found list"),
        (b"[" * 100_000, 400, "the body is not valid JSON"),
        (b" " * 1_000_001, 413, "larger than 1,000,000 bytes"),
    ],
)  # fmt: skip
def test_a_body_that_is_no_request_is_refused(
    server: Running, body: bytes, status: int, message: str
) -> None:
    response = server.client.post("/v1/completions", content=body)
    assert response.status_code == status
    assert message in response.json()["error"]["message"]


def test_only_the_routes_of_openai_lead_to_a_runtime(server: Running) -> None:
    for path in ("/slots", "/props", "/v1/embeddings", "/metrics", "/v1/../props"):
        response = server.client.get(path)
        assert response.status_code == 404
        assert response.json()["error"]["message"].startswith("Not Found: GET /")
    assert server.client.get("/v1/completions").status_code == 405


@pytest.mark.parametrize("asked", [{}, {"max_tokens": -1}, {"n_predict": -1}])
def test_an_answer_ends_at_the_limit_also_where_none_is_asked_for(
    server: Running, asked: dict[str, int]
) -> None:
    body = {"model": "base", "prompt": "a", "ignore_eos": True, **asked}
    found = server.client.post("/v1/completions", json=body).json()
    assert found["usage"]["completion_tokens"] == 150


@pytest.mark.parametrize("streamed", [False, True])
def test_a_full_queue_says_so_and_a_client_that_goes_away_frees_its_places(
    server: Running, streamed: bool
) -> None:
    body = {**LONG, "n": ROWS, "stream": streamed}
    client = httpx.Client(base_url=server.url, timeout=60)
    with ThreadPoolExecutor(1) as threads, server.held("base"):
        first = threads.submit(client.post, "/v1/completions", json=body)
        until(lambda: server.load() == (ROWS, 0))
        refused = server.client.post("/v1/completions", json={**LONG, "n": QUEUE + 1})
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "1"
        assert "answers 3 requests at a time and lets 2 wait" in refused.text
        _hang_up(client)
        until(lambda: server.load() == (0, 0))
    assert first.exception() is not None
    assert server.client.post("/v1/completions", json=BODY).status_code == 200


def _hang_up(client: httpx.Client) -> None:
    """Shut the client's connection down under a request that waits in another thread."""
    for connection in client._transport._pool.connections:  # type: ignore[attr-defined]
        connection._connection._network_stream.get_extra_info("socket").shutdown(2)


def test_it_listens_on_this_machine_alone_and_says_that_its_port_is_taken(server: Running) -> None:
    process = psutil.Process(server.process.pid)
    everything = [process, *process.children(recursive=True)]
    listening = [
        connection.laddr
        for each in everything
        for connection in each.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert [address.ip for address in listening] == ["127.0.0.1"]
    with pytest.raises(UserError, match=r"cannot be used .*; choose another with --port"):
        serve({}, listening[0].port, SETTINGS)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])  # the fixture ends with SIGINT
def test_its_runtimes_end_with_it(
    server: Running, directories: dict[str, Path], tmp_path: Path, how: str
) -> None:
    """`server` is asked for so that the test is skipped where llama.cpp is missing."""
    running = Running(tmp_path / "folder", directories["base"], "--threads", "1")
    children = psutil.Process(running.process.pid).children(recursive=True)
    assert children
    said = running.stop(getattr(signal, how))
    until(lambda: not any(child.is_running() for child in children))
    assert running.process.returncode == (-signal.SIGKILL if how == "SIGKILL" else 0)
    assert "Traceback" not in said


def test_a_runtime_that_ends_ends_the_server(
    server: Running, directories: dict[str, Path], tmp_path: Path
) -> None:
    running = Running(tmp_path / "folder", directories["base"], "--threads", "1")
    psutil.Process(running.process.pid).children()[0].kill()
    assert running.process.wait(30) == 1
    assert "llama.cpp, which serves base, ended with code -9" in running.stop()
