"""The answers of one model or baseline to the tests, and their measures. Opens no files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llm import tasks
from llm.errors import UserError
from llm.evaluate import metrics
from llm.evaluate.metrics import Measure
from llm.evaluate.prompts import BETWEEN, NONE, Prompts, Shots, prompts, room_for, visible
from llm.evaluate.test_sets import POSITIVE, TestSet
from llm.generation.request import GREEDY
from llm.params import Decoding
from llm.params.section import nearest
from llm.tasks.base import key

if TYPE_CHECKING:
    from llm.generation.spans import Span
    from llm.model.transformer import Transformer
    from llm.tokenizer.bpe import Tokenizer

PER_BYTE = (
    "argmax over choices of log-likelihood of the choice and the end token / bytes of the choice"
)
UNNORMALISED = "argmax over choices of log-likelihood of the choice and the end token"


@dataclass(frozen=True)
class Answers:
    """One model's answers to a test set.

    columns: more columns for the predictions file. extra: measures in addition to the kind's.
    """

    texts: list[str]
    columns: dict[str, list[Any]]
    extra: list[Measure]
    form: str  # form of the prompt, for signatures


@dataclass(frozen=True)
class Asking:
    """The settings with which a model is asked.

    max_new_tokens: by task or by kind of task; the default is the kind's `RESPONSE_TOKENS`.
    who: the model's name in error messages.
    stop_ids: tokens that end an answer, in addition to the end token.
    """

    chat: bool
    max_new_tokens: Mapping[str, int] = field(default_factory=dict)
    decoding: Decoding = GREEDY
    shots: Shots = NONE
    seed: int = 0
    who: str = "the model"
    stop_ids: frozenset[int] = frozenset()


def check_vocabulary(model: Transformer, tokenizer: Tokenizer, who: str) -> None:
    """Raise UserError if the tokenizer has tokens, such as chat tokens, that the model lacks."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{who}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}: the "
            "tokens of the task's form are missing. Use the model's own tokenizer, or train the model again."
        )


def rounds(
    name: str,
    tests: Sequence[TestSet],
    decoding: Decoding,
    variants: Mapping[str, Decoding],
    examples: int | None,
) -> Iterator[tuple[str, Decoding, TestSet]]:
    """Yield what a model is asked, as (name of the answers, decoding, test set).

    Every test comes first; then, for each variant of decoding (`variant:<name>`), the first
    `examples` of every test with generated answers.
    """
    for test in tests:
        yield name, decoding, test
    for variant, other in variants.items():
        for test in tests:
            if not test.closed:
                yield f"variant:{variant}", other, test.head(examples)


# -- answers


def answer(
    model: Transformer,
    tokenizer: Tokenizer,
    test: TestSet,
    asking: Asking,
    on_progress: Callable[[int], object] | None = None,
) -> Answers:
    """Generate answers, or choose among given choices by likelihood.

    Raises:
        UserError: the model's logits are not finite, or it lacks tokens.
    """
    check_vocabulary(model, tokenizer, asking.who)
    closed = tasks.get(test.kind, test.name).CLOSED
    names = sorted({choice for row in test.rows for choice in row["choices"]}) if closed else []
    encode = tokenizer.response_ids if asking.chat else tokenizer.encode
    encoded = {name: [*encode(name), tokenizer.eos_id] for name in names}
    new = max(map(len, encoded.values())) if closed else answer_limit(test, asking.max_new_tokens)
    room = room_for(model.config.max_position_embeddings, new)
    asked = prompts(tokenizer, test.rows, asking.chat, room, asking.shots)
    if closed:
        return _choose(model, test.rows, asked, encoded, asking, on_progress)
    return _generate(model, tokenizer, test, asked, new, asking, on_progress)


def check_limits(max_new_tokens: Mapping[str, int], tests: Sequence[TestSet]) -> None:
    """Raise UserError for a limit whose name is neither a task nor a kind of task."""
    known = {*tasks.kinds(), *(test.name for test in tests)}
    for name in sorted(max_new_tokens.keys() - known):
        raise UserError(
            f"evaluate.max_new_tokens.{name}: neither a task nor a kind of task{nearest(name, sorted(known))}"
        )


def answer_limit(test: TestSet, max_new_tokens: Mapping[str, int]) -> int:
    """Return the most tokens of an answer."""
    kind = tasks.get(test.kind, test.name)
    return max_new_tokens.get(test.name) or max_new_tokens.get(test.kind) or kind.RESPONSE_TOKENS


def _generate(
    model: Transformer,
    tokenizer: Tokenizer,
    test: TestSet,
    asked: Prompts,
    new: int,
    asking: Asking,
    on_progress: Callable[[int], object] | None,
) -> Answers:
    from llm.generation.generate import complete
    from llm.generation.request import Request

    decoding = asking.decoding
    if asking.shots.count and not asking.chat:  # a plain answer ends before the next example
        decoding = decoding.model_copy(update={"stop_strings": (*decoding.stop_strings, BETWEEN)})
    seeds = [key("decode", asking.seed, row["id"]) for row in test.rows]
    field = tasks.get(test.kind, test.name).EXTRACTIVE
    spans = [None] * len(test.rows) if field is None else _spans(tokenizer, test, asked, decoding)
    requests = [
        Request(ids, new, decoding, seed, span=span)
        for ids, seed, span in zip(asked.ids, seeds, spans, strict=True)
    ]
    stop_ids = asking.stop_ids | {tokenizer.eos_id}
    completions = complete(model, requests, stop_ids, tokenizer.decode, on_progress=on_progress)
    check_finite(
        [completion.reason != "not_finite" for completion in completions], "prompts", asking.who
    )
    unfinished = [float(completion.reason != "stop") for completion in completions]
    counts = [
        *asked.counts,
        metrics.mean("unfinished", "share of answers cut at their limit|scale:0-1", unfinished),
    ]
    texts = [(completion.text or "").strip() for completion in completions]
    how = decoding.describe() + (f", spans of {field}" if field else "")
    return Answers(texts, {}, counts, f"{asked.form}|{how}, at most {new} tokens")


def _spans(
    tokenizer: Tokenizer, test: TestSet, asked: Prompts, decoding: Decoding
) -> list[Span | None]:
    """Return what the answers of an extractive task are spans of: the text that each prompt shows.

    None, for any answer, stands where a prompt shows none of it.

    Raises:
        UserError: no prompt shows any of it.
    """
    from llm.generation.spans import Spans

    task, spans = tasks.get(test.kind, test.name), Spans(tokenizer)
    field = task.EXTRACTIVE or ""
    texts = [
        visible(row[field] or "", row["prompt"], lost)
        for row, lost in zip(test.rows, asked.lost, strict=True)
    ]
    if not any(texts):
        raise UserError(
            f"{test.name}: llm/tasks/{test.kind}.py says that answers are spans of {field!r} (EXTRACTIVE), but no test "
            "prompt holds any of that column's text. Name the field that the templates show."
        )
    return [
        spans.of(text, task.other_answers(row), decoding.stop_strings)
        for row, text in zip(test.rows, texts, strict=True)
    ]


def _choose(
    model: Transformer,
    rows: Sequence[Mapping[str, Any]],
    asked: Prompts,
    encoded: Mapping[str, list[int]],
    asking: Asking,
    on_progress: Callable[[int], object] | None,
) -> Answers:
    from llm.generation.choices import choice_log_likelihoods

    options = [[encoded[name] for name in row["choices"]] for row in rows]
    sums = choice_log_likelihoods(model, asked.ids, options, on_progress=on_progress)
    check_finite([bool(np.isfinite(values).all()) for values in sums], "prompts", asking.who)
    size = {name: max(1, len(name.encode())) for name in encoded}
    # numpy's argmax takes the first of equals: the first choice.
    best = [row["choices"][int(np.argmax(values))] for row, values in zip(rows, sums, strict=True)]
    per_byte = [
        row["choices"][int(np.argmax(values / [size[name] for name in row["choices"]]))]
        for row, values in zip(rows, sums, strict=True)
    ]
    right = [float(name == row["label"]) for row, name in zip(rows, per_byte, strict=True)]
    normalised = metrics.mean("accuracy_normalised", f"{asked.form}|{PER_BYTE}|scale:0-1", right)
    columns = {"log_likelihoods": [values.tolist() for values in sums]}
    return Answers(best, columns, [normalised, *asked.counts], f"{asked.form}|{UNNORMALISED}")


def check_finite(finite: Sequence[bool], what: str, who: str) -> None:
    """Raise UserError, with the number of non-finite results, if there are any."""
    wrong = len(finite) - sum(finite)
    if wrong:
        raise UserError(
            f"{who}: the model's logits are not finite for {wrong} of {len(finite)} {what}. Did training diverge? "
            "Lower learning_rate."
        )


# -- scores


def measures(test: TestSet, texts: Sequence[str], form: str) -> list[Measure]:
    """Return the metrics of a kind of task, and the counts of odd examples.

    Args:
        test: the test set.
        texts: one answer for each of its rows.
        form: how the answers were made, for signatures.
    """
    task = tasks.get(test.kind, test.name)
    references = [row["references"] for row in test.rows]
    scored: list[Measure] = []
    if {"exact_match", "f1"} & set(task.METRICS) and not task.CLOSED:
        scored += metrics.question_answering(texts, references)
    if set(metrics.ROUGE) & set(task.METRICS):
        scored += metrics.rouge(texts, references)
    if "bleu" in task.METRICS:
        scored.append(metrics.bleu(texts, references))
    if hasattr(task, "score"):
        own = [task.score(text, row) for text, row in zip(texts, test.rows, strict=True)]
        scored += [
            metrics.mean(name, f"mean of llm/tasks/{test.kind}.py", [row[name] for row in own])
            for name in own[0]
        ]
    if task.CLOSED:
        names = {choice for row in test.rows for choice in row["choices"]}
        labels, positive = [row["label"] for row in test.rows], test.rows[0].get(POSITIVE)
        scored = [*metrics.classification(texts, labels, form, names, positive), *scored]
    else:
        scored.append(metrics.mean_length(texts))
        scored = [
            Measure(m.name, f"{m.signature}|{form}", m.statistics, m.reduce, m.column)
            for m in scored
        ]
    wanted = [m for m in scored if m.name in (*task.METRICS, "mean_length")]
    return [*wanted, *metrics.counted(texts, test.rows)]
