"""Which source of a mixture each validation document came from.

A corpus that is no mixture has nothing of this.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm.data.shards import TokenStream
from llm.errors import UserError
from llm.runtime.io import read_json, sha256

if TYPE_CHECKING:
    from llm.corpus.statistics import Counts

# beside the shards: (documents,) uint16, the place of each one's source in meta.json
VALIDATION = "val_sources.npy"


def mixture(manifest: dict[str, Any]) -> dict[str, float]:
    """Weight of each source of a mixture; empty where data/raw/pretrain is none.

    manifest: of data/raw/pretrain.
    """
    return {name: about["weight"] for name, about in manifest.get("sources", {}).items()}


def save_validation(directory: Path, counts: Counts) -> dict[str, Any]:
    """Write val_sources.npy of a mixture; returns what meta.json says of it."""
    if not counts.mixture:
        return {}
    np.save(directory / VALIDATION, np.array(counts.validation, dtype=np.uint16))
    return {
        "sources": list(counts.mixture),
        "val_sources": {
            "file": VALIDATION,
            "sha256": sha256(directory / VALIDATION),
            "bytes": [counts.sources.get(name, {}).get("val_bytes", 0) for name in counts.mixture],
        },
    }


def validation_sources(
    directory: Path, stream: TokenStream
) -> tuple[list[str], np.ndarray, list[int]]:
    """Names of a mixture's sources, the place of each validation document's source, and the bytes
    of each.

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
        raise UserError(
            f"{path} cannot be read ({error}). Run `dvc repro -sf tokenize` to write it again."
        ) from None
    if len(places) != stream.documents:
        raise UserError(
            f"{path} has {len(places):,} documents, but the shards have {stream.documents:,}. "
            "Run `dvc repro -sf tokenize` to write it again."
        )
    return meta["sources"], places, meta["val_sources"]["bytes"]
