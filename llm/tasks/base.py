"""The base class of tasks, and the rendering of a record as a prompt and a response that fit.

The phrasing of an instruction is chosen by a hash of the example's id: it depends on nothing else,
so adding or removing examples never rewords another. Where an example is too long, one field (a
document, a context) is cut from its end; the question, the instruction and the response never are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Record = Mapping[str, Any]
WORD = 40  # most characters that a cut goes back to end at a word


class UnusableError(Exception):
    """An example that cannot be used; its message is the reason under which it is counted."""


class Encoder(Protocol):
    """The part of `llm.tokenizer.bpe.Tokenizer` that this module needs."""

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""

    def response_ids(self, text: str) -> list[int]:
        """Ids of an answer, without the end token."""

    def chat_ids(self, prompt: str) -> list[int]:
        """A prompt as a conversation's first turn, ready for the answer."""


class Task:
    """A kind of task: subclass it in a module of this folder, which is named as the kind.

    `COLUMNS`, `METRICS`, `CUT`, `RESPONSE_TOKENS`, `TEST_COLUMNS`, `TEMPLATES` and `target` are
    required; the rest has defaults. `labels` are the sorted names that `label` returned over the
    training examples. A subclass may also have `score(prediction, row) -> {name: value}`, metrics of
    its own whose mean over the examples is the score, and `baselines(row) -> {name: prediction}`;
    `row` is one of the test file.
    """

    COLUMNS: tuple[str, ...]  # columns of the raw records, beside id, group and split
    # scores in the report: names in `llm.evaluate.metrics`, or names that `score` returns
    METRICS: tuple[str, ...]
    CUT: str  # the field that is cut when an example is too long
    # True if only labels seen in training can be right: the likeliest of `choices` is the answer.
    CLOSED: bool = False
    # The test column of whose text every answer is a span. Evaluation decodes nothing else then.
    EXTRACTIVE: str | None = None
    # tokens left free for the response to a test prompt; they do not depend on the reference
    RESPONSE_TOKENS: int
    TEST_COLUMNS: dict[str, Any]  # name -> pyarrow type of the test file's own columns
    TEMPLATES: tuple[str, ...]  # phrasings, for `str.format`
    # The fields that each of `TEMPLATES` must name, because the answer depends on them; None: the
    # columns of the test file.
    SHOWN: tuple[str, ...] | None = None

    def input_text(self, record: Record) -> str:
        """Return the text that must not be on two sides of a split."""
        return str(record[self.CUT])

    def label(self, record: Record) -> str | None:
        """Return the record's class, if the prompts depend on the set of classes."""
        return None

    def fields(self, record: Record, labels: Sequence[str]) -> dict[str, str]:
        """Return the fields that the templates may name."""
        return {name: (record[name] or "").strip() for name in self.TEST_COLUMNS}

    def templates(self, fields: dict[str, str], labels: Sequence[str]) -> tuple[str, ...]:
        """Return the phrasings that suit this record."""
        return self.TEMPLATES

    def target(self, record: Record) -> str:
        """Return the response to learn."""
        raise NotImplementedError

    def lost(self, record: Record, visible: str) -> bool:
        """Return whether the target can no longer be found in the cut field `visible`."""
        return False

    def references(self, record: Record) -> list[str]:
        """Return the responses that count as right."""
        return [self.target(record).strip()]

    def other_answers(self, row: Record) -> tuple[str, ...]:
        """Return the answers to a row of the test file that are allowed beside `EXTRACTIVE`'s spans."""
        return ()

    def test_columns(self, record: Record, labels: Sequence[str]) -> dict[str, Any]:
        """Return the values of `TEST_COLUMNS`; texts are not cut, for the baselines."""
        return self.fields(record, labels)


@dataclass(frozen=True, order=True)
class Example:
    """One row of the mixture.

    `prompt_tokens` include the conversation's tokens around the prompt (0 for an empty prompt) and
    `response_tokens` the end-of-text token, so their sum is the example's length in training.
    """

    id: str
    task: str
    prompt: str
    response: str
    truncated: bool
    prompt_tokens: int
    response_tokens: int


def key(*parts: str | int) -> int:
    """Return a 64-bit hash of the parts: uniform, and the same on every machine."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )


def uniform(*parts: str | int) -> float:
    """Return a number in [0, 1) that depends only on the parts."""
    return (key(*parts) >> 11) / 2**53


def choose(templates: Sequence[str], example_id: str) -> str:
    """Return the phrasing of one example."""
    return templates[key("template", example_id) % len(templates)]


def render(
    task: Task,
    name: str,
    record: Record,
    labels: Sequence[str],
    tokenizer: Encoder,
    max_tokens: int,
) -> Example:
    """Return a training example of at most `max_tokens` tokens, special ones included.

    Raises:
        UnusableError: `empty_target`, `too_long` (with the text cut to `max_tokens // 8`), or
            `answer_cut`.
    """
    response, response_tokens = _response(task, record, tokenizer)
    example, visible = _render(
        task, name, record, labels, tokenizer, max_tokens, response, response_tokens
    )
    if task.lost(record, visible):
        raise UnusableError("answer_cut")
    return example


def render_test(
    task: Task,
    name: str,
    record: Record,
    labels: Sequence[str],
    tokenizer: Encoder,
    max_tokens: int,
) -> tuple[Example, bool]:
    """Return a test example, and True if the cut removed the answer.

    The prompt leaves room for `RESPONSE_TOKENS`, at most a quarter of `max_tokens`. A cut that
    depended on the reference would reveal its length.

    Raises:
        UnusableError: `empty_target` or `too_long`.
    """
    response, _ = _response(task, record, tokenizer)
    reserve = min(task.RESPONSE_TOKENS, max_tokens // 4)
    example, visible = _render(task, name, record, labels, tokenizer, max_tokens, response, reserve)
    return example, task.lost(record, visible)


def _response(task: Task, record: Record, tokenizer: Encoder) -> tuple[str, int]:
    response = task.target(record).strip()
    if not response:
        raise UnusableError("empty_target")
    return response, len(tokenizer.response_ids(response)) + 1


def _render(
    task: Task,
    name: str,
    record: Record,
    labels: Sequence[str],
    tokenizer: Encoder,
    max_tokens: int,
    response: str,
    response_tokens: int,
) -> tuple[Example, str]:
    fields = task.fields(record, labels)
    template = choose(task.templates(fields, labels), record["id"])
    around = len(tokenizer.chat_ids(""))  # the conversation's tokens around a prompt
    room = max_tokens - around - response_tokens
    prompt, tokens, visible = fit(
        template, fields, task.CUT, room, tokenizer, least=max_tokens // 8
    )
    truncated = len(visible) < len(fields[task.CUT])
    return Example(
        record["id"], name, prompt, response, truncated, tokens + around, response_tokens
    ), visible


def fit(
    template: str, fields: dict[str, str], cut: str, room: int, tokenizer: Encoder, least: int
) -> tuple[str, int, str]:
    """Fill a template so that it takes at most `room` tokens, with `fields[cut]` cut from its end.

    Returns:
        The prompt, the number of its tokens, and the rest of `fields[cut]`.

    Raises:
        UnusableError: `too_long`, because fewer than `least` tokens of the field would be left.
    """
    # Cut a very long text first, so that a novel is not encoded whole for its first page.
    text = token_prefix(fields[cut], max(room, 0), tokenizer)
    allowed = room
    while True:
        prompt = template.format(**{**fields, cut: text})
        tokens = len(tokenizer.encode(prompt))
        if tokens <= room:
            return prompt, tokens, text
        # Token counts do not add up where texts meet, so one cut may not be enough. The loop ends
        # because `allowed` falls each time.
        allowed = min(allowed, len(tokenizer.encode(text))) - (tokens - room)
        if allowed < max(least, 1):
            raise UnusableError("too_long")
        text = token_prefix(text, allowed, tokenizer)


def token_prefix(text: str, tokens: int, tokenizer: Encoder) -> str:
    """Return the beginning of `text` of about `tokens` tokens, cut at a word, or all of it."""
    piece = text[: 16 * (tokens + 1)]
    ids = tokenizer.encode(piece)
    # Runs of one character take more than 16 characters a token.
    if len(ids) <= tokens and len(piece) < len(text):
        ids = tokenizer.encode(text)
    if len(ids) <= tokens:
        return text
    # Ids may end inside a character, which decodes to U+FFFD: keep what agrees with the text.
    head = tokenizer.decode(ids[:tokens])
    while not text.startswith(head):
        head = head[:-1]
    if head and not head[-1].isspace() and not text[len(head) : len(head) + 1].isspace():
        space = max(
            head.rfind(mark, len(head) - WORD) if len(head) > WORD else head.rfind(mark)
            for mark in " \n\t"
        )
        head = head[:space] if space > 0 else head
    return head.rstrip()
