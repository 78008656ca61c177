"""tiktoken's ids at several times its speed: each distinct word is merged once.

A language has few words. A text is cut where its splitting pattern cuts whatever stands around
(`llm.tokenizer.split_points`), Arrow's hash table finds the words met before, only the new ones go
to tiktoken, and the ids are put together as arrays: no text becomes a list of Python integers. What
is remembered is bounded."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm.tokenizer.bpe import Tokenizer
from llm.tokenizer.split_points import (
    DIGIT,
    KIND,
    LETTER,
    QUOTE,
    SIGN,
    SPACE,
    content,
    cuts,
    windows,
)

KEPT_WORDS, KEPT_BYTES = (
    1 << 18,
    32 << 20,
)  # words that are remembered; when they are more, all are forgotten


class Words:
    """An encoder; special strings that stand in a text are plain text."""

    name = "words"

    def __init__(self, tokenizer: Tokenizer) -> None:
        """`tokenizer`: with a pattern of `llm.tokenizer.split_points.CUT`."""
        self.tokenizer = tokenizer
        self.lengths = np.zeros(len(tokenizer.ranks), dtype=np.int64)  # bytes of each token
        for token, number in tokenizer.ranks.items():
            self.lengths[number] = len(token)
        self.words = pa.array([], pa.string())  # met before
        self.ids = _lists(
            np.empty(0, dtype=tokenizer.id_type), np.zeros(1, dtype=np.int64)
        )  # of each of them

    def encode(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of (n,) documents, one after the other without end tokens, and how many each has.

        Returns:
            ids, of the tokenizer's `id_type`; counts, int64 (n,).
        """
        data, offsets = content(texts)
        counts = np.zeros(len(texts), dtype=np.int64)
        parts = [np.empty(0, dtype=self.tokenizer.id_type)]
        for first, bounds in windows(data, offsets):
            ids, found = self.encode_window(bytes(data[bounds[0] : bounds[-1]]), bounds - bounds[0])
            parts.append(ids)
            counts[first : first + len(found)] += found
        return np.concatenate(parts), counts

    def encode_window(self, data: bytes, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the documents data[bounds[i] : bounds[i + 1]], and the number of each."""
        starts = cuts(data)
        starts[bounds[:-1][bounds[:-1] < len(data)]] = True
        places = np.flatnonzero(starts)
        offsets = np.append(places, len(data)).astype(np.int32)
        words = pa.StringArray.from_buffers(len(places), pa.py_buffer(offsets), pa.py_buffer(data))
        numbers = self._numbers(words)
        found = self.ids.take(numbers)
        ends = found.offsets.to_numpy()  # of the first word, and behind each
        return found.flatten().to_numpy(), np.diff(ends[np.searchsorted(places, bounds)])

    def _numbers(self, words: pa.StringArray) -> pa.Int32Array:
        """The place of each word in `self.words`, to which those not met before are added."""
        if len(self.words) > KEPT_WORDS or self.words.nbytes > KEPT_BYTES:
            self.words, self.ids = self.words[:0], self.ids[:0]
        numbers = pc.index_in(words, value_set=self.words)
        if not numbers.null_count:
            return numbers
        unknown = numbers.is_null()
        missing = words.filter(unknown)
        new, ids = self._merged(missing.unique())
        places = pc.add(pc.index_in(missing, value_set=new), len(self.words))
        self.words = pa.concat_arrays([self.words, new])
        self.ids = pa.concat_arrays([self.ids, ids])
        return pc.replace_with_mask(numbers, unknown, places.cast(pa.int32()))

    def _merged(self, words: pa.StringArray) -> tuple[pa.StringArray, pa.ListArray]:
        """Words, none empty, in another order, and their ids by tiktoken.

        A call takes longer than a word, so most are given to it as one text, each after a space of
        its own or behind a separator, so that a cut falls on either side of it.
        """
        data, offsets = content(words)
        raw = np.frombuffer(data[: offsets[-1]], dtype=np.uint8)
        first, last = (
            np.frombuffer(KIND, dtype=np.uint8)[raw[at]] for at in (offsets[:-1], offsets[1:] - 1)
        )
        fits = (first != 0) & np.isin(last, (LETTER, DIGIT, SIGN, QUOTE))
        separator = np.select([first == SPACE, np.isin(first, (LETTER, DIGIT))], [0, 1], 2)[fits]
        together, alone = words.filter(pa.array(fits)), words.filter(pa.array(~fits))
        text, ends = content(
            pc.binary_join_element_wise(pa.array(["", " (", " x"]).take(separator), together, "")
        )
        ids = self.tokenizer.encode_to_numpy(str(text, "utf-8"))
        reached = np.concatenate(([0], np.cumsum(self.lengths[ids])))  # bytes before each token
        left = np.searchsorted(reached, ends[1:] - np.diff(offsets)[fits])
        sizes = np.searchsorted(reached, ends[1:]) - left
        places = np.concatenate(([0], np.cumsum(sizes)))
        chosen = ids[np.repeat(left - places[:-1], sizes) + np.arange(places[-1])].astype(
            self.tokenizer.id_type
        )
        others = pa.array(
            [self.tokenizer.encode(word) for word in alone.to_pylist()], self.ids.type
        )
        return pa.concat_arrays([together, alone]), pa.concat_arrays(
            [_lists(chosen, places), others]
        )


def _lists(values: np.ndarray, offsets: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))
