"""Which runtime a model gets, what it reads, and the command that starts it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm.errors import UserError
from llm.model.hf_files import load_model
from llm.server import runtimes
from llm.server.runtimes import Settings, Source, prepare, sources
from tests.server.conftest import Running, model_directories
from tests.server.test_openai_client import MESSAGES, offline, openai

SETTINGS = Settings("f32", "cpu", 2, 1, rows=8, queue=4, length=4096, max_tokens=99)
SOCKET = Path("/run/0.sock")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Say which packages are installed; the working folder is an empty one."""
    monkeypatch.chdir(tmp_path)

    def only(*packages: str) -> None:
        monkeypatch.setattr(runtimes, "find_spec", lambda name: name in packages or None)

    return only


def test_on_cuda_it_is_vllm(installed: Callable[..., None], directories: dict[str, Path]) -> None:
    installed("vllm", "xllamacpp", "gguf")
    settings = replace(SETTINGS, device="cuda")
    found = prepare("mine", Source(directories["base"], None), SOCKET, settings)
    assert (found.runtime, found.length) == ("vllm", 256)
    assert found.command == [
        *(sys.executable, "-m", "llm.server.child", "vllm", "serve", str(directories["base"])),
        *("--served-model-name", "mine", "--uds", "/run/0.sock", "--dtype", "float32"),
        *("--max-model-len", "256", "--max-num-seqs", "8", "--gpu-memory-utilization", "0.45"),
        *("--override-generation-config", '{"max_new_tokens": 99}', "--uvicorn-log-level", "warning"),
    ]  # fmt: skip
    adapted = prepare("a", Source(directories["base"], directories["skill"]), SOCKET, settings)
    merged = load_model(Path(adapted.command[5])).state_dict()
    expected = Source(directories["base"], directories["skill"]).merged().state_dict()
    assert all(merged[name].equal(expected[name]) for name in merged)
    with pytest.raises(UserError, match="--type q8_0: vLLM, which serves mine, takes f32 or f16"):
        prepare("mine", Source(directories["base"], None), SOCKET, replace(settings, dtype="q8_0"))


@pytest.mark.parametrize(("device", "missing"), [("cpu", "'.[serve]'"), ("cuda", "vllm")])
def test_without_a_fast_runtime_it_is_the_decoder(
    device: str,
    missing: str,
    installed: Callable[..., None],
    directories: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    installed()
    settings = replace(SETTINGS, device=device)
    found = prepare("mine", Source(directories["base"], None), SOCKET, settings)
    assert found.runtime == "decoder"
    assert f"is not installed: pip install {missing}" in capsys.readouterr().out.replace(
        "-c constraints.txt -e ", ""
    )
    with pytest.raises(UserError, match="--type f16: the decoder, which serves mine, takes f32"):
        prepare("mine", Source(directories["base"], None), SOCKET, replace(settings, dtype="f16"))


def test_a_soft_prompt_is_for_the_decoder_alone(
    installed: Callable[..., None], directories: dict[str, Path], tmp_path: Path
) -> None:
    installed("xllamacpp", "gguf")
    adapter = tmp_path / "soft"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
    found = prepare("soft", Source(directories["base"], adapter), SOCKET, SETTINGS)
    assert found.runtime == "decoder"
    assert json.loads(found.command[-1])["adapter"] == str(adapter)


def test_a_gguf_file_is_made_once_for_the_same_weights(
    installed: Callable[..., None], directories: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("gguf", reason="needs the extra `serve`")
    installed("xllamacpp", "gguf")
    model = shutil.copytree(directories["base"], tmp_path / "model")

    def path(dtype: str = "f32") -> Path:
        settings = replace(SETTINGS, dtype=dtype)
        found = prepare("mine", Source(model, None), SOCKET, settings)
        return Path(json.loads(found.command[-1])["path"])

    first = path()
    made = first.stat().st_mtime_ns
    assert (path(), path().stat().st_mtime_ns) == (first, made)
    assert path("f16") != first
    shutil.copyfile(directories["finetuned"] / "model.safetensors", model / "model.safetensors")
    assert path() != first


def test_an_adapter_needs_a_base(directories: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"is an adapter; name the model .* with --base"):
        sources({"skill": directories["skill"]}, None)


@pytest.mark.parametrize(("load", "threads"), [(0.4, 4), (3.0, 2), (20.0, 1)])
def test_threads_are_the_idle_cores(
    load: float, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "cores", lambda: 8)
    monkeypatch.setattr(runtimes.os, "getloadavg", lambda: (load, 0, 0))
    assert runtimes.free_threads(2) == threads


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server of a model whose tokenizer llama.cpp does not know."""
    model = model_directories(tmp_path_factory.mktemp("own"), r" ?\w+|\W")["base"]
    running = Running(tmp_path_factory.mktemp("slow") / "folder", model, "--max-tokens", "20")
    yield running, model
    running.stop()


def test_a_tokenizer_that_llama_cpp_does_not_know_is_for_the_decoder(slow: Any) -> None:
    from llm.generation.loaded_models import Shelf
    from llm.parallel.hardware import torch

    running, model = slow
    assert "the decoder of this project answers" in running.said
    shelf = Shelf({"base": model}, torch.device("cpu"), torch.float32)
    tokenizer = shelf.get("base").tokenizer
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
    asked = {"model": "base", "temperature": 0}
    chat = offline(shelf, "base", tokenizer.conversation_ids(MESSAGES), 20)
    text = offline(shelf, "base", tokenizer.encode("the cat sat"), 20)
    whole = client.chat.completions.create(messages=MESSAGES, **asked)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (
        chat.text,
        chat.reason,
    )
    assert whole.usage.completion_tokens == len(chat.ids)
    events = list(client.chat.completions.create(messages=MESSAGES, stream=True, **asked))
    assert "".join(event.choices[0].delta.content for event in events) == chat.text
    events = list(client.completions.create(prompt="the cat sat", stream=True, **asked))
    assert "".join(event.choices[0].text for event in events) == text.text
    for wrong, message in (
        ({"logprobs": 2}, "logprobs: Extra inputs are not permitted"),
        ({"prompt": "the cat " * 300}, "expected 1 to 255"),
        ({"temperature": "hot"}, "temperature: Input should be a valid number"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            client.completions.create(**{"prompt": "a", **asked, **wrong})
