"""An encoder of GPT-2's ids with the library gigatoken, an optional dependency.

`pip install -c constraints.txt -e '.[fast]'` installs it. It supports GPT-2's pattern but not this
pipeline's. Release 0.10 caches every word without a bound, so the encoder is created again when the
process has grown by more than CACHE_BYTES.
"""

from __future__ import annotations

import tempfile
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from llm.runtime.io import write_bytes
from llm.tokenizer.bpe import Tokenizer
from llm.tokenizer.split_points import content, windows
from llm.tokenizer.word_cache import Words

CACHE_BYTES = 256 << 20  # growth of the process at which the cache is emptied
LOOK_EVERY = 2 << 20  # bytes of text between two measurements of the growth
# Bytes. `Words` encodes texts that may have a run of blanks of four times this length, because
# GPT2_PATTERN splits such runs.
RUN = 1 << 14
# 1 for bytes that are not part of a blank in UTF-8.
SOLID = bytes(
    byte not in b"\t\n\v\f\r \x85\xa0\xc2\xe1\x9a\xe2\x81\x9f\xe3" and not 128 <= byte < 176
    for byte in range(256)
)


class Gigatoken:
    """An encoder for `Tokenizer.gpt2()`."""

    name = "gigatoken"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._begin()

    @cached_property
    def words(self) -> Words:
        """Return the encoder for texts on which gigatoken differs from tiktoken."""
        return Words(self.tokenizer)

    def _begin(self) -> None:
        import gigatoken

        self.fast: Any = None
        with tempfile.TemporaryDirectory() as folder:  # gigatoken reads only files
            path = Path(folder) / "ranks.tiktoken"
            write_bytes(path, self.tokenizer.ranks_file())
            self.fast = gigatoken.Tokenizer.from_tiktoken(
                path, pretokenizer="gpt2", special_tokens={}
            )
        self.grown = psutil.Process().memory_info().rss + CACHE_BYTES
        self.since = 0  # bytes of text since the last measurement

    def encode(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """Encode documents, as in `llm.tokenizer.encoders.Encoder`."""
        data, offsets = content(texts)
        counts = np.zeros(len(texts), dtype=np.int64)
        parts = [np.empty(0, dtype=self.tokenizer.id_type)]
        for first, bounds in windows(data, offsets):
            window, starts = bytes(data[bounds[0] : bounds[-1]]), (bounds - bounds[0]).tolist()
            if _long_blank(window):
                ids, lengths = self.words.encode_window(window, np.array(starts))
            else:
                documents = [self._document(window[a:b]) for a, b in pairwise(starts)]
                ids = np.concatenate(documents).astype(self.tokenizer.id_type)
                lengths = np.array([len(document) for document in documents])
            parts.append(ids)
            counts[first : first + len(lengths)] += lengths
        return np.concatenate(parts), counts

    def _document(self, text: bytes) -> np.ndarray:
        self.since += len(text)
        if self.since > LOOK_EVERY:
            self.since = 0
            if psutil.Process().memory_info().rss > self.grown:
                self._begin()
        return self.fast.encode(text)


def _long_blank(text: bytes) -> bool:
    """Tell whether a run of blanks may be longer than 3 × RUN bytes."""
    if len(text) < 3 * RUN:
        return False
    solid = np.frombuffer(text.translate(SOLID), dtype=bool)
    return not solid[: len(solid) // RUN * RUN].reshape(-1, RUN).any(axis=1).all()
