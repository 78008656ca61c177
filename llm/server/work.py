"""Conversion of requests to prompts of ids, and of completions to OpenAI's JSON."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llm.errors import UserError
from llm.generation.loaded_models import Named
from llm.generation.request import Completion, Request
from llm.server import schema
from llm.server.errors import ApiError

FINISH = {"stop": "stop", "length": "length", "context": "length"}


@dataclass(frozen=True)
class Limits:
    """Of one request: tokens of prompt and answer together, tokens of the answer, choices in all."""

    context: int
    max_tokens: int
    choices: int


def requests(asked: schema.Sampling, named: Named, limits: Limits) -> list[Request]:
    """A request to the decoder for each choice: those of the first prompt first, as OpenAI numbers
    them.

    A choice has a seed of its own; without `seed` they are drawn, and a repetition gives other
    answers.

    Raises:
        ApiError: a prompt that is empty or too long, too many choices or tokens.
    """
    field = "prompt" if isinstance(asked, schema.Completion) else "messages"
    n = asked.n or 1
    prompts = _prompts(asked, named)
    if len(prompts) * n > limits.choices:
        raise ApiError(
            400,
            f"{len(prompts)} prompts with n = {n} are {len(prompts) * n} answers; this server takes at most "
            f"{limits.choices} in one request",
            field if n == 1 else "n",
            "too_many_choices",
        )
    longest = max(map(len, prompts))
    limit_name, most = "max_tokens", asked.max_tokens
    if isinstance(asked, schema.Chat) and asked.max_completion_tokens is not None:
        limit_name, most = "max_completion_tokens", asked.max_completion_tokens
    room = limits.context - longest
    if most is not None and most > limits.max_tokens:
        raise ApiError(
            400, f"{limit_name} is {most}; at most {limits.max_tokens}", limit_name, "invalid_value"
        )
    if most is None and isinstance(asked, schema.Completion):
        most = schema.COMPLETION_TOKENS
    if room < (most or 1):
        raise ApiError(
            400,
            f"this model's context holds {limits.context} tokens; your request has {longest} in its {field}"
            + (f" and {most} for the answer" if most else ", which leaves none for the answer")
            + f". Shorten the {field}{f', or lower {limit_name}' if most else ''}",
            field,
            "context_length_exceeded",
        )
    seed = secrets.randbits(63) if asked.seed is None else asked.seed % 2**64
    answer = most or min(room, limits.max_tokens)
    # Beyond 64 bits: no two choices share a seed, and the first has the one that was asked for.
    decode = (
        named.tokenizer.decode_after if isinstance(asked, schema.Completion) else lambda ids: None
    )
    return [
        Request(ids, answer, asked.decoding, seed + (i << 64), decode(ids))
        for ids in prompts
        for i in range(n)
    ]


def _prompts(asked: schema.Sampling, named: Named) -> list[list[int]]:
    """Ids of each prompt, none empty."""
    tokenizer = named.tokenizer
    if isinstance(asked, schema.Chat):
        try:
            return [tokenizer.conversation_ids([message.plain() for message in asked.messages])]
        except (
            UserError
        ) as error:  # the template's own rules, such as that user and assistant take turns
            raise ApiError(400, str(error), "messages", "invalid_value") from None
    assert isinstance(asked, schema.Completion)
    items: Any = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    if items and isinstance(items[0], int):
        items = [items]
    prompts = [tokenizer.plain_ids(item) if isinstance(item, str) else item for item in items]
    if not all(prompts) or not prompts:
        raise ApiError(400, "prompt is empty", "prompt", "invalid_value")
    vocab = named.model.config.vocab_size
    if wrong := next((i for ids in prompts for i in ids if not 0 <= i < vocab), None):
        raise ApiError(
            400, f"prompt: token {wrong} is none of this model's {vocab}", "prompt", "invalid_value"
        )
    return prompts


def finish_reason(completion: Completion) -> str:
    """OpenAI's name of why an answer ended. Raises ApiError 500 where the model gave no numbers."""
    if completion.reason == "not_finite":
        raise ApiError(
            500, "the model's output was not finite: its weights are damaged, or it needs float32"
        )
    return FINISH[completion.reason]


def usage(prompts: list[Request], n: int, answers: list[Completion]) -> dict[str, int]:
    """Tokens read and written; a prompt counts once, whatever `n`."""
    read = sum(len(request.prompt) for request in prompts[::n])
    written = sum(len(answer.ids) for answer in answers)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


@dataclass(frozen=True)
class Shape:
    """The JSON of one response, whole or in pieces."""

    chat: bool
    id: str
    created: int
    model: str

    def whole(self, answers: list[Completion], counts: dict[str, int]) -> dict[str, Any]:
        """All choices at once."""
        choices = [
            {
                "index": i,
                **self._content(answer.text or ""),
                "logprobs": None,
                "finish_reason": finish_reason(answer),
            }
            for i, answer in enumerate(answers)
        ]
        return self._head("chat.completion" if self.chat else "text_completion") | {
            "choices": choices,
            "usage": counts,
        }

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def opening(self, choices: int) -> Iterator[dict[str, Any]]:
        """The pieces before the first token: who speaks."""
        for index in range(choices if self.chat else 0):
            yield self.piece(index, {"role": "assistant", "content": ""}, None)

    def text(self, index: int, text: str, reason: str | None) -> Iterator[dict[str, Any]]:
        """The pieces for new text of a choice, and for its end."""
        if not self.chat:
            yield self.piece(index, text, reason)
            return
        if text:
            yield self.piece(index, {"content": text}, None)
        if reason:
            yield self.piece(index, {}, reason)

    def piece(self, index: int, content: Any, reason: str | None) -> dict[str, Any]:
        """One event of a stream."""
        choice = {
            "index": index,
            "delta" if self.chat else "text": content,
            "logprobs": None,
            "finish_reason": reason,
        }
        return self._head("chat.completion.chunk" if self.chat else "text_completion") | {
            "choices": [choice]
        }

    def counted(self, counts: dict[str, int]) -> dict[str, Any]:
        """The last event, where `stream_options.include_usage` asks for it."""
        return self._head("chat.completion.chunk" if self.chat else "text_completion") | {
            "choices": [],
            "usage": counts,
        }
