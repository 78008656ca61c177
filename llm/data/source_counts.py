"""Which source of a mixture each document came from: tokens of each, and whose the validation documents are.

A corpus that is no mixture has none of this.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llm.data.shards import TokenStream
from llm.errors import UserError
from llm.io import read_json, sha256

VALIDATION = "val_sources.npy"  # beside the shards: (documents,) uint16, the place of each one's source in meta.json
SPLITS = ("train", "val")


class SourceCounts:
    """Documents, bytes and tokens by source and split, of documents that pass in order."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        """manifest: of data/raw/pretrain."""
        self.weights = {name: about["weight"] for name, about in manifest.get("sources", {}).items()}
        self.names = list(self.weights)
        self.counts = {
            split: {key: np.zeros(len(self.names), np.int64) for key in ("documents", "bytes", "tokens")}
            for split in SPLITS
        }
        self.validation: list[int] = []
        self._waiting: deque[tuple[int, int]] = deque()  # source and bytes of the documents that were given out

    def texts(self, records: Iterable[dict[str, Any]]) -> Iterator[str]:
        """The records' texts; their sources are noted until `add` is told what became of them."""
        for record in records:
            if self.names:
                place = self.names.index(record["source"])
                self._waiting.append((place, len(record["text"].encode("utf-8", "replace"))))
            yield record["text"]

    def add(self, batch: Iterable[tuple[str, list[int]]]) -> None:
        """Split and ids of the next documents."""
        for split, ids in batch if self.names else ():
            place, size = self._waiting.popleft()
            for key, number in (("documents", 1), ("bytes", size), ("tokens", len(ids))):
                self.counts[split][key][place] += number
            if split == "val":
                self.validation.append(place)

    def save(self, directory: Path) -> dict[str, Any]:
        """Write val_sources.npy; returns what meta.json says of it."""
        if not self.names:
            return {}
        np.save(directory / VALIDATION, np.array(self.validation, dtype=np.uint16))
        return {
            "sources": self.names,
            "val_sources": {
                "file": VALIDATION,
                "sha256": sha256(directory / VALIDATION),
                "bytes": self.counts["val"]["bytes"].tolist(),
            },
        }

    def metrics(self) -> dict[str, Any]:
        """`sources` of metrics/tokenize.json."""
        if not self.names:
            return {}
        total = max(1, int(self.counts["train"]["tokens"].sum()))
        return {
            "sources": {
                name: {
                    "weight": self.weights[name],
                    **{
                        f"{split}_{key}": int(values[place])
                        for key in ("tokens", "documents", "bytes")
                        for split in SPLITS
                        for values in [self.counts[split][key]]
                    },
                    "share_of_train_tokens": int(self.counts["train"]["tokens"][place]) / total,
                }
                for place, name in enumerate(self.names)
            }
        }


def validation_sources(directory: Path, stream: TokenStream) -> tuple[list[str], np.ndarray, list[int]]:
    """Names of a mixture's sources, the place of each validation document's source, and the bytes of each.

    Returns empty lists where the corpus is no mixture.

    Args:
        directory: data/tokens.
        stream: its validation split.

    Raises:
        UserError: the file does not fit the shards.
    """
    meta = read_json(directory / "meta.json")
    if "sources" not in meta:
        return [], np.zeros(0, dtype=np.uint16), []
    path = directory / meta["val_sources"]["file"]
    try:
        places = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}). Run `dvc repro -f tokenize` to write it again.") from None
    if len(places) != stream.documents:
        raise UserError(
            f"{path} has {len(places):,} documents, but the shards have {stream.documents:,}. "
            "Run `dvc repro -f tokenize` to write it again."
        )
    return meta["sources"], places, meta["val_sources"]["bytes"]
