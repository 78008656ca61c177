"""The hash of a document's text, and the train/validation split that follows from it."""

from __future__ import annotations

import hashlib


def text_hash(text: str | bytes | memoryview) -> int:
    """Hash a document's text, a string or its UTF-8, to 64 bits."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def is_validation(text: str | memoryview, val_fraction: float) -> bool:
    """Tell whether a document belongs to the validation split.

    The hash of its text alone decides, so adding documents never moves others between the splits.

    Args:
        text: a string or its UTF-8.
        val_fraction: share of documents in the validation split.
    """
    return text_hash(text) < val_fraction * 2**64


def is_held_out(group: str, text: str | memoryview, val_fraction: float) -> bool:
    """Tell whether a document of a group (a module, an article) belongs to the validation split.

    The hash of the group decides, so a group is never on two sides; without a group, that of the
    text does. Groups take the highest hashes: the embedded source tests its tasks with the modules
    of the lowest (`llm.sources.docs.split`).

    Args:
        group: name of the group; empty where the document has none.
        text: the document's text as it was downloaded, a string or its UTF-8.
        val_fraction: share of groups in the validation split.
    """
    if group:
        return text_hash(group) >= (1 - val_fraction) * 2**64
    return is_validation(text, val_fraction)
