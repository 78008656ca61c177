"""Stand-ins with the interfaces of `llm.data.tokenizer` and `llm.data.shards`, and a likelihood computed plainly."""

from __future__ import annotations

import numpy as np
import torch

from llm.model.transformer import Transformer


class Bytes:
    """Token ids are UTF-8 bytes; 256 ends a text, 257 and 258 stand around a prompt."""

    vocab_size, eos_id = 300, 256
    prefix: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def chat_ids(self, prompt: str) -> list[int]:
        return [*self.prefix, 257, *self.encode(prompt), 258]


class Stream:
    """Documents as tokens in memory, each followed by the end token."""

    eos_id = Bytes.eos_id

    def __init__(self, texts: list[str]) -> None:
        self.bytes = sum(len(text.encode()) for text in texts)
        self.documents = len(texts)
        self._tokens = np.array([i for text in texts for i in [*text.encode(), self.eos_id]], dtype=np.uint16)

    def __len__(self) -> int:
        return len(self._tokens)

    def read(self, start: int, length: int) -> np.ndarray:
        return self._tokens[start : start + length]


@torch.no_grad()
def log_likelihood(model: Transformer, prompt: list[int], continuation: list[int]) -> float:
    """Log-probability (nats) of a continuation after its prompt, computed plainly."""
    logits = model(torch.tensor([prompt + continuation])).double()[0].log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(continuation))
