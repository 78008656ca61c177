"""Sources of the validation documents, if the corpus is a mixture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm.data.shards import TokenStream
from llm.errors import UserError
from llm.runtime.io import read_json, sha256

if TYPE_CHECKING:
    from llm.corpus.statistics import Counts

# file beside the shards: (documents,) uint16, index of each document's source in meta.json
VALIDATION = "val_sources.npy"


def mixture(manifest: dict[str, Any]) -> dict[str, float]:
    """Return the weight of each source of a mixture; empty if the corpus is none.

    Args:
        manifest: the manifest of data/raw/pretrain.
    """
    return {name: source["weight"] for name, source in manifest.get("sources", {}).items()}


def save_validation(directory: Path, counts: Counts) -> dict[str, Any]:
    """Write val_sources.npy of a mixture; return its entries in meta.json."""
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
    """Read the sources of the validation documents; all are empty if the corpus is no mixture.

    Args:
        directory: data/tokens.
        stream: its validation split.

    Returns:
        Names of the sources, index of each document's source (documents,), bytes of each source.

    Raises:
        UserError: the file does not match the shards.
    """
    meta = read_json(directory / "meta.json")
    if "sources" not in meta:
        return [], np.zeros(0, dtype=np.uint16), []
    path = directory / meta["val_sources"]["file"]
    try:
        sources = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} cannot be read ({error}). Run `dvc repro -sf tokenize` to write it again."
        ) from None
    if len(sources) != stream.documents:
        raise UserError(
            f"{path} has {len(sources):,} documents, but the shards have {stream.documents:,}. "
            "Run `dvc repro -sf tokenize` to write it again."
        )
    return meta["sources"], sources, meta["val_sources"]["bytes"]
