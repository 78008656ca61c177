"""The training mixture: how many examples of each task, which ones, and in which order.

Hashes of (seed, task, id) decide everything; no random generator has a state. So the order of the
files does not matter, and a larger number of examples keeps those that were drawn before.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeVar

from llm.errors import UserError
from llm.tasks.base import (
    Encoder,
    Example,
    Record,
    Task,
    UnusableError,
    key,
    render,
    render_test,
    token_prefix,
)
from llm.tasks.splits import TEST, TRAIN, Survey, listed
from llm.text.ngrams import Grams

T = TypeVar("T")
LANGUAGE_MODELING = "language_modeling"  # the task name of plain pretraining text
# Characters a token, roughly; a chunk has this length unless its tokens are shorter.
CHUNK_CHARACTERS = 3
# Most validation examples to draw, as a share of mix.examples; tasks keep their proportions.
VALIDATION_SHARE = 0.1
BUCKET = 20_000  # test examples in memory at a time
NO_VALIDATION = "mix: no validation example in any task; raise mix.val_fraction, or give more groups or val_paths."


@dataclass(frozen=True)
class Dataset:
    """A task's records and their survey. `records` yields the same order at every call."""

    name: str
    kind: str
    task: Task
    weight: float
    records: Callable[[], Iterable[Record]]
    survey: Survey
    positive: str | None = None  # the class of two for which F1 is computed

    def side(self, side: int) -> Iterator[Record]:
        """Yield the records on one side of the split."""
        return (
            record
            for record, its_side in zip(self.records(), self.survey.sides, strict=True)
            if its_side == side
        )


@dataclass
class Drawn:
    """Examples drawn from one task, and the unusable ones counted by reason."""

    examples: list[Example] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def complete(self, survey: Survey) -> bool:
        """Return whether these are all training examples of the task that can be used."""
        return len(self.examples) + self.dropped.total() == survey.count(TRAIN)


def allocate(
    weights: Mapping[str, float], available: Mapping[str, int], total: int
) -> dict[str, int]:
    """Share `total` by weight; what a task lacks goes to the others by their weights.

    Largest remainders round the shares, and names break ties. The shares sum to `total`, or to all
    available examples if those are fewer.
    """
    shares = dict.fromkeys(weights, 0)
    open_tasks = {name: Fraction(weight) for name, weight in weights.items() if weight > 0}
    while open_tasks:
        whole = sum(open_tasks.values())
        exact = {name: total * weight / whole for name, weight in open_tasks.items()}
        full = [name for name in open_tasks if available[name] <= exact[name]]
        if not full:
            break
        for name in full:
            shares[name] = available[name]
            total -= available[name]
            del open_tasks[name]
    if open_tasks:
        shares.update({name: math.floor(share) for name, share in exact.items()})
        by_remainder = sorted(exact, key=lambda name: (math.floor(exact[name]) - exact[name], name))
        for name in by_remainder[: total - sum(math.floor(share) for share in exact.values())]:
            shares[name] += 1
    return shares


def draw(candidates: Iterable[tuple[int, T]], quota: int, build: Callable[[T], Example]) -> Drawn:
    """Draw the usable examples with the `quota` lowest orders; candidates may come in any order.

    Args:
        candidates: (order, candidate) pairs.
        quota: number of examples; all usable ones if there are fewer.
        build: makes the example, or raises `UnusableError`; called only for candidates that may be
            drawn.
    """
    heap: list[tuple[int, Example]] = []  # orders are negated, so the highest is on top
    failed: list[tuple[int, str]] = []
    for order, candidate in candidates if quota else ():
        if len(heap) == quota and order >= -heap[0][0]:
            continue
        try:
            item = (-order, build(candidate))
        except UnusableError as error:
            failed.append((order, str(error)))
            continue
        if len(heap) < quota:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)
    last = -heap[0][0] if len(heap) == quota and heap else math.inf
    return Drawn(
        [example for _, example in heap],
        Counter(reason for order, reason in failed if order < last),
    )


def draw_tasks(
    datasets: Iterable[Dataset],
    side: int,
    total: int,
    tokenizer: Encoder,
    seed: int,
    max_tokens: int,
    held_out: Grams | None = None,
) -> dict[str, Drawn]:
    """Draw `total` examples of one side over all tasks by weight.

    Other examples of the same task replace unusable ones. If the task has none left, examples of
    other tasks do.

    Args:
        datasets: the tasks.
        side: TRAIN or VALIDATION.
        total: number of examples.
        tokenizer: measures the examples.
        seed: decides which are drawn.
        max_tokens: most tokens of an example.
        held_out: an example that has one of these runs of words cannot be used.
    """
    by_name = {dataset.name: dataset for dataset in datasets}
    weights = {name: dataset.weight for name, dataset in by_name.items()}
    available = {name: dataset.survey.count(side) for name, dataset in by_name.items()}
    drawn = {name: Drawn() for name in by_name}
    while True:
        quotas = allocate(weights, available, total)
        for name, quota in quotas.items():
            if len(drawn[name].examples) < quota:
                drawn[name] = draw_task(
                    by_name[name], side, quota, tokenizer, seed, max_tokens, held_out
                )
        short = {
            name: len(drawn[name].examples)
            for name in by_name
            if len(drawn[name].examples) < quotas[name]
        }
        if not short:
            return drawn
        available.update(short)


def draw_all(
    dataset: Dataset, tokenizer: Encoder, seed: int, max_tokens: int, held_out: Grams | None
) -> list[Example]:
    """Return all usable training examples of one task, shuffled; arguments as in `draw_tasks`."""
    total = dataset.survey.count(TRAIN)
    drawn = draw_task(dataset, TRAIN, total, tokenizer, seed, max_tokens, held_out)
    return shuffled(drawn.examples, seed)


def draw_task(
    dataset: Dataset,
    side: int,
    quota: int,
    tokenizer: Encoder,
    seed: int,
    max_tokens: int,
    held_out: Grams | None,
) -> Drawn:
    """Draw `quota` usable examples of one task; arguments as in `draw_tasks`."""
    labels = tuple(dataset.survey.labels)

    def build(record: Record) -> Example:
        example = render(dataset.task, dataset.name, record, labels, tokenizer, max_tokens)
        if held_out is not None and held_out.contains_any(f"{example.prompt}\n{example.response}"):
            raise UnusableError(f"{held_out.n}_words_held_out")
        return example

    candidates = (
        (key("draw", seed, dataset.name, record["id"]), record) for record in dataset.side(side)
    )
    return draw(candidates, quota, build)


def draw_text(
    documents: Iterable[Record],
    validation: bool,
    quota: int,
    tokenizer: Encoder,
    seed: int,
    max_tokens: int,
) -> Drawn:
    """Draw chunks of plain text from one side of the pretraining split.

    Args:
        documents: pretraining documents with `id`, `text` and `held_out` (True or False).
        validation: True draws from the documents that pretraining held out, False from the others.
        quota: number of chunks.
        tokenizer: measures the chunks.
        seed: decides which chunks are drawn.
        max_tokens: most tokens of a chunk with its end-of-text token.
    """

    def candidates() -> Iterator[tuple[int, tuple[str, str]]]:
        for document in documents:
            if document["held_out"] == validation:
                for i, text in enumerate(chunks(document["text"], CHUNK_CHARACTERS * max_tokens)):
                    chunk_id = f"{document['id']}#{i}"
                    yield key("draw", seed, LANGUAGE_MODELING, chunk_id), (chunk_id, text)

    def build(chunk: tuple[str, str]) -> Example:
        chunk_id, text = chunk
        head = token_prefix(text, max_tokens - 1, tokenizer)
        if len(head) < len(text):
            head = head[: _border(head, 0, len(head))].rstrip()
        tokens = len(tokenizer.encode(head)) + 1
        if not head or tokens > max_tokens:
            raise UnusableError("too_long")
        return Example(chunk_id, LANGUAGE_MODELING, "", head, len(head) < len(text), 0, tokens)

    return draw(candidates(), quota, build)


def chunks(text: str, size: int) -> Iterator[str]:
    """Cut a text into pieces of at most `size` characters.

    Prefers to cut at a paragraph, then at a line, a sentence, a word.
    """
    start = 0
    while start < len(text):
        end = _border(text, start, start + size) if len(text) - start > size else len(text)
        if piece := text[start:end].strip():
            yield piece
        start = end


def _border(text: str, start: int, limit: int) -> int:
    """Return the last border in the second half of text[start:limit], or `limit` without one."""
    for mark in ("\n\n", "\n", ". ", " "):
        position = text.rfind(mark, start + (limit - start) // 2, limit)
        if position >= 0:
            return position + len(mark)
    return limit


def shuffled(examples: Iterable[Example], seed: int) -> list[Example]:
    """Return the examples in an order that depends only on the seed, the tasks and the ids."""
    return sorted(
        examples, key=lambda example: (key("shuffle", seed, example.task, example.id), example)
    )


def text_share(examples: int, fraction: float) -> int:
    """Return how many chunks of plain text make up `fraction` of the mixture with `examples`."""
    return round(examples * fraction / (1 - fraction))


def held_out(
    dataset: Dataset,
    tokenizer: Encoder,
    max_tokens: int,
    dropped: Counter[str],
    counts: Counter[str],
) -> Iterator[list[dict]]:
    """Yield lists of test examples in the order of a hash of their ids: the first N are a sample.

    All records are read once for each list of about `BUCKET` examples, so memory does not grow with
    the test set.

    Args:
        dataset: holds the records.
        tokenizer: measures the examples.
        max_tokens: most tokens of a prompt with its response.
        dropped: reason -> examples; this function adds to it.
        counts: `truncated` and `answer_cut` examples; this function adds to it.
    """
    labels = tuple(dataset.survey.labels)
    buckets = max(1, -(-dataset.survey.count(TEST) // BUCKET))
    for bucket in range(buckets):
        rows = []
        for record in dataset.side(TEST):
            order = key("test", record["id"])
            if order * buckets >> 64 != bucket:
                continue
            try:
                example, lost = render_test(
                    dataset.task, dataset.name, record, labels, tokenizer, max_tokens
                )
            except UnusableError as error:
                dropped[str(error)] += 1
                continue
            counts["truncated"] += example.truncated
            counts["answer_cut"] += lost
            row = {
                "id": example.id,
                "kind": dataset.kind,
                "prompt": example.prompt,
                "references": dataset.task.references(record),
                "truncated": example.truncated,
                **dataset.task.test_columns(record, labels),
                **({"positive": dataset.positive} if dataset.positive else {}),
            }
            rows.append((order, example.id, row))
        rows.sort(key=lambda item: item[:2])
        yield [row for _, _, row in rows]


def check(dataset: Dataset) -> None:
    """Refuse a dataset that cannot be trained on or tested with.

    Raises:
        UserError: no training or no test records, or a single class.
    """
    survey, name = dataset.survey, dataset.name
    reasons = listed(survey.dropped)
    if not len(survey.sides):
        raise UserError(
            f"data/raw/{name} holds no records. Look at download.{name} and its manifest.json."
        )
    if not survey.count(TRAIN) and dataset.weight > 0:
        raise UserError(
            f"mix.tasks.{name}: no training example among {len(survey.sides)} records (dropped: {reasons}). Give "
            f"download.{name} more data that no task tests with, lower mix.test_fraction, or set the task's weight to "
            "0 to test it only."
        )
    if not survey.count(TEST):
        raise UserError(
            f"mix.tasks.{name}: no test example among {len(survey.sides)} records (dropped: {reasons}). The split is "
            f"by group: give download.{name} more groups or its own test side, or raise mix.test_fraction."
        )
    if dataset.kind == "classification" and len(survey.labels) < 2:
        raise UserError(
            f"mix.tasks.{name}: classification needs two labels or more in its training records, found "
            f"{', '.join(survey.labels) or 'none'}. Look at download.{name}.columns and .labels."
        )
