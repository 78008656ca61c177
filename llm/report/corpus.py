"""The pretraining text as the report shows it: how much, how long, from where, and how well the
tokenizer packs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm.data.shards import TokenStream
from llm.data.val_sample import ValSample
from llm.data.val_sources import validation_sources
from llm.evaluate.compression import documents
from llm.runtime.io import read_json
from llm.tokenizer import gpt2 as gpt2_files
from llm.tokenizer.bpe import Tokenizer

TOKENS, TOKENIZER = Path("data/tokens"), Path("data/tokenizer")
COMPARED_TOKENS = 500_000  # of held-out text that two tokenizers are compared on, about
TOKENS_SHOWN = 40  # characters of a frequent token


def corpus(metrics: dict[str, Any]) -> dict[str, Any] | None:
    """What metrics/tokenize.json says, ready to be shown; None where there is none."""
    if "train_tokens" not in metrics:
        return None
    whole = {
        kind: metrics[f"train_{kind}"] + metrics.get(f"val_{kind}", 0)
        for kind in ("documents", "tokens")
    }
    whole["bytes"] = metrics.get("train_bytes", 0) + metrics.get("val_bytes", 0)
    return {
        **whole,
        "bytes_per_token": metrics["bytes_per_token"],
        "unused_tokens": metrics.get("unused_tokens"),
        "lengths": [
            (int(size), count) for size, count in metrics.get("document_tokens", {}).items()
        ],
        "sources": [
            {
                **row,
                "share": row["tokens"] / max(1, whole["tokens"]),
                "packing": row["bytes"] / max(1, row["tokens"]),
            }
            for row in metrics.get("largest_sources", [])
        ],
        "frequent": [
            {
                "token": shown(row["token"]),
                "count": row["count"],
                "share": row["count"] / max(1, whole["tokens"]),
            }
            for row in metrics.get("frequent_tokens", [])
        ],
        "compared": compared(),
    }


def shown(token: str) -> str:
    """A token with its blanks visible."""
    for blank, sign in ((" ", "␣"), ("\n", "⏎"), ("\t", "⇥"), ("\r", "␍")):
        token = token.replace(blank, sign)
    return token if len(token) <= TOKENS_SHOWN else f"{token[:TOKENS_SHOWN]}…"


def compared() -> dict[str, Any] | None:
    """Bytes a token of our tokenizer and of GPT-2's on the same held-out documents, end tokens not
    counted.

    None where there are no shards. GPT-2's figure is None where its files are not on this machine:
    they are not fetched for this.
    """
    if not (TOKENS / "meta.json").is_file() or not (TOKENIZER / "tokenizer.json").is_file():
        return None
    tokenizer = Tokenizer.load(TOKENIZER)
    gpt2 = Tokenizer.gpt2() if gpt2_files.are_here() else None
    size = ours = theirs = count = 0
    val = TokenStream(TOKENS, "val")
    names, places, _ = validation_sources(TOKENS, val)
    for text, tokens in documents(
        ValSample(val, tokenizer, COMPARED_TOKENS, names, places), tokenizer
    ):
        count, ours, size = count + 1, ours + tokens - 1, size + len(text.encode())
        theirs += len(gpt2.encode(text)) if gpt2 else 0
    return {
        "documents": count,
        "bytes": size,
        "ours": size / max(1, ours),
        "gpt2": size / max(1, theirs) if gpt2 else None,
        "vocab_size": read_json(TOKENS / "meta.json")["vocab_size"],
    }
