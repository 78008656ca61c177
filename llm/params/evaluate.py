"""`evaluate`: the examples that are scored, and the decoding of answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from llm.params.section import Positive, Section


class Decoding(Section):
    """The choice of tokens, by transformers' names; temperature 0 takes the likeliest."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_k: Positive | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    num_beams: Positive = 1
    length_penalty: float = 1.0
    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    prompt_lookup_num_tokens: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_search(self) -> Decoding:
        if self.num_beams > 1 and (self.temperature or self.prompt_lookup_num_tokens):
            raise ValueError(
                "num_beams above 1 goes with temperature 0 and prompt_lookup_num_tokens 0 only"
            )
        if not self.temperature and (self.top_k or self.top_p or self.min_p):
            raise ValueError(
                "top_k, top_p and min_p choose among tokens that are drawn: give a temperature above 0"
            )
        return self

    def describe(self) -> str:
        """Return a short description for signatures, without what does not change results."""
        if self.num_beams > 1:
            how = f"beam search, {self.num_beams} beams, length penalty {self.length_penalty:g}"
        elif self.temperature:
            filters = [
                f"{name} {value:g}"
                for name in ("top_k", "top_p", "min_p")
                if (value := getattr(self, name))
            ]
            how = ", ".join([f"sampled at temperature {self.temperature:g}", *filters])
        else:
            how = "greedy"
        if self.repetition_penalty != 1:
            how += f", repetition penalty {self.repetition_penalty:g}"
        return how + (
            f", stops at {' or '.join(map(repr, self.stop_strings))}" if self.stop_strings else ""
        )


class Evaluate(Section):
    examples: Positive | None
    shots: Annotated[int, Field(ge=0)] = 0
    max_new_tokens: dict[str, Positive]
    decoding: Decoding = Decoding()
    variants: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], Decoding] = {}
    variant_examples: Positive | None = 60
    perplexity_tokens: Annotated[int, Field(ge=2)] | None  # at least 2: nothing predicts the first
    bootstrap: Annotated[int, Field(ge=100)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
