"""Load on any server with OpenAI's interface: tokens/s, latency, time to the first token, memory.

    python -m llm serve --rows 32 --queue 128 &
    python bench/serving.py http://127.0.0.1:8000 --clients 1 8 32 128 --pid $!

Each client asks one question after another, greedy, as a stream. Answers are cut at `--tokens`; the prompts are chunks
of the text of `--prompts`, so that no two of a round are equal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import results

WORDS = 40  # of a prompt


@dataclass(frozen=True)
class Answer:
    """Seconds to the first text and to the end, and tokens."""

    first: float
    last: float
    tokens: int


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, object]) -> Answer:
    """Stream one answer; raise where the server refuses it."""
    began, first, tokens = time.perf_counter(), 0.0, 0
    async with session.post(f"{url}/v1/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {await response.text()}")
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if not first and event["choices"] and event["choices"][0].get("text"):
                    first = time.perf_counter() - began
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    last = time.perf_counter() - began
    return Answer(first or last, last, tokens)


async def load(
    url: str, model: str, prompts: list[str], clients: int, tokens: int
) -> tuple[float, list[Answer]]:
    """Let clients ask all prompts; return the seconds and the answers."""
    waiting, answers = list(prompts), list[Answer]()
    options = {"temperature": 0, "max_tokens": tokens, "stream": True}
    options["stream_options"] = {"include_usage": True}

    async def client(session: aiohttp.ClientSession) -> None:
        while waiting:
            answers.append(
                await ask(session, url, {"model": model, "prompt": waiting.pop(), **options})
            )

    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        return time.perf_counter() - began, answers


async def first_model(url: str) -> str:
    """The name of the first model that a server has."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/models") as response:
        return str((await response.json())["data"][0]["id"])


def memory(pid: int) -> float:
    """Resident megabytes of a process and its children."""
    process = psutil.Process(pid)
    return sum(p.memory_info().rss for p in (process, *process.children(recursive=True))) / 1e6


def share(values: list[float], part: float) -> float:
    """The value below which a part of them lies, in milliseconds."""
    return 1000 * sorted(values)[min(len(values) - 1, int(part * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--model", help="default: the first that the server names")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=200, help="of each round")
    parser.add_argument("--tokens", type=int, default=48, help="of an answer, at most")
    parser.add_argument("--prompts", type=Path, default=Path(__file__), help="a text")
    parser.add_argument("--pid", type=int, help="of the server, for its memory")
    arguments = parser.parse_args()
    words = arguments.prompts.read_text(encoding="utf-8").split()
    model = arguments.model or asyncio.run(first_model(arguments.url))
    rows = []
    for clients in arguments.clients:
        starts = [(7 * i) % max(1, len(words) - WORDS) for i in range(arguments.requests)]
        prompts = [
            f"{i} {' '.join(words[start : start + WORDS])}" for i, start in enumerate(starts)
        ]
        seconds, answers = asyncio.run(
            load(arguments.url, model, prompts, clients, arguments.tokens)
        )
        ends, firsts = [a.last for a in answers], [a.first for a in answers]
        rows.append(
            [
                clients,
                len(answers),
                f"{sum(a.tokens for a in answers) / seconds:,.0f}",
                *(f"{share(ends, part):,.0f}" for part in (0.5, 0.99)),
                *(f"{share(firsts, part):,.0f}" for part in (0.5, 0.99)),
                f"{memory(arguments.pid):,.0f}" if arguments.pid else "",
            ]
        )
    print(results.machine())
    head = ["clients", "answers", "tokens/s", "p50 ms", "p99 ms", "first token p50", "p99", "MB"]
    print(results.table(head, rows))


if __name__ == "__main__":
    main()
