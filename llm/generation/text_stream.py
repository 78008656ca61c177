"""The text of an answer while it is being written."""

from __future__ import annotations

from collections.abc import Sequence

from llm.generation.request import Completion, Decode

BROKEN = "\ufffd"  # what stands for bytes that are no UTF-8: perhaps the first ones of a character


class TextStream:
    """Gives an answer's text out piece by piece; the pieces together are the text of its
    completion.

    Held back until it is sure: a character of which bytes are missing, and what may be the
        beginning of a stop string.
    One thing is given out that the completion has otherwise: of a run of byte tokens that turns out
    to be no UTF-8, SentencePiece's decoder takes back the characters that were whole.
    """

    def __init__(self, decode: Decode, stop_strings: Sequence[str] = ()) -> None:
        self.decode, self.stop_strings = decode, stop_strings
        self.given = 0  # characters

    def more(self, ids: Sequence[int]) -> str:
        """What is new and sure, where the answer is `ids` so far; often nothing."""
        text = self.decode(ids).rstrip(BROKEN)
        beginnings = (
            n for stop in self.stop_strings for n in range(1, len(stop)) if text.endswith(stop[:n])
        )
        return self._give(text[: len(text) - max(beginnings, default=0)])

    def rest(self, completion: Completion) -> str:
        """What is left, where the answer has ended."""
        return self._give(
            self.decode(completion.ids) if completion.text is None else completion.text
        )

    def _give(self, text: str) -> str:
        piece = text[self.given :]
        self.given += len(piece)
        return piece
