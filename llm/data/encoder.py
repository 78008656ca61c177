"""Text to token ids at the speed of the machine: tiktoken's ids, with each distinct word merged once.

A language has few words. A text is cut where its splitting pattern cuts whatever stands around (see `CUTS`), Arrow's
hash table finds the words met before, only the new ones go to tiktoken, and the ids are put together as arrays: no text
becomes a list of Python integers. What is remembered is bounded, and so is what is looked at at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm.data.tokenizer import GPT2_PATTERN, PATTERN, Tokenizer

WINDOW = 8 << 20  # bytes of text looked at at a time; what is made of them takes about 15 times that
KEPT_WORDS, KEPT_BYTES = 1 << 18, 32 << 20  # words that are remembered; when they are more, all are forgotten

# Kinds of ASCII characters, and before which kinds a word may end after each. Both patterns cut there: a run of
# letters, digits or signs ends at any other kind. Not so before a letter after a quote ('s may be a contraction),
# before a line end after a sign (PATTERN keeps them together), or after a blank (a space belongs to what follows it,
# and what becomes of a run of blanks depends on it). What the patterns look ahead for is a letter after a contraction,
# or no blank after a blank; no word ends there. Beyond ASCII any character may be a letter or a blank, so words end on
# neither side of one, except before a space where it is no blank.
LETTER, DIGIT, SIGN, QUOTE, SPACE, OTHER = 1, 2, 4, 8, 16, 32
CUTS = {
    LETTER: DIGIT | SIGN | QUOTE | SPACE | OTHER,
    DIGIT: LETTER | SIGN | QUOTE | SPACE | OTHER,
    SIGN: LETTER | DIGIT | SPACE,
    QUOTE: DIGIT | SPACE,
}
CUT = (PATTERN, GPT2_PATTERN)  # the patterns that this holds for
BLANKS = "\x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"  # beyond ASCII


def _kind(byte: int) -> int:
    char = chr(byte)
    if byte >= 128:
        return 0
    if char.isalpha():
        return LETTER
    if char.isdigit():
        return DIGIT
    if char in "' ":
        return QUOTE if char == "'" else SPACE
    return SIGN if 32 < byte < 127 else OTHER


KIND = bytes(_kind(byte) for byte in range(256))
ENDS_BEFORE = bytes(CUTS.get(kind, 0) for kind in KIND)
BLANK_CODES = [int.from_bytes(blank.encode(), "big") for blank in BLANKS]


def cuts(data: bytes) -> np.ndarray:
    """Whether a word may begin at each byte of a UTF-8 text, its first byte aside; bool (len(data),)."""
    found = np.zeros(len(data), dtype=bool)
    before, kind = (np.frombuffer(data.translate(table), dtype=np.uint8) for table in (ENDS_BEFORE, KIND))
    np.not_equal(before[:-1] & kind[1:], 0, out=found[1:])
    if not data.isascii():
        raw = np.frombuffer(data, dtype=np.uint8)
        places = np.flatnonzero((raw[:-1] >= 128) & (raw[1:] == 32)) + 1
        found[places] = ~_after_blank(raw, places)
    return found


def _after_blank(raw: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Whether the character that ends before each of `places`, one beyond ASCII, is a blank."""
    one, two, three = (raw[np.maximum(places - back, 0)].astype(np.uint32) for back in (1, 2, 3))
    pair = two << 8 | one
    return np.isin(pair, BLANK_CODES) | np.isin(three << 16 | pair, BLANK_CODES)


class Plain:
    """tiktoken's own call for each document."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.dtype = tokenizer, id_type(tokenizer)

    def encode(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """As `Words.encode`."""
        ids = [self.tokenizer.encode_to_numpy(text.as_py()).astype(self.dtype) for text in texts]
        return np.concatenate([np.empty(0, self.dtype), *ids]), np.array([len(each) for each in ids], dtype=np.int64)


class Words:
    """Each distinct word once; special strings that stand in a text are plain text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """`tokenizer`: with a pattern of `CUT`."""
        self.tokenizer, self.dtype = tokenizer, id_type(tokenizer)
        self.lengths = np.zeros(len(tokenizer.ranks), dtype=np.int64)  # bytes of each token
        for token, number in tokenizer.ranks.items():
            self.lengths[number] = len(token)
        self.words = pa.array([], pa.string())  # met before
        self.ids = _lists(np.empty(0, dtype=self.dtype), np.zeros(1, dtype=np.int64))  # of each of them

    def encode(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of (n,) documents, one after the other without end tokens, and how many each has.

        Returns:
            ids, of `dtype`; counts, int64 (n,).
        """
        data, offsets = content(texts)
        counts = np.zeros(len(texts), dtype=np.int64)
        parts = [np.empty(0, dtype=self.dtype)]
        for first, bounds in self._windows(data, offsets):
            ids, found = self._encode(bytes(data[bounds[0] : bounds[-1]]), bounds - bounds[0])
            parts.append(ids)
            counts[first : first + len(found)] += found
        return np.concatenate(parts), counts

    def _windows(self, data: memoryview, offsets: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Whole documents up to WINDOW bytes, or a part of one: number of the first, and where each begins and ends."""
        first, n = 0, len(offsets) - 1
        while first < n:
            last = int(np.searchsorted(offsets, offsets[first] + WINDOW, side="right")) - 1
            if last > first:
                yield first, offsets[first : last + 1]
                first = last
                continue
            begin, end = int(offsets[first]), int(offsets[first + 1])
            while begin < end:
                cut = self._cut(data, begin, end)
                yield first, np.array([begin, cut])
                begin = cut
            first += 1

    def _cut(self, data: memoryview, begin: int, end: int) -> int:
        """Where to cut a long document: the last possible place within WINDOW bytes, or else the next one."""
        at = begin
        while at + WINDOW < end:
            found = np.flatnonzero(cuts(bytes(data[at : at + WINDOW])))
            if len(found):
                return at + int(found[-1])
            at += WINDOW - 8  # a cut is seen only with the character before it
        return end

    def _encode(self, data: bytes, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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

        A call takes longer than a word, so most are given to it as one text, each after a space of its own or behind a
        separator, so that a cut falls on either side of it.
        """
        data, offsets = content(words)
        raw = np.frombuffer(data[: offsets[-1]], dtype=np.uint8)
        first, last = (np.frombuffer(KIND, dtype=np.uint8)[raw[at]] for at in (offsets[:-1], offsets[1:] - 1))
        fits = (first != 0) & np.isin(last, (LETTER, DIGIT, SIGN, QUOTE))
        separator = np.select([first == SPACE, np.isin(first, (LETTER, DIGIT))], [0, 1], 2)[fits]
        together, alone = words.filter(pa.array(fits)), words.filter(pa.array(~fits))
        text, ends = content(pc.binary_join_element_wise(pa.array(["", " (", " x"]).take(separator), together, ""))
        ids = self.tokenizer.encode_to_numpy(str(text, "utf-8"))
        reached = np.concatenate(([0], np.cumsum(self.lengths[ids])))  # bytes before each token
        left = np.searchsorted(reached, ends[1:] - np.diff(offsets)[fits])
        sizes = np.searchsorted(reached, ends[1:]) - left
        places = np.concatenate(([0], np.cumsum(sizes)))
        chosen = ids[np.repeat(left - places[:-1], sizes) + np.arange(places[-1])].astype(self.dtype)
        others = pa.array([self.tokenizer.encode(word) for word in alone.to_pylist()], self.ids.type)
        return pa.concat_arrays([together, alone]), pa.concat_arrays([_lists(chosen, places), others])


def make_encoder(tokenizer: Tokenizer, kind: str = "auto") -> Plain | Words:
    """The fastest encoder for a tokenizer, or with "tiktoken" the plain one."""
    return Words(tokenizer) if kind == "auto" and tokenizer.pattern in CUT else Plain(tokenizer)


def id_type(tokenizer: Tokenizer) -> np.dtype:
    """Of the ids in shards: uint16 where it holds the vocabulary, else uint32."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)


def _lists(values: np.ndarray, offsets: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))


def content(texts: pa.StringArray) -> tuple[memoryview, np.ndarray]:
    """The bytes of all strings, and where each begins and the last ends; int64 (n + 1,)."""
    if texts.null_count:
        raise ValueError("texts must not be null")
    wide = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    _, places, data = texts.buffers()
    if not len(texts) or data is None:
        return memoryview(b""), np.zeros(len(texts) + 1, dtype=np.int64)
    offsets = np.frombuffer(places, dtype=wide)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    return memoryview(data), offsets
