"""Plain text: a file is one document, or several with separators between them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

from llm.sources.readers.paths import MAX_RECORD, Row

END_OF_TEXT = "<|endoftext|>"
HEAD = 1 << 20  # characters in which a plain-text file must show its first separator
WHOLE = 1 << 16  # characters to which a text file without separators stays one document
PIECE = 1 << 14  # characters of the documents that a longer one is cut into, at blank lines
CHUNK = 1 << 20  # characters read at a time


def text(file: BinaryIO, shown: str, notes: list[str]) -> Iterator[Row]:
    """Documents separated by <|endoftext|>; line ends become "\\n", a document loses blank lines
    around it.

    A file without a separator in its first MiB is one document, or, beyond 64 KiB, is cut at blank
    lines into
    documents of about 16 KiB: a single document would leave nothing to validate on.
    """
    stream = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
    buffer, line, count = stream.read(HEAD), 1, 0
    cut = END_OF_TEXT not in buffer and len(buffer) > WHOLE
    too_long = (
        f"a document of more than {MAX_RECORD >> 20} MB; cut it with lines that hold {END_OF_TEXT}"
    )
    ended = skipping = False  # skipping: what is left of a document that is too long
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
        if cut:  # all but the last piece, in which a separator may have begun
            *whole, buffer = _pieces(buffer)
            pieces += whole
        if (
            ended and buffer.strip() and not skipping
        ):  # blank after the last separator is no document
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
            rest = buffer[-len(END_OF_TEXT) + 1 :]  # in which a separator may have begun
            line += buffer.count("\n") - rest.count("\n")
            buffer, skipping = rest, True
    if cut:
        notes.append(
            f"{shown} has no {END_OF_TEXT}: cut at blank lines or line ends into {count} documents of about 16 kB"
        )


def _pieces(document: str) -> list[str]:
    """Cut at a blank line, else a line end, else a space, else anywhere; nothing is lost."""
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
