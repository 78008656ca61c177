"""Positions where a text can be cut without a change to its ids, and windows of bounded size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from llm.tokenizer.bpe import GPT2_PATTERN, PATTERN

WINDOW = (
    8 << 20
)  # bytes of text encoded at a time; the intermediate arrays take up to 15 times that

# Kinds of ASCII characters. CUTS lists for each kind the kinds that may begin a new word after it.
# Both patterns cut there: a run of letters, digits or signs ends at any other kind. There is no cut
# - between a sign or a quote and a letter (PATTERN may join them, 's may be a contraction), except
#   after two signs or a space and a sign: the two are in one match, which ends before the letter,
# - between a sign and a line end (PATTERN keeps them together),
# - after a blank (a space belongs to the next word, which also decides how a run of blanks is cut).
# The patterns look ahead only for no blank after a blank; there is no cut at this position. Any
# other character may be a letter or a blank, so there is no cut on either side of it, except before
# a space if the character is not a blank.
LETTER, DIGIT, SIGN, QUOTE, SPACE, OTHER = 1, 2, 4, 8, 16, 32
CUTS = {
    LETTER: DIGIT | SIGN | QUOTE | SPACE | OTHER,
    DIGIT: LETTER | SIGN | QUOTE | SPACE | OTHER,
    SIGN: DIGIT | SPACE,
    QUOTE: DIGIT | SPACE,
}
CUT = (PATTERN, GPT2_PATTERN)  # the patterns for which these rules are valid
# Blanks that are not ASCII.
BLANKS = (
    "\x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
)


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
    """Return where a UTF-8 text can be cut: True at each byte (len(data),) that begins a word.

    Whether there is a cut depends on the byte and the two before it. The first byte is always
    False.
    """
    starts = np.zeros(len(data), dtype=bool)
    before, kind = (
        np.frombuffer(data.translate(table), dtype=np.uint8) for table in (ENDS_BEFORE, KIND)
    )
    np.not_equal(before[:-1] & kind[1:], 0, out=starts[1:])
    sign = kind & (SIGN | QUOTE) > 0
    starts[2:] |= (sign | (kind == SPACE))[:-2] & sign[1:-1] & (kind == LETTER)[2:]
    if not data.isascii():
        raw = np.frombuffer(data, dtype=np.uint8)
        positions = np.flatnonzero((raw[:-1] >= 128) & (raw[1:] == 32)) + 1
        starts[positions] = ~_after_blank(raw, positions)
    return starts


def _after_blank(raw: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Tell for each position (n,) whether the non-ASCII character before it is a blank."""
    one, two, three = (raw[np.maximum(positions - back, 0)].astype(np.uint32) for back in (1, 2, 3))
    pair = two << 8 | one
    return np.isin(pair, BLANK_CODES) | np.isin(three << 16 | pair, BLANK_CODES)


def windows(data: memoryview, offsets: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Split documents into windows: full documents up to WINDOW bytes, or a part of a longer one.

    Args:
        data: the bytes of all documents.
        offsets: start of each document and the end of the last one (n + 1,).

    Yields:
        The number of the first document in the window; the bounds of its documents (m + 1,).
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
    """Return where to cut a long document: the last cut within WINDOW bytes, or else the next."""
    at = begin
    while at + WINDOW < end:
        positions = np.flatnonzero(cuts(bytes(data[at : at + WINDOW])))
        if len(positions):
            return at + int(positions[-1])
        at += WINDOW - 8  # overlap: a cut is found only together with the character before it
    return end


def content(texts: pa.StringArray) -> tuple[memoryview, np.ndarray]:
    """Return the bytes of all strings, and their starts and the last end (n + 1,), int64."""
    if texts.null_count:
        raise ValueError("texts must not be null")
    wide = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    _, starts, data = texts.buffers()
    if not len(texts) or data is None:
        return memoryview(b""), np.zeros(len(texts) + 1, dtype=np.int64)
    offsets = np.frombuffer(starts, dtype=wide)[
        texts.offset : texts.offset + len(texts) + 1
    ].astype(np.int64)
    return memoryview(data), offsets
