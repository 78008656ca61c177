"""The runtime that answers for a model, the files that it reads, and the command that starts it.

llama.cpp answers on a CPU and on a Mac, vLLM on CUDA, and this project's own decoder where they cannot. What a runtime
reads and the model directory lacks (a GGUF file, merged weights) is made once and kept in `.state/serve`, by the
digest of all that it depends on.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from llm.errors import UserError
from llm.model.adapted_linear import merge_adapter
from llm.model.adapters import load_adapter
from llm.model.hf_files import PROMPT, load_config, load_model, save_model
from llm.model.transformer import Transformer
from llm.runtime.io import read_json, sha256, whole_directory, write_bytes
from llm.runtime.pool import cores
from llm.runtime.provenance import code_digest
from llm.runtime.state_dirs import fingerprint, locked_state, state_root
from llm.tokenizer.bpe import Tokenizer

CHILD = (sys.executable, "-m", "llm.server.child")
VLLM_TYPES = {"f32": "float32", "f16": "float16"}


class UnsuitableError(Exception):
    """Why a fast runtime would not give a model's answers."""


@dataclass(frozen=True)
class Settings:
    """The settings of serving.

    dtype: of the weights, f32 | f16 | q8_0; q8_0 is llama.cpp's alone.
    device: "cpu", "cuda" or "mps".
    models: number of models that share the machine.
    threads: of each model in llama.cpp; 0: as many as `free_threads` says.
    rows: answers side by side, of each model. queue: requests that may wait for a row.
    length: tokens of prompt and answer together, at most. max_tokens: tokens of an answer, at most.
    """

    dtype: str
    device: str
    models: int
    threads: int
    rows: int
    queue: int
    length: int
    max_tokens: int


@dataclass(frozen=True)
class Served:
    """A model and its runtime: `command` starts a process that listens on the Unix socket `socket`.

    length: tokens of prompt and answer together, at most.
    """

    name: str
    runtime: str
    length: int
    socket: Path
    command: list[str]


@dataclass(frozen=True)
class Source:
    """A model directory, with an adapter on it or None."""

    directory: Path
    adapter: Path | None

    def has_soft_prompt(self) -> bool:
        """Tell whether the model begins with a soft prompt, which other runtimes do not know."""
        config = read_json(self.adapter / "adapter_config.json") if self.adapter else {}
        return config.get("peft_type") == "PROMPT_TUNING" or (self.directory / PROMPT).is_dir()

    def merged(self) -> Transformer:
        """Return the model, the adapter merged.

        Raises:
            UserError: a file is missing or broken.
        """
        model = load_model(self.directory, keep_stored=True)
        if self.adapter is not None:
            load_adapter(model, self.adapter, self.directory)
            merge_adapter(model)
        return model

    def kept(self, what: str, make: Callable[[Path], None]) -> Path:
        """Return a directory of `.state/serve` that `make` filled, now or earlier, for the same files and code."""
        files = {
            path.as_posix(): sha256(path)
            for folder in (self.directory, self.adapter)
            if folder is not None
            for path in sorted(folder.iterdir())
            if path.suffix in (".json", ".safetensors", ".tiktoken")
        }
        inputs = {"what": what, "files": files, "code": code_digest("export", "model", "tokenizer")}
        state = state_root() / "serve" / fingerprint(inputs)
        with locked_state(state, inputs, "serve: process {pid} makes the same files; waiting"):
            if not (state / "made").is_dir():
                with whole_directory(state / "made", ["*"]) as folder:
                    make(folder)
        return state / "made"


def sources(directories: Mapping[str, Path], base: Path | None) -> dict[str, Source]:
    """Return the models by name. The base of every adapter is `base`.

    Raises:
        UserError: there is no base for an adapter.
    """
    found = {}
    for name, directory in directories.items():
        if not (directory / "adapter_config.json").is_file():
            found[name] = Source(directory, None)
        elif base is None:
            raise UserError(
                f"{directory} is an adapter; name the model that it was trained on with --base."
            )
        else:
            found[name] = Source(base, directory)
    return found


def prepare(name: str, source: Source, socket: Path, settings: Settings) -> Served:
    """Choose the runtime of a model and make the files that it reads.

    Args:
        name: what requests call it.
        socket: where its runtime will listen, a path that ends in `.sock`.

    Raises:
        UserError: the model cannot be read, or the runtime that can serve it does not compute in `settings.dtype`.
    """
    length = min(settings.length, load_config(source.directory).max_position_embeddings)
    Tokenizer.load(source.directory)  # its errors name the file
    runtime = "vllm" if settings.device == "cuda" else "llama.cpp"
    try:
        if source.has_soft_prompt():
            raise UnsuitableError("it has no place for a soft prompt.")
        if runtime == "vllm":
            command = vllm(name, source, socket, length, settings)
        else:
            command = llama_cpp(name, source, socket, length, settings)
    except UnsuitableError as reason:
        print(
            f"serve: {name}: the decoder of this project answers, one request after another, instead of {runtime}: "
            f"{reason}"
        )
        runtime, command = "decoder", decoder(name, source, socket, length, settings)
    return Served(name, runtime, length, socket, command)


def llama_cpp(
    name: str, source: Source, socket: Path, length: int, settings: Settings
) -> list[str]:
    """Return the command of llama.cpp's server, and make its GGUF file.

    Raises:
        UnsuitableError: it is not installed, or the file has no place for the model or its tokenizer.
    """
    if find_spec("xllamacpp") is None or find_spec("gguf") is None:
        raise UnsuitableError("it is not installed: pip install -c constraints.txt -e '.[serve]'")
    made = source.kept(
        f"gguf {settings.dtype}", lambda made: _make_gguf(source, settings.dtype, made)
    )
    if (made / "refused.txt").is_file():
        raise UnsuitableError((made / "refused.txt").read_text(encoding="utf-8"))
    options = {
        "name": name,
        "path": str(made / "model.gguf"),
        "socket": str(socket),
        "exact": settings.dtype == "f32",
        "accelerator": settings.device != "cpu",
        "rows": settings.rows,
        "connections": settings.rows + settings.queue,
        "length": length,
        "max_tokens": settings.max_tokens,
        "threads": settings.threads or free_threads(settings.models),
    }
    return [*CHILD, "llama_cpp", json.dumps(options)]


def _make_gguf(source: Source, dtype: str, folder: Path) -> None:
    """Write `model.gguf`, or `refused.txt` with why llama.cpp would not give this model's answers."""
    from gguf import GGUFReader

    from llm.export.gguf_file import write_gguf

    model, path = source.merged(), folder / "model.gguf"
    try:
        write_gguf(model, source.directory, path, dtype)
    except UserError as error:
        reason = str(error)
    else:
        fields = GGUFReader(path).fields
        kind, rule = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("model", "pre"))
        if kind != "gpt2" or rule != "default":
            return
        reason = f"it does not know the splitting rule of {source.directory}/tokenizer.json."
    path.unlink(missing_ok=True)
    write_bytes(folder / "refused.txt", reason.encode())


def free_threads(models: int) -> int:
    """Return the threads for each of several models: the cores that were idle in the last minute, divided.

    A model's threads wait for each other many times a token, so one core that another process uses, too, holds all of
    them up: on two busy cores two threads were up to a hundred times slower than one.
    """
    return max(1, (cores() - round(os.getloadavg()[0])) // models)


def vllm(name: str, source: Source, socket: Path, length: int, settings: Settings) -> list[str]:
    """Return the command of vLLM's server; models share the card's memory evenly.

    Raises:
        UnsuitableError: it is not installed.
        UserError: it does not compute in `settings.dtype`.
    """
    if find_spec("vllm") is None:
        raise UnsuitableError("it is not installed: pip install vllm")
    if settings.dtype not in VLLM_TYPES:
        raise UserError(f"--type {settings.dtype}: vLLM, which serves {name}, takes f32 or f16.")
    model = source.directory
    if source.adapter is not None:
        model = source.kept(
            "hf", lambda made: save_model(source.merged(), made, source.directory, 0)
        )
    options = {
        "--served-model-name": name,
        "--uds": str(socket),
        "--dtype": VLLM_TYPES[settings.dtype],
        "--max-model-len": str(length),
        "--max-num-seqs": str(settings.rows),
        "--gpu-memory-utilization": f"{0.9 / settings.models:.2f}",
        "--override-generation-config": json.dumps({"max_new_tokens": settings.max_tokens}),
        "--uvicorn-log-level": "warning",
    }
    return [
        *CHILD,
        "vllm",
        "serve",
        str(model),
        *(word for pair in options.items() for word in pair),
    ]


def decoder(name: str, source: Source, socket: Path, length: int, settings: Settings) -> list[str]:
    """Return the command of this project's own decoder.

    Raises:
        UserError: it does not compute in `settings.dtype`.
    """
    if settings.dtype != "f32":
        raise UserError(f"--type {settings.dtype}: the decoder, which serves {name}, takes f32.")
    options = {
        "name": name,
        "directory": str(source.directory),
        "adapter": str(source.adapter) if source.adapter else None,
        "socket": str(socket),
        "length": length,
        "max_tokens": settings.max_tokens,
    }
    return [*CHILD, "decoder", json.dumps(options)]
