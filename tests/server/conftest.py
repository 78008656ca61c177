"""`python -m llm serve` itself, on two tiny models and an adapter."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest
import torch

from llm.generation.loaded_models import Shelf
from llm.model.hf_files import save_model
from llm.model.lora import LoraLinear, add_lora
from llm.model.lora_files import save_lora
from llm.model.transformer import Transformer
from llm.tokenizer.bpe import PATTERN, Tokenizer
from tests.model.conftest import random_model

ROWS, QUEUE, MAX_TOKENS = 3, 2, 150


def model_directories(path: Path, pattern: str = PATTERN) -> dict[str, Path]:
    """`base`, `finetuned` and `skill`, an adapter on base; `pattern` splits their texts."""
    trained = Tokenizer.train(["the cat sat on the mat and the dog ran after it " * 3], 300)
    tokenizer = Tokenizer(trained.ranks, pattern)
    for seed, name in enumerate(("base", "finetuned")):
        (path / name).mkdir(parents=True)
        save_model(_plain_speaker(seed, tokenizer), path / name, path / name, tokenizer.eos_id)
        tokenizer.save(path / name)
    model = _plain_speaker(0, tokenizer)
    targets = ["q_proj", "down_proj"]
    add_lora(model, 4, 8.0, 0.0, targets, seed=0)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.lora_B.data.normal_(generator=torch.Generator().manual_seed(1))
    (path / "skill").mkdir()
    save_lora(
        model,
        path / "skill",
        {"r": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": targets},
        base="base",
    )
    return {name: path / name for name in ("base", "finetuned", "skill")}


def _plain_speaker(seed: int, tokenizer: Tokenizer) -> Transformer:
    """A random model that says ASCII and nothing else: runtimes show half a character, or a special token in the
    middle of an answer, each in its own way.
    """
    size = tokenizer.vocab_size
    model = random_model(
        seed, vocab_size=size, max_position_embeddings=256, tie_word_embeddings=False
    )
    said = [tokenizer.decode([token]) for token in range(size - 4)]
    odd = [token for token, text in enumerate(said) if not (text.isascii() and text.isprintable())]
    model.lm_head.weight.data[[*odd, *range(size - 3, size)]] = 0.0
    return model


class Running:
    """The command in a process of its own, in an empty folder."""

    def __init__(self, folder: Path, *options: str | Path) -> None:
        folder.mkdir()
        command = [sys.executable, "-m", "llm", "serve", "--port", "0", *map(str, options)]
        path = os.pathsep.join((os.getcwd(), os.environ.get("PYTHONPATH", "")))
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path, "LLM_DEVICE": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            if "http://" in line:
                break
        else:
            pytest.fail(f"the server ended: {self.said}")
        self.url = line.split()[1].rstrip("/")
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def stop(self, number: int = signal.SIGTERM) -> str:
        """End the server; return what it said."""
        self.client.close()
        self.process.send_signal(number)
        assert self.process.stdout
        try:
            self.process.wait(30)
            return self.said + self.process.stdout.read()
        finally:
            self.process.kill()  # where a promise was broken; nothing else would end it
            self.process.stdout.close()

    @contextmanager
    def held(self, model: str) -> Iterator[None]:
        """Hold a model's runtime up, so that its answers stay under way."""
        (child,) = [
            process
            for process in psutil.Process(self.process.pid).children()
            if f'"name": "{model}"' in process.cmdline()[-1]
        ]
        child.suspend()
        try:
            yield
        finally:
            child.resume()

    def load(self, model: str = "base") -> tuple[int, int]:
        """Answers of a model under way and waiting, as the server says them."""
        found = self.client.get("/health").json()["models"][model]
        return found["running"], found["waiting"]


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
def server(
    directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """llama.cpp on `base`, `finetuned` and `skill`, with room for `ROWS` + `QUEUE` answers each."""
    for package in ("xllamacpp", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package}: needs the extra `serve`")
    limits = {"--rows": ROWS, "--queue": QUEUE, "--max-tokens": MAX_TOKENS, "--threads": 1}
    options = [str(word) for pair in limits.items() for word in pair]
    running = Running(
        tmp_path_factory.mktemp("server") / "folder", *directories.values(),
        "--base", directories["base"], *options,
    )  # fmt: skip
    assert "decoder" not in running.said
    yield running
    assert "Traceback" not in running.stop(signal.SIGINT)
    assert running.process.returncode == 0
