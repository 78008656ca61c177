"""The model shapes that the benches compare, and random tokens for them. Imports nothing heavy."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Shape:
    """A Llama-style model (tied embeddings, as nanoGPT's are) and one optimizer step on it."""

    name: str
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    block: int = 256
    micro: int = 8  # sequences per forward pass: Trainer's default
    accumulate: int = 4  # forward passes per optimizer step

    @property
    def batch_tokens(self) -> int:
        """Tokens of an optimizer step."""
        return self.micro * self.accumulate * self.block

    @property
    def head_dim(self) -> int:
        """Dimension of each attention head."""
        return self.hidden // self.heads

    def parameters(self) -> int:
        """Return the number of parameters of the Llama-style model."""
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + self.vocab * self.hidden + self.hidden

    def gpt_parameters(self) -> int:
        """Return those of nanoGPT's model of this width and depth: no biases, learned positions."""
        return (
            self.layers * (12 * self.hidden**2 + 2 * self.hidden)
            + (self.vocab + self.block + 1) * self.hidden
        )


SPEED = {
    "5M": Shape("5M", vocab=8192, hidden=256, intermediate=704, layers=4, heads=4),
    "25M": Shape("25M", vocab=8192, hidden=512, intermediate=1408, layers=6, heads=8, accumulate=2),
}
MEMORY = Shape("32k vocabulary", vocab=32768, hidden=256, intermediate=704, layers=4, heads=4)


def write_tokens(folder: Path, train: np.ndarray, val: np.ndarray, vocab: int) -> None:
    """Write the same ids in both projects' forms: shards with meta.json, and nanoGPT's .bin files with
    meta.pkl.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meta: dict[str, object] = {"dtype": "uint16", "vocab_size": vocab, "eos_id": 0}
    for split, ids in (("train", train), ("val", val)):
        ids = ids.astype(np.uint16)
        ids.tofile(folder / f"{split}.bin")
        np.save(folder / f"{split}-00000.npy", ids)
        shards = [{"file": f"{split}-00000.npy", "tokens": len(ids)}]
        meta[split] = {"tokens": len(ids), "documents": 1, "bytes": len(ids), "shards": shards}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    with open(folder / "meta.pkl", "wb") as file:
        pickle.dump({"vocab_size": vocab}, file)


def random_tokens(folder: Path, vocab: int, tokens: int = 2_000_000) -> None:
    """Random ids: what they say does not change how fast they are read."""
    ids = np.random.default_rng(0).integers(0, vocab, tokens)
    write_tokens(folder, ids, ids[:100_000], vocab)
