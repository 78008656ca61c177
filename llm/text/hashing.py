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
