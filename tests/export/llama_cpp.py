"""llama.cpp in a process of its own: its server of the wheel `xllamacpp`, asked over HTTP.

The wheel's server never ends by itself, so the process ends by a signal.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from llm.tracking.ui import free_port

START = """
import sys, threading
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.port, params.n_ctx, params.n_parallel = int(sys.argv[2]), int(sys.argv[3]), 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
if sys.argv[4] == "f32":
    # Flash attention computes in float16 on a CPU, whatever the cache's type.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
threading.Event().wait()
"""


class LlamaCpp:
    """A running server of one model."""

    def __init__(self, address: str) -> None:
        self.address = address

    def post(self, path: str, content: Mapping[str, Any]) -> Any:
        """Return the JSON answer to a POST."""
        body = json.dumps(content).encode()
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(self.address + path, body, headers), timeout=300) as answer:
            return json.load(answer)

    def ids(self, text: str, special: bool = False) -> list[int]:
        """Return the ids of a text; `special`: special tokens' strings in it are special tokens."""
        content = {"content": text, "add_special": special, "parse_special": special}
        return self.post("/tokenize", content)["tokens"]

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the ids of a conversation, as the file's chat template renders it."""
        prompt = self.post("/apply-template", {"messages": messages})["prompt"]
        return self.ids(prompt, special=True)

    def greedy(self, prompt: str | Sequence[int], tokens: int) -> tuple[str, list[int]]:
        """Return the text and the ids of the likeliest continuation."""
        content = {"prompt": prompt, "n_predict": tokens, "temperature": 0.0, "return_tokens": True}
        answer = self.post("/completion", content)
        return answer["content"], answer["tokens"]


@contextmanager
def llama_cpp(model: Path, context: int = 512, attention: str = "f32") -> Iterator[LlamaCpp]:
    """Serve a GGUF file.

    attention: type in which it is computed and its keys and values are kept: f32, or llama.cpp's
        default, f16.
    """
    command = [sys.executable, "-c", START, str(model), str(free_port(0)), str(context), attention]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = next((line.strip() for line in process.stdout if line.startswith("http")), "")
            assert address, f"llama.cpp did not load {model}"
            yield LlamaCpp(address)
        finally:
            process.kill()
