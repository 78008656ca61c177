"""A real server on two tiny models and an adapter."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
import uvicorn

from llm.generation.loaded_models import Shelf
from llm.model.hf_files import save_model
from llm.model.lora import LoraLinear, add_lora, save_adapter
from llm.server.app import application
from llm.server.engine import Engine
from llm.tokenizer.bpe import Tokenizer
from tests.model.conftest import random_model

ROWS, QUEUE, SLOTS, MAX_TOKENS = 3, 2, 200, 150


def model_directories(path: Path) -> dict[str, Path]:
    """`base`, `finetuned` and `skill`, an adapter on base."""
    tokenizer = Tokenizer.train(["the cat sat on the mat and the dog ran after it " * 3], 300)
    for seed, name in enumerate(("base", "finetuned")):
        (path / name).mkdir(parents=True)
        model = random_model(seed, vocab_size=tokenizer.vocab_size, max_position_embeddings=256)
        save_model(model, path / name, path / name, tokenizer.eos_id)
        tokenizer.save(path / name)
    model = random_model(0, vocab_size=tokenizer.vocab_size, max_position_embeddings=256)
    targets = ["q_proj", "down_proj"]
    add_lora(model, 4, 8.0, 0.0, targets, seed=0)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.lora_B.data.normal_(generator=torch.Generator().manual_seed(1))
    (path / "skill").mkdir()
    save_adapter(
        model,
        path / "skill",
        {"r": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": targets},
        base="base",
    )
    return {name: path / name for name in ("base", "finetuned", "skill")}


class Running:
    """A server in a thread of this process."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        app = application(engine, MAX_TOKENS, ROWS + QUEUE)
        self.uvicorn = uvicorn.Server(
            uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        )
        self.thread = threading.Thread(
            target=lambda: asyncio.run(self.uvicorn.serve([self.socket]))
        )
        self.thread.start()
        self.client = httpx.Client(base_url=self.url, timeout=60)
        until(lambda: self.uvicorn.started)

    def stop(self) -> None:
        self.uvicorn.should_exit = True
        self.thread.join()
        self.client.close()

    def load(self, model: str = "base") -> tuple[int, int]:
        """Answers of a model under way and waiting, as the server says them."""
        found = self.client.get("/health").json()["models"][model]
        return found["running"], found["waiting"]

    @contextmanager
    def stalled(self, model: str = "base") -> Iterator[Callable[[int], None]]:
        """A model that does no step but those that are allowed by calling with their number."""
        lane, allowed = self.engine.lanes[model], threading.Semaphore(0)
        free = threading.Event()
        step = lane.batch._step

        def wait(*arguments: Any) -> Any:
            while not (free.is_set() or allowed.acquire(timeout=0.01)):
                pass
            return step(*arguments)

        lane.batch._step = wait
        try:
            yield lambda count: allowed.release(count)
        finally:
            free.set()
            until(lambda: self.load(model) == (0, 0))
            lane.batch._step = step


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for a condition; fail where it does not come."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return model_directories(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def shelf(directories: dict[str, Path]) -> Shelf:
    return Shelf(directories, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def server(shelf: Shelf) -> Iterator[Running]:
    running = Running(Engine([shelf.get(name) for name in shelf.directories], ROWS, SLOTS, QUEUE))
    yield running
    running.stop()
