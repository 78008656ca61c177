"""Prompt lookup: guesses of the next tokens, taken from an earlier occurrence of the same tokens.

The method is by Saxena 2023 (github.com/apoorvumang/prompt-lookup-decoding) and is
`prompt_lookup_num_tokens` in transformers. Answers copy from their prompts, and reading several
tokens in one step takes hardly longer than reading one. The model checks each guess and discards
all from the first wrong one on, so the answer does not change.
"""

from __future__ import annotations

from collections.abc import Sequence

# Numbers of tokens that must match, the largest first. A single token matches too often by chance:
# it saved 13 % of the steps on question answering, but made each step so much slower that nothing
# was gained.
NGRAMS = (3, 2)


class Lookup:
    """An index of the short runs of tokens in a sequence, with what followed each most recently."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens at the end."""
        for token in tokens:
            # Index the runs that end before this token. The run at the very end is left out, since
            # it would match itself.
            for n in NGRAMS:
                if len(self._tokens) >= n:
                    self._after[tuple(self._tokens[-n:])] = len(self._tokens)
            self._tokens.append(token)

    def guess(self, count: int) -> list[int]:
        """Return at most `count` tokens that may come next; none if no run matches."""
        for n in NGRAMS:
            start = self._after.get(tuple(self._tokens[-n:])) if len(self._tokens) >= n else None
            if start is not None:
                return self._tokens[start : start + count]
        return []
