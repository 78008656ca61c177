"""What is asked of the decoder, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from llm.params import Decoding

GREEDY = Decoding()
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Request:
    """A prompt's token ids, not empty, and how to go on from it; `seed` decides the draws.

    decode: text of the answer's ids, where it is another function than that of the whole batch.
    """

    prompt: list[int]
    max_new_tokens: int
    decoding: Decoding = GREEDY
    seed: int = 0
    decode: Decode | None = None


@dataclass(frozen=True)
class Completion:
    """An answer's token ids, without what stopped it, and their text where a tokenizer was given.

    reason: `stop` (a stop token or string), `length` (max_new_tokens), `context` (the model's
        context is full), `not_finite` (the logits were NaN or infinite; the tokens before are
        kept).
    """

    ids: list[int]
    reason: Literal["stop", "length", "context", "not_finite"]
    text: str | None = None


def stopped(
    ids: list[int], stop_ids: frozenset[int], strings: Sequence[str], decode: Decode | None
) -> Completion | None:
    """The completion where a stop token or string stands in `ids`; None where the answer goes on.

    The text ends before the stop string, the ids with the last token that is needed for it.
    """
    end = next((i for i, token in enumerate(ids) if token in stop_ids), None)
    kept = ids if end is None else ids[:end]
    if strings and decode:
        text = decode(kept)
        at = min((place for string in strings if (place := text.find(string)) >= 0), default=-1)
        if at >= 0:
            needed = next(
                (n for n in range(len(kept) + 1) if decode(kept[:n])[:at] == text[:at]), len(kept)
            )
            return Completion(kept[:needed], "stop", text[:at])
    if end is None:
        return None
    return Completion(kept, "stop", decode(kept) if decode else None)
