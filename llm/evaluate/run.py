"""Puts one model, or a baseline's answers, through the tests. Nothing here opens a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llm.errors import UserError
from llm.evaluate import compression, metrics
from llm.evaluate.baselines import Row
from llm.evaluate.files import TestSet
from llm.evaluate.metrics import Measure

if TYPE_CHECKING:
    from llm.data.shards import TokenStream
    from llm.data.tokenizer import Tokenizer
    from llm.model.transformer import Transformer

WINDOW = 2048  # tokens of context at most for perplexity: logits of a longer one would need gigabytes
LOGITS = 2**25  # held at a time for perplexity: 128 MB in float32
PER_BYTE = "argmax over choices of log-likelihood of the choice and the end token / bytes of the choice"
UNNORMALISED = "argmax over choices of log-likelihood of the choice and the end token"


@dataclass(frozen=True)
class Answers:
    """One model's answers to a test set.

    columns: more columns for the predictions file. extra: measures beside those of the kind.
    """

    texts: list[str]
    columns: dict[str, list[Any]]
    extra: list[Measure]
    form: str  # of the prompt, for signatures


@contextmanager
def finite_logits(model: Transformer, who: str) -> Iterator[None]:
    """Inside, logits that are NaN or infinite raise a UserError that names model and task."""
    import torch

    def check(_module: object, _inputs: object, logits: torch.Tensor) -> None:
        if not bool(torch.isfinite(logits).all()):
            raise UserError(f"{who}: the model's logits are not finite. Did training diverge? Lower learning_rate.")

    handle = model.lm_head.register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()


# -- prompts ---------------------------------------------------------------------------------------------------------


def prompt_ids(tokenizer: Tokenizer, prompt: str, chat: bool, room: int) -> tuple[list[int], bool]:
    """Token ids of a prompt, at most `room`, and whether it was cut: a prompt that is too long loses its beginning.

    chat: between the chat tokens, as in finetuning. Otherwise plain text that ends with a line break: a base model
        has never seen the chat tokens.
    """
    ids = tokenizer.chat_ids(prompt) if chat else tokenizer.encode(prompt + "\n")
    if len(ids) <= room:
        return ids, False
    kept = [*ids[:1], *ids[len(ids) - room + 1 :]] if chat else ids[len(ids) - room :]  # <|user|> stays
    return kept, True


def room_for(context: int, new_tokens: int) -> int:
    """Tokens left to the prompt: the context without the answer, but at least half of it."""
    return max(1, context // 2, context - new_tokens)


# -- answers ---------------------------------------------------------------------------------------------------------


def answer(
    model: Transformer,
    tokenizer: Tokenizer,
    test: TestSet,
    max_new_tokens: Mapping[str, int],
    chat: bool,
    on_progress: Callable[[int], object] | None = None,
) -> Answers:
    """Generate, or for a classification choose among the labels by likelihood.

    Args:
        max_new_tokens: by kind, or by the task's own name, which comes first.

    Raises:
        UserError: `max_new_tokens` lacks the kind.
    """
    ask = _choose if test.kind == "classification" else _generate
    return ask(model, tokenizer, test, max_new_tokens, chat, on_progress)


def _prompts(tokenizer: Tokenizer, rows: Sequence[Row], chat: bool, room: int) -> tuple[list[list[int]], Measure]:
    """Token ids, and the share of prompts that lost text, to the mixture's limit or to the context."""
    pairs = [prompt_ids(tokenizer, row["prompt"], chat, room) for row in rows]
    cut = [float(bool(row["truncated"]) or short) for row, (_, short) in zip(rows, pairs, strict=True)]
    return [ids for ids, _ in pairs], metrics.mean("truncated", "share of prompts that lost text|scale:0-1", cut)


def _generate(
    model: Transformer,
    tokenizer: Tokenizer,
    test: TestSet,
    max_new_tokens: Mapping[str, int],
    chat: bool,
    on_progress: Callable[[int], object] | None,
) -> Answers:
    from llm.generate import generate

    new = max_new_tokens.get(test.name, max_new_tokens.get(test.kind))
    if new is None:
        raise UserError(f"evaluate.max_new_tokens.{test.kind} is missing: task {test.name} needs it. Add e.g. 64.")
    prompts, truncated = _prompts(tokenizer, test.rows, chat, room_for(model.config.max_position_embeddings, new))
    ids = generate(model, prompts, new, tokenizer.eos_id, on_progress=on_progress)
    texts = [tokenizer.decode(answer).strip() for answer in ids]
    return Answers(texts, {}, [truncated], f"prompt:{'chat' if chat else 'plain'}, 0-shot|greedy, at most {new} tokens")


def _choose(
    model: Transformer,
    tokenizer: Tokenizer,
    test: TestSet,
    max_new_tokens: Mapping[str, int],
    chat: bool,
    on_progress: Callable[[int], object] | None,
) -> Answers:
    from llm.evaluate.choices import choice_log_likelihoods

    names = sorted({choice for row in test.rows for choice in row["choices"]})
    encoded = {name: [*tokenizer.encode(name), tokenizer.eos_id] for name in names}
    longest = max(map(len, encoded.values()))
    prompts, truncated = _prompts(tokenizer, test.rows, chat, room_for(model.config.max_position_embeddings, longest))
    options = [[encoded[name] for name in row["choices"]] for row in test.rows]
    sums = choice_log_likelihoods(model, prompts, options, on_progress=on_progress)
    size = {name: max(1, len(name.encode())) for name in names}
    # numpy's argmax takes the first of equals: the first choice.
    best = [row["choices"][int(np.argmax(values))] for row, values in zip(test.rows, sums, strict=True)]
    per_byte = [
        row["choices"][int(np.argmax(values / [size[name] for name in row["choices"]]))]
        for row, values in zip(test.rows, sums, strict=True)
    ]
    right = [float(name == row["label"]) for row, name in zip(test.rows, per_byte, strict=True)]
    form = f"prompt:{'chat' if chat else 'plain'}, 0-shot|{UNNORMALISED}"
    normalised = f"prompt:{'chat' if chat else 'plain'}, 0-shot|{PER_BYTE}|scale:0-1"
    extra = [metrics.mean("accuracy_normalised", normalised, right), truncated]
    return Answers(best, {"log_likelihoods": [values.tolist() for values in sums]}, extra, form)


# -- scores ----------------------------------------------------------------------------------------------------------


def measures(test: TestSet, texts: Sequence[str], form: str) -> list[Measure]:
    """The metrics of a kind of task. form: how the answers were made, for the signatures."""
    references = [row["references"] for row in test.rows]
    if test.kind == "classification":
        return metrics.classification(texts, [row["label"] for row in test.rows], form)
    if test.kind == "question_answering":
        found = metrics.question_answering(texts, references)
    else:
        found = [*metrics.rouge(texts, references), metrics.bleu(texts, references)]
    found.append(metrics.mean_length(texts))
    return [Measure(m.name, f"{m.signature}|{form}", m.statistics, m.reduce, m.column) for m in found]


def language_modeling(
    model: Transformer, stream: TokenStream, tokenizer: Tokenizer, tokens: int | None
) -> list[Measure]:
    """Perplexity per token and bits per byte on held-out text, in windows that do not overlap.

    Every token but the first is predicted once, end-of-text tokens too; bytes are the documents', so bits per byte
    compare across tokenizers.
    """
    from llm.likelihood import stream_nll

    window = min(model.config.max_position_embeddings, WINDOW)
    batch = max(1, min(16, LOGITS // (window * model.config.vocab_size)))
    nats, counts = stream_nll(model, stream, tokens, window, batch_size=batch)
    return likelihood(nats, counts, window, stream, tokenizer, tokens, f"windows of {window} tokens")


def likelihood(
    nats: np.ndarray,
    counts: np.ndarray,
    window: int,
    stream: TokenStream,
    tokenizer: Tokenizer,
    tokens: int | None,
    form: str,
) -> list[Measure]:
    """Perplexity and bits per byte of windows' code lengths (nats) and predicted tokens."""
    if tokens is None or tokens >= len(stream):
        total = stream.bytes
    else:
        total = sum(len(text.encode()) for text, _ in compression.documents(stream, tokenizer, tokens))
    # A character that a border parts is inexact on both sides; this moves the interval only, the total is exact.
    sizes = window_bytes(stream, tokenizer, counts, window)
    scope = f"{int(counts.sum())} tokens, {total} bytes of held-out documents|{form}"
    return [
        metrics.perplexity(nats, counts, f"per token|{scope}"),
        metrics.bits_per_byte(
            nats, sizes * (total / sizes.sum()), f"end-of-text tokens cost bits, have no bytes|{scope}"
        ),
    ]


def window_bytes(stream: TokenStream, tokenizer: Tokenizer, counts: np.ndarray, window: int) -> np.ndarray:
    """UTF-8 bytes of the text that each window predicts: (windows,) float64, at least 1."""
    sizes = np.ones(len(counts))
    for i, count in enumerate(counts):
        ids = stream.read(i * window + 1, int(count))
        sizes[i] = max(1, len(tokenizer.decode(ids[ids != stream.eos_id].tolist()).encode()))
    return sizes
