"""Decoding of answers that are spans of a text, as in extractive question answering.

The rule is about text, not about ids, because a span is encoded otherwise in the middle of a text
than alone. The bytes of the answer so far must be the beginning of a span that begins where a word
begins; the answer may end only where a word ends (`llm.text.sentences.word_borders`). A token may
end inside a character or cover several words. Tokens of a byte-level tokenizer include every single
byte, so that each answer can be completed.

The state is the set of positions in the text at which the answer so far may have arrived: at first
all beginnings of words, and after a few tokens one or two places.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from llm.text.sentences import word_borders
from llm.tokenizer.bpe import valid_unicode

SEPARATOR = b"\xff"  # no UTF-8 text holds this byte


class Vocabulary(Protocol):
    """The part of `llm.tokenizer.bpe.Tokenizer` that this module needs."""

    def response_ids(self, text: str) -> list[int]:
        """Ids of an answer."""

    def token_bytes(self) -> dict[int, bytes]:
        """Bytes of each token that is no special token."""


class Spans:
    """The tokens of a tokenizer by their bytes; makes the `Span` of a text."""

    def __init__(self, tokenizer: Vocabulary) -> None:
        self.pieces = {
            token: piece
            for token, piece in tokenizer.token_bytes().items()
            if piece and SEPARATOR not in piece
        }
        # The tokens that have these bytes; none if the bytes only begin a token.
        self.tokens: dict[bytes, list[int]] = {}
        for token, piece in self.pieces.items():
            for end in range(1, len(piece)):
                self.tokens.setdefault(piece[:end], [])
            self.tokens.setdefault(piece, []).append(token)
        # This pipeline's chat template has a blank before an answer, and SentencePiece puts one in
        # front of every text.
        self.blank = self.pieces.get(tokenizer.response_ids("a")[0], b"").startswith(b" ")

    def of(
        self,
        text: str,
        others: Iterable[str] = (),
        stop_strings: Iterable[str] = (),
        blank: bool = False,
    ) -> Span | None:
        """Return the beginning of an answer that must be a span of a text.

        Args:
            text: the text.
            others: further answers that are allowed, as a whole.
            stop_strings: strings that end an answer; one may follow where a word ends.
            blank: one blank is allowed in front of the answer, as after a prompt that ends in a word.

        Returns:
            None if there is no span: the text has no word, or none that the tokenizer can write.
        """
        text = valid_unicode(text.strip())
        at = [0, *itertools.accumulate(len(char.encode()) for char in text)]
        first, last = word_borders(text)
        starts, ends = [at[i] for i in first], {at[i] for i in last}
        content, stops = text.encode(), []
        for other in others:
            starts.append(len(content) + 1)
            content += SEPARATOR + other.encode()
            ends.add(len(content))
        for string in stop_strings:
            stops.append(len(content) + 1)
            content += SEPARATOR + string.encode()
        span = Span(
            self, content, frozenset(ends), tuple(stops), tuple(starts), blank or self.blank
        )
        writable = any(True for start in starts for _ in self.at(content, start))
        return span if writable else None

    def at(self, content: bytes, position: int) -> Iterator[int]:
        """Yield the tokens whose bytes `content` has at a position."""
        for end in range(position + 1, len(content) + 1):
            tokens = self.tokens.get(content[position:end])
            if tokens is None:
                return
            yield from tokens


@dataclass(frozen=True)
class Span:
    """An answer in progress.

    Attributes:
        spans: the tokens.
        content: the text, the other answers and the stop strings as UTF-8, separated.
        ends: positions in `content` at which an answer may end.
        stops: positions in `content` at which a stop string begins.
        positions: where the answer so far may have arrived; before the first token, where it may begin.
        blank: whether the next token may have a blank in front.
        begun: whether the answer has text.
    """

    spans: Spans
    content: bytes
    ends: frozenset[int]
    stops: tuple[int, ...]
    positions: tuple[int, ...]
    blank: bool
    begun: bool = False

    @property
    def may_end(self) -> bool:
        """Return whether the answer so far is a span."""
        return self.begun and not self.ends.isdisjoint(self.positions)

    def allowed(self, stop_ids: Iterable[int]) -> list[int]:
        """Return the tokens that may follow, of them `stop_ids` where the answer may end.

        A tokenizer without all bytes may lack the next character; then the answer must end.
        """
        tokens = self.next_tokens()
        return [*tokens, *stop_ids] if self.may_end or not tokens else [*tokens]

    def next_tokens(self) -> set[int]:
        """Return the tokens that continue the answer."""
        longer = (t for p in self._next_positions() for t in self.spans.at(self.content, p))
        if not self.blank:
            return set(longer)
        blanks = (t for p in self.positions for t in self.spans.at(b" " + self.content[p:], 0))
        return {*longer, *blanks}

    def after(self, token: int) -> Span:
        """Return the answer with one more token; without positions if that is no span."""
        piece = self.spans.pieces.get(token, SEPARATOR)
        if self.blank and piece.startswith(b" "):
            piece = piece[1:]
        positions = tuple(
            p + len(piece) for p in self._next_positions() if self.content.startswith(piece, p)
        )
        return replace(self, positions=positions, blank=False, begun=self.begun or len(piece) > 0)

    def whole(self, ids: Sequence[int]) -> list[int]:
        """Return the ids of an answer up to its last word that is complete; all if none is."""
        complete = [
            n
            for n, span in enumerate(itertools.accumulate(ids, Span.after, initial=self))
            if span.may_end
        ]
        return list(ids[: complete[-1]] if complete else ids)

    def _next_positions(self) -> tuple[int, ...]:
        return self.positions + self.stops if self.may_end else self.positions
