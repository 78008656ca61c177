"""The requests and completions of decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from llm.generation.spans import Span
from llm.params import Decoding

GREEDY = Decoding()
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Request:
    """A prompt and the settings of its answer.

    Attributes:
        prompt: token ids, not empty.
        max_new_tokens: maximal number of tokens of the answer.
        decoding: how tokens are chosen.
        seed: seed of the random draws.
        decode: converts the answer's ids to text, if the batch's function does not fit.
        span: the answer must be a span of a text; None for any answer.
    """

    prompt: list[int]
    max_new_tokens: int
    decoding: Decoding = GREEDY
    seed: int = 0
    decode: Decode | None = None
    span: Span | None = None

    def complete_words(self, ids: list[int]) -> list[int]:
        """Return the ids of an answer that was cut; a span ends at a word."""
        return self.span.whole(ids) if self.span else ids


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        ids: token ids, without the stop token or string.
        reason: `stop` (a stop token or string), `length` (max_new_tokens), `context` (the model's
            context is full), `not_finite` (a logit was NaN or infinite; the tokens before it are
            kept).
        text: the text of the ids, if the request or its batch has a `decode`.
    """

    ids: list[int]
    reason: Literal["stop", "length", "context", "not_finite"]
    text: str | None = None


def stopped(
    ids: list[int], stop_ids: frozenset[int], strings: Sequence[str], decode: Decode | None
) -> Completion | None:
    """Return the completion if `ids` hold a stop token or string, else None.

    The text ends before the stop string; the ids end with the last token that the text needs.
    """
    end = next((i for i, token in enumerate(ids) if token in stop_ids), None)
    answer = ids if end is None else ids[:end]
    if strings and decode:
        text = decode(answer)
        at = min((start for string in strings if (start := text.find(string)) >= 0), default=-1)
        if at >= 0:
            needed = next(
                (n for n in range(len(answer) + 1) if decode(answer[:n])[:at] == text[:at]),
                len(answer),
            )
            return Completion(answer[:needed], "stop", text[:at])
    if end is None:
        return None
    return Completion(answer, "stop", decode(answer) if decode else None)
