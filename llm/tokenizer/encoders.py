"""Encoders of text to token ids; tiktoken is the reference, and all must give its ids."""

from __future__ import annotations

import importlib.util
from typing import Protocol

import numpy as np
import pyarrow as pa

from llm.tokenizer.bpe import GPT2_PATTERN, Tokenizer
from llm.tokenizer.gigatoken_encoder import Gigatoken
from llm.tokenizer.split_points import CUT
from llm.tokenizer.word_cache import Words


class Encoder(Protocol):
    """The interface of all encoders; special tokens' strings within a text are plain text."""

    name: str

    def encode(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """Encode (n,) documents.

        Returns:
            The ids of all documents, one after the other without end tokens, of the tokenizer's
                `id_type`; the number of ids of each document (n,), int64.
        """


class Plain:
    """An encoder that calls tiktoken for each document."""

    name = "tiktoken"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """Encode documents, as in `Encoder`."""
        dtype = self.tokenizer.id_type
        ids = [self.tokenizer.encode_to_numpy(text.as_py()).astype(dtype) for text in texts]
        return np.concatenate([np.empty(0, dtype), *ids]), np.array(
            [len(document) for document in ids], dtype=np.int64
        )


def choose(tokenizer: Tokenizer, kind: str = "auto") -> type[Plain] | type[Words] | type[Gigatoken]:
    """Return the encoder that `kind` (`tokenize.encoder`) names, or the fastest one installed."""
    if kind == "tiktoken" or tokenizer.pattern not in CUT:
        return Plain
    if (
        kind == "auto"
        and tokenizer.pattern == GPT2_PATTERN
        and importlib.util.find_spec("gigatoken")
    ):
        return Gigatoken
    return Words


def make_encoder(tokenizer: Tokenizer, kind: str = "auto") -> Encoder:
    """Create the encoder that `choose` returns."""
    return choose(tokenizer, kind)(tokenizer)
