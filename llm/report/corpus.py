"""The pretraining text in the report: size, lengths, sources and bytes per token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm.data.shards import TokenStream
from llm.data.val_sample import validation_sample
from llm.evaluate.compression import documents
from llm.runtime.io import read_json
from llm.tokenizer import gpt2
from llm.tokenizer.bpe import Tokenizer

TOKENS, TOKENIZER = Path("data/tokens"), Path("data/tokenizer")
COMPARED_TOKENS = 500_000  # about; held-out text that compares two tokenizers
TOKEN_CHARACTERS = 40  # longest frequent token that is shown whole


def corpus(metrics: dict[str, Any]) -> dict[str, Any] | None:
    """Return the content of metrics/tokenize.json for the page; None if the stage has not run."""
    if "train_tokens" not in metrics:
        return None
    totals = {
        kind: metrics.get(f"train_{kind}", 0) + metrics.get(f"val_{kind}", 0)
        for kind in ("documents", "tokens", "bytes")
    }
    return {
        **totals,
        "bytes_per_token": metrics["bytes_per_token"],
        "unused_tokens": metrics.get("unused_tokens"),
        "lengths": [(int(size), n) for size, n in metrics.get("document_tokens", {}).items()],
        "sources": [
            {
                **row,
                "share": row["tokens"] / max(1, totals["tokens"]),
                "packing": row["bytes"] / max(1, row["tokens"]),
            }
            for row in metrics.get("largest_sources", [])
        ],
        "frequent": [
            {
                "token": visible(row["token"]),
                "count": row["count"],
                "share": row["count"] / max(1, totals["tokens"]),
            }
            for row in metrics.get("frequent_tokens", [])
        ],
        "compared": compare_tokenizers(),
    }


def visible(token: str) -> str:
    """Return a token with visible signs for its blanks."""
    for blank, sign in ((" ", "␣"), ("\n", "⏎"), ("\t", "⇥"), ("\r", "␍")):
        token = token.replace(blank, sign)
    return token if len(token) <= TOKEN_CHARACTERS else f"{token[:TOKEN_CHARACTERS]}…"


def compare_tokenizers() -> dict[str, Any] | None:
    """Return bytes per token of our tokenizer and of GPT-2's on the same held-out documents.

    End tokens do not count. None if there are no shards. GPT-2's value is None if its files are
    not on this machine; they are not downloaded for this comparison.
    """
    if not (TOKENS / "meta.json").is_file() or not (TOKENIZER / "tokenizer.json").is_file():
        return None
    tokenizer = Tokenizer.load(TOKENIZER)
    gpt2_tokenizer = Tokenizer.gpt2() if gpt2.are_here() else None
    size = ours = theirs = count = 0
    val = TokenStream(TOKENS, "val")
    sample = validation_sample(TOKENS, val, tokenizer, COMPARED_TOKENS)
    for text, tokens in documents(sample, tokenizer):
        count, ours, size = count + 1, ours + tokens - 1, size + len(text.encode())
        theirs += len(gpt2_tokenizer.encode(text)) if gpt2_tokenizer else 0
    return {
        "documents": count,
        "bytes": size,
        "ours": size / max(1, ours),
        "gpt2": size / max(1, theirs) if gpt2_tokenizer else None,
        "vocab_size": read_json(TOKENS / "meta.json")["vocab_size"],
    }
