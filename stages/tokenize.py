"""Train the tokenizer on the training documents and write all documents as token shards."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np

from llm import params
from llm.data import raw
from llm.data.shards import is_validation, write_shards
from llm.data.tokenizer import Tokenizer
from llm.errors import run_stage
from llm.io import read_json, whole_directory, write_json
from llm.progress import Progress
from llm.timing import stage_timing

RAW, TOKENIZER, TOKENS = Path("data/raw/pretrain"), Path("data/tokenizer"), Path("data/tokens")
SAMPLE_BYTES = 500_000_000  # of training text for BPE; of more, the documents whose hash falls into that share


def make_tokenizer(p: params.Tokenize, text_bytes: int) -> Tokenizer:
    """GPT-2's encoding, that of a model directory, or BPE trained on (a sample of) the training documents."""
    if p.tokenizer == "gpt2":
        return Tokenizer.gpt2()
    if p.tokenizer == "pretrained":
        return Tokenizer.load(p.origin)
    share = min(1.0, SAMPLE_BYTES / max(1, text_bytes))
    texts = (r["text"] for r in raw.read(RAW, ["text"]))
    sample = (t for t in texts if not is_validation(t, p.val_fraction) and is_validation(t[::-1], share))
    tokenizer = Tokenizer.train(sample, p.vocab_size)
    if tokenizer.vocab_size < p.vocab_size:
        print(f"tokenize: the text yields {tokenizer.vocab_size} tokens, fewer than tokenize.vocab_size={p.vocab_size}")
    return tokenizer


def main() -> None:
    p = params.load()
    manifest = read_json(RAW / "manifest.json")
    with stage_timing("tokenize") as timing:
        began = time.perf_counter()
        tokenizer = make_tokenizer(p.tokenize, manifest["bytes"])
        counts, lengths = np.zeros(tokenizer.vocab_size, dtype=np.int64), Counter[int]()
        with whole_directory(TOKENS) as out, Progress("tokenize", manifest["rows"], "document") as progress:
            documents = (record["text"] for record in raw.read(RAW, ["text"]))
            split, size, need = p.tokenize.val_fraction, p.tokenize.shard_tokens, p.pretrain.sequence_length + 1
            for batch in write_shards(documents, tokenizer, out, split, size, need):
                counts += np.bincount(np.concatenate([ids for _, ids in batch]), minlength=len(counts))
                lengths.update(1 << (len(ids) - 1).bit_length() for _, ids in batch)
                progress.update(len(batch))
            meta = read_json(out / "meta.json")
        with whole_directory(TOKENIZER) as out:
            tokenizer.save(out)
        total = meta["train"]["tokens"] + meta["val"]["tokens"]
        top = np.argsort(-counts, kind="stable")[:20]
        metrics = {
            "vocab_size": tokenizer.vocab_size,
            **{
                f"{split}_{key}": meta[split][key]
                for key in ("tokens", "documents", "bytes")
                for split in ("train", "val")
            },
            "bytes_per_token": (meta["train"]["bytes"] + meta["val"]["bytes"]) / total,  # end tokens count
            "unused_tokens": int((counts == 0).sum()),
            "document_tokens": {str(size): lengths[size] for size in sorted(lengths)},  # size/2 < tokens <= size
            "frequent_tokens": [{"token": tokenizer.decode([i]), "count": int(counts[i])} for i in top],
        }
        write_json("metrics/tokenize.json", metrics)
        timing["tokens_per_second"] = total / (time.perf_counter() - began)
    print(
        f"tokenize: {metrics['train_tokens']:,} training and {metrics['val_tokens']:,} validation tokens · "
        f"{metrics['vocab_size']:,} kinds · {metrics['bytes_per_token']:.2f} bytes a token → {TOKENS}"
    )


if __name__ == "__main__":
    run_stage(main)
