"""Train the tokenizer on the training documents and write all documents as token shards."""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path

from llm import params
from llm.corpus import sample
from llm.corpus.chunks import digest, find_chunks
from llm.corpus.clean.plan import FOLDER, Plan, held_out_runs, prepare
from llm.corpus.encode import Encoded, decided_by, describe, encode_corpus, worker_count
from llm.corpus.task_documents import encode_examples
from llm.data.val_sources import mixture, save_validation
from llm.runtime import outputs, pool, pool_dask
from llm.runtime.io import link, read_json, refuse_other_files, whole_directory, write_json
from llm.runtime.stage import run_stage
from llm.runtime.state_dirs import unfinished
from llm.runtime.timing import stage_timing
from llm.sources import datasets
from llm.tasks.mixture import Dataset
from llm.tokenizer.bpe import Tokenizer
from llm.tokenizer.encoders import choose

RAW, TOKENIZER, TOKENS = Path("data/raw/pretrain"), Path("data/tokenizer"), Path("data/tokens")


def make_plan(p: params.Params, tests: list[Dataset], saved: Path, workers: int) -> Plan:
    """Decide the fate of each document; an interrupted run left its decisions in `saved`."""
    if saved.is_dir():
        return Plan(p.tokenize.clean, saved)
    # The examples are read only where tokenize.clean.decontaminate is on.
    examples = datasets.held_out_texts(tests)
    return prepare(p.tokenize.clean, RAW, saved, examples, workers, p.tokenize.val_fraction)


def task_documents(p: params.Params, tests: list[Dataset], tokenizer: Tokenizer) -> Encoded:
    """Return the tasks' training examples that `tokenize.task_examples` asks for."""
    t, examples = p.tokenize, datasets.held_out_texts(tests)
    held_out = held_out_runs(t.clean, RAW, examples, t.val_fraction)
    return encode_examples(
        tests, t.task_examples, tokenizer, p.seed, p.pretrain.sequence_length, held_out
    )


def main() -> None:
    p = params.load()
    refuse_other_files(TOKENS, outputs.TOKENS)  # before the text is encoded, not after
    refuse_other_files(TOKENIZER, outputs.TOKENIZER)
    t = p.tokenize
    # The shards do not need the tasks, but an error in one should show now, not after pretraining.
    tests = datasets.read(RAW.parent, p.mix)
    for line in datasets.remarks(tests):
        print(f"tokenize: {line}", flush=True)
    weights = mixture(read_json(RAW / "manifest.json"))
    chunks, groups = find_chunks(RAW.absolute()), find_chunks(RAW, size=1)
    inputs = decided_by(p, RAW) | {"parts": digest(chunks)}
    count = worker_count(chunks, t.workers) if t.engine == "local" else 1
    with (
        stage_timing("tokenize") as timing,
        unfinished("tokenize", inputs) as work,
        pool.Workers(count) as workers,
    ):
        began = time.perf_counter()
        plan = make_plan(p, tests, (work / FOLDER).absolute(), worker_count(chunks, t.workers))
        tokenizer = sample.make_tokenizer(t, groups, plan, work / "tokenizer")
        sample.check_disk(sample.shard_bytes(groups, tokenizer), work, TOKENS)
        ordered = workers.ordered if t.engine == "local" else pool_dask.ordered
        sizes = t.val_fraction, t.shard_tokens
        last = partial(task_documents, p, tests, tokenizer) if t.task_examples else None
        shards, counts = encode_corpus(
            chunks, tokenizer, work, *sizes, plan, ordered, t.encoder, weights, last
        )
        least = p.pretrain.sequence_length + 1
        meta = describe(shards, counts, tokenizer, t.val_fraction, least) | plan.digests()
        with whole_directory(TOKENS, outputs.TOKENS) as out:
            shutil.copytree(work / "tokens", out, copy_function=link, dirs_exist_ok=True)
            if plan.directory:
                shutil.copytree(plan.directory, out / FOLDER)
            write_json(out / "meta.json", meta | save_validation(out, counts))
        with whole_directory(TOKENIZER, outputs.TOKENIZER) as out:
            tokenizer.save(out)
        metrics = counts.metrics(tokenizer, t.clean)
        write_json("metrics/tokenize.json", metrics)
        timing |= {"workers": count, "encoder": choose(tokenizer, t.encoder).name}
        tokens = metrics["train_tokens"] + metrics["val_tokens"]
        timing["tokens_per_second"] = tokens / (time.perf_counter() - began)
    print(
        f"tokenize: {metrics['train_tokens']:,} training and {metrics['val_tokens']:,} validation tokens · "
        f"{metrics['vocab_size']:,} kinds · {metrics['bytes_per_token']:.2f} bytes a token → {TOKENS}"
    )


if __name__ == "__main__":
    run_stage(main)
