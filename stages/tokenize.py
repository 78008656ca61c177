"""Train the tokenizer on the training documents and write all documents as token shards."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from llm import params
from llm.data import corpus_sample
from llm.data.chunks import Chunk, digest, find_chunks
from llm.data.corpus import code_version, describe, encode_corpus
from llm.data.tokenizer import Tokenizer
from llm.errors import run_stage
from llm.io import link, sha256, whole_directory, write_json
from llm.timing import stage_timing
from llm.unfinished import unfinished

RAW, TOKENIZER, TOKENS = Path("data/raw/pretrain"), Path("data/tokenizer"), Path("data/tokens")


def make_tokenizer(p: params.Tokenize, groups: list[Chunk], kept: Path) -> Tokenizer:
    """GPT-2's encoding, or BPE trained on (a sample of) the training documents; what was made before is in `kept`."""
    if kept.is_dir():
        return Tokenizer.load(kept)
    if p.tokenizer == "gpt2":
        tokenizer = Tokenizer.gpt2()
    else:
        tokenizer = Tokenizer.train(corpus_sample.training_texts(groups, p.val_fraction), p.vocab_size)
        if (size := tokenizer.vocab_size) < p.vocab_size:
            print(f"tokenize: the text yields {size} tokens, fewer than tokenize.vocab_size={p.vocab_size}")
    with whole_directory(kept) as directory:
        tokenizer.save(directory)
    return tokenizer


def main() -> None:
    p = params.load()
    t = p.tokenize
    found, groups = find_chunks(RAW), find_chunks(RAW, size=1)
    same = t.model_dump(exclude={"workers", "encoder"})
    inputs = {"tokenize": same, "raw": sha256(RAW / "manifest.json"), "parts": digest(found), "code": code_version()}
    with stage_timing("tokenize") as timing, unfinished("tokenize", inputs) as work:
        began = time.perf_counter()
        tokenizer = make_tokenizer(t, groups, work / "tokenizer")
        corpus_sample.check_disk(corpus_sample.shard_bytes(groups, tokenizer), work, TOKENS)
        shards, counts = encode_corpus(found, tokenizer, work, t.val_fraction, t.shard_tokens, t.workers, t.encoder)
        meta = describe(shards, counts, tokenizer, t.val_fraction, p.pretrain.sequence_length + 1)
        with whole_directory(TOKENS) as out:
            shutil.copytree(work / "tokens", out, copy_function=link, dirs_exist_ok=True)
            write_json(out / "meta.json", meta)
        with whole_directory(TOKENIZER) as out:
            tokenizer.save(out)
        metrics = counts.metrics(tokenizer)
        write_json("metrics/tokenize.json", metrics)
        timing["tokens_per_second"] = (metrics["train_tokens"] + metrics["val_tokens"]) / (time.perf_counter() - began)
    print(
        f"tokenize: {metrics['train_tokens']:,} training and {metrics['val_tokens']:,} validation tokens · "
        f"{metrics['vocab_size']:,} kinds · {metrics['bytes_per_token']:.2f} bytes a token → {TOKENS}"
    )


if __name__ == "__main__":
    run_stage(main)
