"""Decoding side by side: ours, transformers' generate, and a loop without a cache.

    python bench/generate.py [--rounds 5] [--sizes 5M 25M] [--dtypes float32 bfloat16] [--questions
    40]

The variants take turns on the same prompts (256 tokens, 64 new ones, none ends early) in one
process a model and type; figures are medians of the rounds, prefill included, the compiler's start
not. `mixed` has prompts of 64 to 256 tokens, in transformers padded on the left. In float32 every
token is compared. Question answering needs `models/finetuned` and
`data/mix/test/question_answering.parquet` of a run (`dvc repro` or `dvc pull`): real prompts one at
a time, answers as long as the model makes them."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench import results

PROMPT, NEW = 256, 64
# tokens that the loop without a cache is timed over; its time is scaled up, and so flattered a
# little
UNCACHED = 4
GUESSES = 7
SIZES = {  # vocabulary, hidden, intermediate, layers, heads, key-value heads
    "5M": (4096, 256, 704, 4, 4, 2),
    "25M": (8192, 512, 1408, 6, 8, 8),
}
Answers = list[list[int]]


def random_model(size: str) -> Any:
    """A model of params.yaml's kind with weights that make every token matter."""
    import torch

    from llm.model.config import Config
    from llm.model.transformer import Transformer

    vocab, hidden, intermediate, layers, heads, kv_heads = SIZES[size]
    config = Config(
        vocab, hidden, intermediate, layers, heads, kv_heads, 64, 512, 1e4, 1e-6, False, True
    )
    model = Transformer(config)
    model.initialize(0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def peer_of(model: Any, dtype: Any, eos_id: int) -> Any:
    """Return the same weights in transformers."""
    import transformers

    from llm.model.hf_files import save_model

    with tempfile.TemporaryDirectory() as directory:
        save_model(model, Path(directory), Path(directory), eos_id)
        return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def theirs(peer: Any, prompts: Answers, new: int, eos_id: int, least: int, **more: Any) -> Answers:
    """transformers' generate, with what its documentation says of batches: padding on the left."""
    import torch

    longest = max(map(len, prompts))
    ids = torch.tensor([[eos_id] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = peer.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=new,
        min_new_tokens=least or None,
        do_sample=False,
        **more,
    )
    return [row[: row.index(eos_id)] if eos_id in row else row for row in out[:, longest:].tolist()]


def uncached(model: Any, prompts: Answers, new: int) -> Answers:
    """The whole text through the model for each token."""
    import torch

    ids = torch.tensor(prompts)
    with torch.inference_mode():
        for _ in range(new):
            ids = torch.cat(
                (ids, model.lm_head(model.hidden_states(ids)[:, -1]).argmax(-1)[:, None]), dim=1
            )
    return ids[:, len(prompts[0]) :].tolist()


def turns(
    variants: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds and last result of each variant; the first turn warms up and is not counted."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    found = {}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            began = time.perf_counter()
            found[name] = run()
            if turn:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in times.items()}, found


def same(a: Answers, b: Answers) -> float:
    """Share of equal answers."""
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)


def batches(size: str, dtype: str, rounds: int) -> list[list[str]]:
    """Rows of the table for one model and type."""
    import numpy as np
    import torch

    from llm.generation.generate import complete
    from llm.generation.request import Request

    model, kind = random_model(size), getattr(torch, dtype)
    peer = peer_of(model, kind, 0)
    model.to(kind)
    model.compute_dtype = kind
    rng = np.random.default_rng(0)
    rows = []
    for label, lengths in (
        ("1", [PROMPT]),
        ("16", [PROMPT] * 16),
        ("16, mixed", [64 + 192 * i // 15 for i in range(16)]),
    ):
        prompts = [rng.integers(1, model.config.vocab_size, size=n).tolist() for n in lengths]

        def ours(compiled: bool, prompts: Answers = prompts) -> Answers:
            requests = [Request(prompt, NEW) for prompt in prompts]
            return [
                c.ids
                for c in complete(
                    model, requests, frozenset(), batch_size=len(prompts), compiled=compiled
                )
            ]

        variants: dict[str, Callable[[], Any]] = {
            "compiled": lambda: ours(True),
            "transformers": lambda prompts=prompts: theirs(peer, prompts, NEW, 0, NEW),  # type: ignore[misc]
            "eager": lambda: ours(False),
        }
        if len(set(lengths)) == 1:
            variants["uncached"] = lambda prompts=prompts: uncached(model, prompts, UNCACHED)  # type: ignore[misc]
        times, found = turns(variants, rounds)
        rate = {name: len(prompts) * NEW / taken for name, taken in times.items()}
        loop = (
            f"{rate['compiled'] * times['uncached'] / UNCACHED / len(prompts):.1f}"
            if "uncached" in times
            else "–"
        )
        equal = [same(found["transformers"], found[name]) for name in ("compiled", "eager")]
        rows.append(
            [
                size, dtype, label, f"{rate['transformers']:.0f}", f"{rate['eager']:.0f}", f"{rate['compiled']:.0f}",
                f"{rate['eager'] / rate['transformers']:.2f}", f"{rate['compiled'] / rate['transformers']:.2f}", loop,
                " and ".join(f"{100 * share:.0f} %" for share in equal),
            ]
        )  # fmt: skip
    return rows


def questions(dtype: str, rounds: int, count: int) -> list[list[str]]:
    """Rows of the table of question answering, one prompt at a time."""
    import torch

    from llm.evaluate import test_sets
    from llm.generation.batch import Batch
    from llm.generation.request import Request
    from llm.model.hf_files import load_model
    from llm.params import Decoding
    from llm.tokenizer.bpe import Tokenizer

    directory, kind = Path("models/finetuned"), getattr(torch, dtype)
    tokenizer = Tokenizer.load(directory)
    peer = peer_of(load_model(directory), kind, tokenizer.eos_id)
    model = load_model(directory, dtype=kind)
    tests = {test.name: test for test in test_sets.read_tests(Path("data/mix/test"), count)}
    prompts = [tokenizer.chat_ids(row["prompt"]) for row in tests["question_answering"].rows]
    slots = max(map(len, prompts)) + 32 + GUESSES
    steps: dict[int, int] = {}

    def ours(guesses: int, compiled: bool) -> Answers:
        settings = Decoding(prompt_lookup_num_tokens=guesses)
        answers = []
        steps[guesses] = 0
        batch = Batch(model, 1, slots, frozenset({tokenizer.eos_id}), compiled=compiled)
        for prompt in prompts:
            done = batch.admit(0, Request(prompt, 32, settings))
            while done is None:
                done = next((completion for _, completion in batch.step()), None)
                steps[guesses] += 1
            answers.append(done.ids)
        return answers

    def each(**more: Any) -> Answers:
        return [theirs(peer, [prompt], 32, tokenizer.eos_id, 0, **more)[0] for prompt in prompts]

    variants: dict[str, Callable[[], Any]] = {
        "transformers": lambda: each(),
        "transformers, prompt lookup": lambda: each(prompt_lookup_num_tokens=GUESSES),
        "ours, eager": lambda: ours(0, False),
        "ours, eager, prompt lookup": lambda: ours(GUESSES, False),
        "ours, compiled": lambda: ours(0, True),
        "ours, compiled, prompt lookup": lambda: ours(GUESSES, True),
    }
    times, found = turns(variants, rounds)
    tokens = sum(map(len, found["transformers"]))
    return [
        [
            dtype, name, f"{1e3 * taken / len(prompts):.1f} ms", f"{times['transformers'] / taken:.2f}",
            f"{100 * same(found['transformers'], found[name]):.0f} %", f"{tokens / len(prompts):.1f}",
            f"{tokens / steps[GUESSES if 'lookup' in name else 0]:.2f}" if name.startswith("ours") else "",
        ]
        for name, taken in times.items()
    ]  # fmt: skip


def in_a_process(*arguments: str) -> list[list[str]]:
    """Rows that this file makes in a process of its own, whose compiler starts afresh."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run(
        [sys.executable, __file__, *arguments], env=environment, stdout=subprocess.PIPE, check=True
    )
    rows: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument(
        "--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"]
    )
    parser.add_argument("--questions", type=int, default=40, help="0: none")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    common = ["--rounds", str(arguments.rounds), "--questions", str(arguments.questions)]
    if arguments.child:
        warnings.filterwarnings("ignore")
        dtype = arguments.dtypes[0]
        if arguments.child == "questions":
            rows = questions(dtype, max(1, arguments.rounds // 2), arguments.questions)
        else:
            rows = batches(arguments.child, dtype, arguments.rounds)
        print(json.dumps(rows))
        return
    began = time.perf_counter()
    print(" · ".join(f"{key} {value}" for key, value in results.machine().items()))
    print(f"\nTokens/s, {PROMPT} + {NEW} tokens, prefill included\n", flush=True)
    head = [
        "size",
        "type",
        "batch",
        "transformers",
        "ours, eager",
        "ours, compiled",
        "eager ÷ transformers",
    ]
    head += ["compiled ÷ transformers", "compiled ÷ no cache", "equal answers (compiled, eager)"]
    table = [
        row
        for size in arguments.sizes
        for dtype in arguments.dtypes
        for row in in_a_process("--child", size, "--dtypes", dtype, *common)
    ]
    print(results.table(head, table), flush=True)
    if arguments.questions and Path("models/finetuned/model.safetensors").exists():
        rows = [
            row
            for dtype in arguments.dtypes
            for row in in_a_process("--child", "questions", "--dtypes", dtype, *common)
        ]
        head = [
            "type",
            "",
            "a question",
            "÷ transformers",
            "equal answers",
            "tokens an answer",
            "tokens a step",
        ]
        print(
            f"\nQuestion answering, one prompt at a time, {arguments.questions} prompts of the test set\n"
        )
        print(results.table(head, rows))
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
