"""`mlflow models serve` answers from the registered model, with nothing of this repository but what
travelled.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from llm import params
from llm.generation.generate import complete
from llm.generation.request import Request
from llm.model.hf_files import load_model
from llm.params import Decoding
from llm.tokenizer.bpe import Tokenizer
from llm.tracking import executions, run
from tests.report import workspace
from tests.server.conftest import model_directories

MODEL = "models:/llm@champion"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A model directory, and the address of the server of the model that was registered from it."""
    root = tmp_path_factory.mktemp("serving")
    workspace.minimal(root)
    directory = root / "finetuned"
    shutil.move(model_directories(root / "models")["finetuned"], directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DVC_ROOT", str(root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run.finish(params.load(), model=str(directory))
        store = executions.store_uri()
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = str(place.getsockname()[1])
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DVC_"))}
    environment |= {
        "MLFLOW_TRACKING_URI": store,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [
        "mlflow",
        "models",
        "serve",
        "-m",
        MODEL,
        "--env-manager",
        "local",
        "--host",
        "127.0.0.1",
        "--port",
        port,
    ]
    with (
        open(root / "log", "w", encoding="utf-8") as log,
        subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            _wait(process, f"http://127.0.0.1:{port}/ping", root / "log")
            yield directory, f"http://127.0.0.1:{port}/invocations"
        finally:
            process.terminate()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + 240
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text(encoding="utf-8")[-3000:]
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")


def expected(
    directory: Path, prompts: list[str], most: int, seed: int = 0, **settings: Any
) -> list[str | None]:
    tokenizer, model = Tokenizer.load(directory), load_model(directory)
    requests = [
        Request(tokenizer.chat_ids(prompt), most, Decoding(**settings), seed + i)
        for i, prompt in enumerate(prompts)
    ]
    return [
        c.text
        for c in complete(model, requests, frozenset({tokenizer.eos_id}), tokenizer.decode_response)
    ]


def test_prompts_as_a_list_or_a_table_are_answered(served: tuple[Path, str]) -> None:
    directory, url = served
    prompts = ["the cat", "the dog"]
    listed = httpx.post(url, json={"inputs": prompts})
    assert listed.json() == {"predictions": expected(directory, prompts, 64)}
    table = {"dataframe_split": {"columns": ["prompt"], "data": [[prompt] for prompt in prompts]}}
    assert httpx.post(url, json=table).json() == listed.json()


def test_a_request_may_choose_length_temperature_and_seed(served: tuple[Path, str]) -> None:
    directory, url = served
    chosen = {"max_new_tokens": 7, "temperature": 0.9, "top_p": 0.8, "seed": 5}
    found = httpx.post(url, json={"inputs": ["the cat"], "params": chosen}).json()["predictions"]
    assert found == expected(directory, ["the cat"], 7, 5, temperature=0.9, top_p=0.8)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": ["x" * 500]}, "the model's context holds 256"),
        ({"inputs": ["a"], "params": {"max_new_tokens": 0}}, "max_new_tokens is 0"),
        ({"inputs": ["a"], "params": {"temperature": -1.0}}, "greater than or equal to 0"),
    ],
)
def test_a_wrong_request_is_refused_with_the_reason(
    served: tuple[Path, str], body: dict[str, Any], message: str
) -> None:
    response = httpx.post(served[1], json=body)
    assert response.status_code == 400
    assert message in response.json()["message"]
