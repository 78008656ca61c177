"""Greedy answers of one model in several runtimes, compared with those of our decoder in float32.

    python bench/runtimes.py [--model models/finetuned] [--prompts 200]

Needs the extras `peers` and `export`, and the tests in data/mix/test. Prints for each task the
share of equal answers, and the number of prompts that get other ids in llama.cpp. llama.cpp computes
attention in float16 unless told otherwise.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from llm.evaluate.prompts import prompt_ids
from llm.export import export
from llm.generation.generate import generate
from llm.model.hf_files import load_model
from llm.tokenizer.bpe import Tokenizer
from tests.export.llama_cpp import llama_cpp

TYPES = (
    ("f32", "f32"),
    ("f32", "f16"),
    ("f16", "f16"),
    ("q8_0", "f16"),
)  # of weights, of attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/finetuned"))
    parser.add_argument("--tests", type=Path, default=Path("data/mix/test"))
    parser.add_argument("--prompts", type=int, default=200, help="of each task")
    parser.add_argument("--new-tokens", type=int, default=48)
    a = parser.parse_args()
    tokenizer, model = Tokenizer.load(a.model), load_model(a.model)
    context = model.config.max_position_embeddings
    texts = {
        path.stem: pq.read_table(path)["prompt"].to_pylist()[: a.prompts]
        for path in sorted(a.tests.glob("*.parquet"))
    }
    room = context - a.new_tokens
    prompts = {
        task: [prompt_ids(tokenizer, text, True, room)[0] for text in each]
        for task, each in texts.items()
    }
    expected = {
        task: generate(model, each, a.new_tokens, tokenizer.eos_id)
        for task, each in prompts.items()
    }

    def report(name: str, answer: Callable[[list[int]], list[int]]) -> None:
        for task, each in prompts.items():
            equal = sum(
                _before_end(answer(prompt), tokenizer.eos_id) == ids
                for prompt, ids in zip(each, expected[task], strict=True)
            )
            print(f"{name} · {task}: {equal} of {len(each)} answers equal", flush=True)

    for dtype, attention in TYPES:
        with tempfile.TemporaryDirectory() as folder:
            out = export("gguf", a.model, Path(folder) / "model", dtype)
            with llama_cpp(next(out.glob("*.gguf")), context, attention) as server:
                if (dtype, attention) == TYPES[0]:
                    for task, each in texts.items():
                        other = sum(
                            server.chat_ids([{"role": "user", "content": text}])
                            != tokenizer.chat_ids(text)
                            for text in each
                        )
                        print(f"llama.cpp · {task}: {other} of {len(each)} with other ids")
                report(
                    f"llama.cpp {dtype}, attention {attention}",
                    lambda prompt, server=server: server.greedy(prompt, a.new_tokens)[1],  # type: ignore[misc]
                )
    report("transformers float32", _transformers(a.model, a.new_tokens))


def _transformers(directory: Path, new_tokens: int) -> Callable[[list[int]], list[int]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def answer(prompt: list[int]) -> list[int]:
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=new_tokens, do_sample=False)
        return ids[0, len(prompt) :].tolist()

    return answer


def _before_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


if __name__ == "__main__":
    main()
