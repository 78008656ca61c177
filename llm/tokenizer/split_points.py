"""Where a text may be cut without a change to its ids, and texts as bytes, cut into windows of
bounded size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from llm.tokenizer.bpe import GPT2_PATTERN, PATTERN

WINDOW = (
    8 << 20
)  # bytes of text looked at at a time; what is made of them takes up to 15 times that

# Kinds of ASCII characters, and before which kinds a word may end after each. Both patterns cut
# there: a run of letters, digits or signs ends at any other kind. Not so before a letter after a
# quote ('s may be a contraction),
# before a line end after a sign (PATTERN keeps them together), or after a blank (a space belongs to
# what follows it, and what becomes of a run of blanks depends on it). What the patterns look ahead
# for is a letter after a contraction, or no blank after a blank; no word ends there. Beyond ASCII
# any character may be a letter or a blank, so words end on neither side of one, except before a
# space where it is no blank.
LETTER, DIGIT, SIGN, QUOTE, SPACE, OTHER = 1, 2, 4, 8, 16, 32
CUTS = {
    LETTER: DIGIT | SIGN | QUOTE | SPACE | OTHER,
    DIGIT: LETTER | SIGN | QUOTE | SPACE | OTHER,
    SIGN: LETTER | DIGIT | SPACE,
    QUOTE: DIGIT | SPACE,
}
CUT = (PATTERN, GPT2_PATTERN)  # the patterns that this holds for
BLANKS = (
    "\x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
)  # beyond ASCII


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
    """Whether a word may begin at each byte of a UTF-8 text, its first byte aside; bool
    (len(data),).
    """
    found = np.zeros(len(data), dtype=bool)
    before, kind = (
        np.frombuffer(data.translate(table), dtype=np.uint8) for table in (ENDS_BEFORE, KIND)
    )
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


def windows(data: memoryview, offsets: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Whole documents up to WINDOW bytes, or a part of one: number of the first, and where each
    begins and ends.
    """
    first, n = 0, len(offsets) - 1
    while first < n:
        last = int(np.searchsorted(offsets, offsets[first] + WINDOW, side="right")) - 1
        if last > first:
            yield first, offsets[first : last + 1]
            first = last
            continue
        begin, end = int(offsets[first]), int(offsets[first + 1])
        while begin < end:
            cut = _cut(data, begin, end)
            yield first, np.array([begin, cut])
            begin = cut
        first += 1


def _cut(data: memoryview, begin: int, end: int) -> int:
    """Where to cut a long document: the last possible place within WINDOW bytes, or else the next
    one.
    """
    at = begin
    while at + WINDOW < end:
        found = np.flatnonzero(cuts(bytes(data[at : at + WINDOW])))
        if len(found):
            return at + int(found[-1])
        at += WINDOW - 8  # a cut is seen only with the character before it
    return end


def content(texts: pa.StringArray) -> tuple[memoryview, np.ndarray]:
    """The bytes of all strings, and where each begins and the last ends; int64 (n + 1,)."""
    if texts.null_count:
        raise ValueError("texts must not be null")
    wide = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    _, places, data = texts.buffers()
    if not len(texts) or data is None:
        return memoryview(b""), np.zeros(len(texts) + 1, dtype=np.int64)
    offsets = np.frombuffer(places, dtype=wide)[
        texts.offset : texts.offset + len(texts) + 1
    ].astype(np.int64)
    return memoryview(data), offsets
