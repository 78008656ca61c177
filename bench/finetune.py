"""Finetuning with LoRA side by side with `transformers` + `peft`: `python bench/finetune.py`.

Both train the same adapter on the same 25M-parameter base, step by step on the very same examples,
whose lengths are SQuAD's (a context and a question of about 190 tokens, an answer of about five):
here packed into rows without attention across examples, there padded to the longest of the batch,
with the loop and the loss of `transformers`. They take turns; figures are medians over the rounds.
Both start from the same adapter: losses agree step by step."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import results
from shapes import SPEED
from workers import Gate, Worker

ROOT = Path(__file__).resolve().parent.parent
LENGTH, BATCH_TOKENS = 512, 4096  # of a packed row; of an optimizer step: about twenty examples
EXAMPLES, SEED, RATE = 4096, 1, 1e-3
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GOALS = {
    8192: (3.0, 0.45),
    32768: (3.0, 0.25),
}  # of issue 6: times the examples/s, share of the memory
OVER_FLOAT32 = 6.0


def examples(vocab: int) -> list[tuple[list[int], int]]:
    """Token ids (prompt, answer, end token 0) and the prompt's length; the answer is a span of the
    prompt.
    """
    random = np.random.default_rng(SEED)
    found = []
    for _ in range(EXAMPLES):
        size = int(np.clip(random.lognormal(np.log(185), 0.42), 40, LENGTH - 40))
        answer = min(1 + int(random.geometric(0.24)), 30)
        prompt = (random.zipf(1.3, size) % (vocab - 1) + 1).tolist()
        at = int(random.integers(0, size - answer))
        found.append(([*prompt, *prompt[at : at + answer], 0], size))
    return found


def packed(vocab: int) -> Any:
    """The examples in rows, as `finetune` packs them."""
    from llm.data.packing import PackedExamples

    return PackedExamples(examples(vocab), LENGTH, 0, SEED)


def make_base(gate: Gate, folder: Path, vocab: int) -> None:
    """Write the base model and the adapter that training starts from."""
    from llm.model.config import Config
    from llm.model.hf_files import save_model
    from llm.model.lora import add_lora
    from llm.model.lora_files import save_lora
    from llm.model.transformer import Transformer

    s = SPEED["25M"]
    sizes = (vocab, s.hidden, s.intermediate, s.layers, s.heads, s.heads, s.head_dim, LENGTH)
    model = Transformer(Config(*sizes, 10000.0, 1e-6, tie_word_embeddings=True))
    model.initialize(SEED)
    for name in ("base", "adapter"):
        (folder / name).mkdir()
    save_model(model, folder / "base", folder, eos_id=0)
    add_lora(model, 16, 32.0, 0.0, TARGETS, SEED)
    lora = {"r": 16, "alpha": 32.0, "dropout": 0.0, "target_modules": TARGETS}
    save_lora(model, folder / "adapter", lora, base=str(folder / "base"))


def ours(gate: Gate, folder: Path, vocab: int, precision: str, compiled: bool) -> None:
    """`finetune`'s own step, without end; gives (seconds, examples, loss) of each."""
    import os

    os.environ["DVC_ROOT"] = str(folder / f"state-{precision}-{compiled}")
    from llm import params
    from llm.data.order import batch_ids
    from llm.model.adapters import load_adapter
    from llm.model.hf_files import load_model
    from llm.train.checkpoint.local import State
    from llm.train.trainer import Trainer
    from llm.train.training_log import Untracked

    settings = params.load(ROOT / "params.yaml").finetune.model_copy(
        update={
            "sequence_length": LENGTH, "batch_tokens": BATCH_TOKENS, "precision": precision, "compile": compiled,
            "schedule": "wsd", "warmup_fraction": 0.0, "decay_fraction": 0.0, "learning_rate": RATE,
            "optimizer": "adamw", "weight_decay": 0.0, "grad_clip": 1.0,
        }
    )  # fmt: skip
    data, steps = packed(vocab), 100_000
    model = load_model(folder / "base", keep_stored=True)
    load_adapter(model, folder / "adapter")
    state = State("bench", {"vocab": vocab, "precision": precision})
    state.directory.mkdir(parents=True, exist_ok=True)
    run = Trainer(model.train(), data, data, data, settings, steps, SEED, state, Untracked())
    batches = run.engine.batches(0)
    gate.begin()
    for step in range(steps):
        loss, _, _ = run.step(step, batches)
        rows = batch_ids(SEED, step, run.engine.batch_size, data.num_rows)
        gate.step_done(
            (time.perf_counter() - gate.began, sum(len(data.packed[row]) for row in rows), loss)
        )


def theirs(gate: Gate, folder: Path, vocab: int, precision: str) -> None:
    """The usual loop: pad to the longest, `model(**batch).loss`, clip, AdamW; bf16 is autocast."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from llm.data.order import batch_ids

    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    data, given, step = packed(vocab), examples(vocab), 0
    gate.begin()
    while True:
        rows = batch_ids(SEED, step, BATCH_TOKENS // LENGTH, data.num_rows)
        batch = [given[number] for row in rows for number in data.packed[row]]
        longest = max(len(ids) for ids, _ in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for i, (tokens, prompt) in enumerate(batch):
            ids[i, : len(tokens)], mask[i, : len(tokens)] = torch.tensor(tokens), 1
            labels[i, prompt : len(tokens)] = torch.tensor(tokens[prompt:])
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        gate.step_done((time.perf_counter() - gate.began, len(batch), float(loss.detach())))
        step += 1


def compare(
    folder: Path, vocab: int, precision: str, rounds: int, slice_steps: int, compiled: bool
) -> dict[str, Any]:
    """Figures of both at one precision: one step each to warm up, then rounds in turns."""
    common: dict[str, Any] = {"folder": folder, "vocab": vocab, "precision": precision}
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    children = {
        "ours": Worker(ours, folder / f"ours-{precision}.log", cache, **common, compiled=compiled),
        "peft": Worker(theirs, folder / f"peft-{precision}.log", cache, **common),
    }
    steps: dict[str, list[Any]] = {name: child.steps(1) for name, child in children.items()}
    rates: dict[str, list[float]] = {name: [] for name in children}
    for _ in range(rounds):
        for name, child in children.items():
            done = child.steps(slice_steps)
            steps[name] += done
            rates[name].append(
                sum(count for _, count, _ in done) / sum(seconds for seconds, _, _ in done)
            )
    for child in children.values():
        child.stop()
    losses = {name: [loss for _, _, loss in done] for name, done in steps.items()}
    apart = max(abs(a - b) / b for a, b in zip(losses["ours"], losses["peft"], strict=True))
    return {
        "vocab": vocab,
        "precision": precision,
        "compiled": compiled,
        "examples_per_second": {name: results.median(values) for name, values in rates.items()},
        "ratio": results.median(a / b for a, b in zip(rates["ours"], rates["peft"], strict=True)),
        "peak_memory": {name: child.peak_memory for name, child in children.items()},
        "losses": losses,
        "largest_difference_of_losses": apart,
    }


def show() -> str:
    """The tables of the figures that are stored."""
    found = list(results.stored("finetune").values())
    base = {f["vocab"]: f["examples_per_second"]["peft"] for f in found if f["precision"] == "fp32"}
    rows, curves = [], []
    for f in found:
        speed, memory, vocab = f["examples_per_second"], f["peak_memory"], f["vocab"]
        rows.append(
            (
                f"{vocab:,}", f["precision"], f"{speed['ours']:.2f}", f"{speed['peft']:.2f}", f"{f['ratio']:.2f}",
                f"{speed['ours'] / base[vocab]:.2f}" if vocab in base else "",
                f"{memory['ours'] / 1e9:.2f}", f"{memory['peft'] / 1e9:.2f}", f"{memory['ours'] / memory['peft']:.2f}",
                f"{f['largest_difference_of_losses']:.1e}",
            )
        )  # fmt: skip
        curves.append(
            f"vocabulary {vocab:,}, {f['precision']}, loss by step: "
            + "; ".join(
                f"{name} {', '.join(f'{x:.4f}' for x in f['losses'][name])}"
                for name in ("ours", "peft")
            )
        )
    head = (
        "vocabulary", "precision", "examples/s, ours", "transformers + peft", "ratio", "over its float32",
        "peak GB, ours", "transformers + peft", "ratio", "losses differ by at most",
    )  # fmt: skip
    goals = "; ".join(
        f"at {v:,} {s} times the examples/s and {m} of the memory" for v, (s, m) in GOALS.items()
    )
    return "\n".join(
        [
            results.table(head, rows),
            "",
            f"Goals: {goals}; {OVER_FLOAT32} times its float32.",
            "",
            *curves,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, nargs="+", default=list(GOALS))
    parser.add_argument(
        "--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="a round")
    parser.add_argument("--eager", action="store_true", help="do not compile ours")
    asked = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    about = results.machine()
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        for vocab in asked.vocab:
            folder = Path(temporary) / str(vocab)
            folder.mkdir()
            maker = Worker(make_base, folder / "make.log", folder=folder, vocab=vocab)
            maker.result()
            for precision in asked.precision:
                found = compare(
                    folder, vocab, precision, asked.rounds, asked.steps, not asked.eager
                )
                results.store("finetune", f"{vocab}-{precision}", {**about, **found})
                print(f"finetune: {vocab:,} {precision}: {found['ratio']:.2f} times", flush=True)
    print("\n" + show())


if __name__ == "__main__":
    main()
