"""The text of an answer while it is generated."""

from __future__ import annotations

from collections.abc import Sequence

from llm.generation.request import Completion, Decode

# Replaces bytes that are not valid UTF-8; they may be the first bytes of an unfinished character.
BROKEN = "\ufffd"


class TextStream:
    """A stream of an answer's text in pieces, which together are the text of its completion.

    Text that may still change is delayed: a character with missing bytes, and the possible
    beginning of a stop string. There is one exception. If a run of byte tokens turns out to be
    invalid UTF-8, SentencePiece's decoder also replaces the complete characters in it, which were
    returned before.
    """

    def __init__(self, decode: Decode, stop_strings: Sequence[str] = ()) -> None:
        self.decode, self.stop_strings = decode, stop_strings
        self.sent = 0  # characters that were returned

    def more(self, ids: Sequence[int]) -> str:
        """Return the new text that is final, given the answer's ids so far; often it is empty."""
        text = self.decode(ids).rstrip(BROKEN)
        beginnings = (
            n for stop in self.stop_strings for n in range(1, len(stop)) if text.endswith(stop[:n])
        )
        return self._send(text[: len(text) - max(beginnings, default=0)])

    def rest(self, completion: Completion) -> str:
        """Return the remaining text after the answer has ended."""
        return self._send(
            self.decode(completion.ids) if completion.text is None else completion.text
        )

    def _send(self, text: str) -> str:
        piece = text[self.sent :]
        self.sent += len(piece)
        return piece
