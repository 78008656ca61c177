"""Stand-ins with the interfaces of `llm.tokenizer.bpe` and `llm.data.shards`, and a likelihood
computed plainly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from llm.data.shards import TokenStream
from llm.data.val_sample import ValSample
from llm.model.transformer import Transformer


class Bytes:
    """Token ids are UTF-8 bytes; 256 ends a text, 257 and 258 stand around a prompt."""

    vocab_size, eos_id = 300, 256
    prefix: tuple[int, ...] = ()
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def response_ids(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: list[int]) -> bytes:
        return bytes(i for i in ids if i < 256)

    def token_bytes(self) -> dict[int, bytes]:
        return {i: bytes([i]) for i in range(256)}

    def chat_ids(self, prompt: str) -> list[int]:
        return [*self.prefix, 257, *self.encode(prompt), 258]


class Stream(TokenStream):
    """Documents as tokens in memory, each followed by the end token."""

    eos_id, vocab_size, rows_ahead, dtype = Bytes.eos_id, Bytes.vocab_size, 0, np.dtype(np.uint16)

    def __init__(self, texts: list[str], tokenizer: Any = None) -> None:
        tokenizer = tokenizer or Bytes()
        self.eos_id, self.bytes, self.documents = (
            tokenizer.eos_id,
            sum(len(t.encode()) for t in texts),
            len(texts),
        )
        self.shards = [
            np.array(
                [i for t in texts for i in [*tokenizer.encode(t), self.eos_id]], dtype=np.uint16
            )
        ]
        self.ends = np.array([len(self.shards[0])])


def held_out_text(texts: list[str], limit: int | None = None, tokenizer: Any = None) -> ValSample:
    """What a model is scored on of these documents."""
    return ValSample(Stream(texts, tokenizer), tokenizer or Bytes(), limit)


@torch.no_grad()
def log_likelihood(model: Transformer, prompt: list[int], continuation: list[int]) -> float:
    """Log-probability (nats) of a continuation after its prompt, computed plainly."""
    logits = model(torch.tensor([prompt + continuation])).double()[0].log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(continuation))
