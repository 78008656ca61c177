"""Plain text: one document a file, or several with separators between them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

from llm.sources.readers.paths import MAX_RECORD, Row

END_OF_TEXT = "<|endoftext|>"
HEAD = 1 << 20  # the first separator must be within these characters
WHOLE = 1 << 16  # up to this length, a file without separators stays one document
PIECE = 1 << 14  # a longer one is cut at blank lines into documents of about this length
CHUNK = 1 << 20  # characters read at a time


def text(file: BinaryIO, title: str, notes: list[str]) -> Iterator[Row]:
    """Yield documents separated by <|endoftext|>, without blank lines around them.

    Line ends become "\\n". A file without a separator in its first MiB is one document up to 64 KiB.
    A longer one is cut at blank lines into documents of about 16 KiB, because a single document
    would leave nothing to validate on.
    """
    stream = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
    buffer, line, count = stream.read(HEAD), 1, 0
    cut = END_OF_TEXT not in buffer and len(buffer) > WHOLE
    too_long = (
        f"a document of more than {MAX_RECORD >> 20} MB; cut it with lines that hold {END_OF_TEXT}"
    )
    ended = skipping = False  # skipping: the rest of a document that is too long
    while not ended:
        more = stream.read(CHUNK)
        ended = not more
        *documents, buffer = (buffer + more).split(END_OF_TEXT)
        if skipping and documents:
            line += documents.pop(0).count("\n")
            skipping = False
        pieces = [
            piece for document in documents for piece in (_pieces(document) if cut else [document])
        ]
        if cut:  # without the last piece, which may end inside a separator
            *whole, buffer = _pieces(buffer)
            pieces += whole
        # White space after the last separator is not a document.
        if ended and buffer.strip() and not skipping:
            pieces.append(buffer)
        for piece in pieces:
            blank = len(piece) - len(piece.lstrip("\n"))
            if len(piece) > MAX_RECORD:
                yield Row(line + blank, None, too_long)
            else:
                yield Row(line + blank, {"text": piece.strip("\n")})
            line += piece.count("\n")
            count += 1
        if skipping or len(buffer) > MAX_RECORD:
            if not skipping:
                yield Row(line, None, too_long)
            rest = buffer[-len(END_OF_TEXT) + 1 :]  # may be the start of a separator
            line += buffer.count("\n") - rest.count("\n")
            buffer, skipping = rest, True
    if cut:
        notes.append(
            f"{title} has no {END_OF_TEXT}: cut at blank lines or line ends into {count} documents of about 16 kB"
        )


def _pieces(document: str) -> list[str]:
    """Cut at blank lines, else line ends, else spaces, else anywhere; nothing is lost."""
    pieces, start = [], 0
    while len(document) - start > 2 * PIECE:
        low, high = start + PIECE, start + 2 * PIECE
        at = next(
            (
                i + len(mark)
                for mark in ("\n\n", "\n", " ")
                if (i := document.find(mark, low, high)) >= 0
            ),
            high,
        )
        pieces.append(document[start:at])
        start = at
    return [*pieces, document[start:]]
