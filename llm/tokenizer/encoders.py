"""Text to token ids at the speed of the machine; tiktoken is the reference that all must equal."""

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
    """What all encoders offer. Special strings that stand in a text are plain text."""

    name: str

    def encode(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of (n,) documents, one after the other without end tokens, and how many each has.

        Returns:
            ids, of the tokenizer's `id_type`; counts, int64 (n,).
        """


class Plain:
    """tiktoken's own call for each document."""

    name = "tiktoken"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """As in `Encoder`."""
        dtype = self.tokenizer.id_type
        ids = [self.tokenizer.encode_to_numpy(text.as_py()).astype(dtype) for text in texts]
        return np.concatenate([np.empty(0, dtype), *ids]), np.array(
            [len(each) for each in ids], dtype=np.int64
        )


def choose(tokenizer: Tokenizer, kind: str = "auto") -> type[Plain] | type[Words] | type[Gigatoken]:
    """The fastest encoder for a tokenizer on this machine, or the one that `kind` names
    (`tokenize.encoder`).
    """
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
    """An encoder as `choose` says."""
    return choose(tokenizer, kind)(tokenizer)
