"""A runtime in a process of its own, which ends with its parent: `python -m llm.server.child RUNTIME …`.

It listens on a Unix socket in a folder that only its user can open, so that no web page and no other machine reaches
it but through `llm.server.front`.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import psutil

from llm.runtime.parent_watch import end_with


def llama_cpp(
    name: str,
    path: str,
    socket: str,
    exact: bool,
    accelerator: bool,
    rows: int,
    connections: int,
    length: int,
    max_tokens: int,
    threads: int,
) -> None:
    """Serve a GGUF file until a signal.

    Args:
        name: of the model, in answers.
        exact: compute all in float32, as `evaluate` does; else attention is in float16.
        accelerator: use the device that the wheel was built for, if it has one.
        rows: answers side by side. connections: HTTP connections.
        length: tokens of prompt and answer. max_tokens: tokens of an answer.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias, params.hostnames = path, {name}, [socket]
    params.n_parallel, params.n_ctx = rows, rows * length
    params.n_predict, params.n_threads_http = max_tokens, connections + 2
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0  # else the prompts of earlier requests fill up to 8 GB
    params.ui = params.fit_params = params.endpoint_slots = False
    params.verbosity = 1  # errors
    sampling = params.sampling  # OpenAI's defaults: draw from the model's own distribution
    sampling.temp, sampling.top_k, sampling.top_p, sampling.min_p = 1.0, 0, 1.0, 0.0
    if not accelerator:
        params.n_gpu_layers = 0
    if exact:
        # Both are needed: flash attention rounds to float16 whatever the cache is (log-probabilities are then
        # off by 0.001; else by 0.000001).
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)  # its threads serve as long as it lives
    while server:
        signal.pause()


def run(runtime: str, *arguments: str) -> None:
    """Run a runtime until its parent ends or a signal comes.

    Args:
        runtime: llama_cpp | decoder, with keyword arguments as JSON; or vllm, with its command line.
    """
    end_with(psutil.Process(os.getppid()))
    if runtime == "llama_cpp":
        llama_cpp(**json.loads(arguments[0]))
    elif runtime == "decoder":
        from llm.server.decoder import serve

        serve(**json.loads(arguments[0]))
    else:
        from vllm.entrypoints.cli.main import main

        sys.argv = [runtime, *arguments]
        main()


if __name__ == "__main__":
    run(*sys.argv[1:])
