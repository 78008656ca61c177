"""Baseline answers without a language model, which a meaningful score must beat.

All are pure functions of the example, its id and the training answers; `random` draws by a hash of
the id, so adding or removing examples never changes another's answer.
"""

from __future__ import annotations

import collections
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from llm import tasks
from llm.evaluate.metrics import UNANSWERABLE, has_answer
from llm.tasks.base import uniform
from llm.text.sentences import sentences, words

Row = Mapping[str, Any]  # of data/mix/test/<task>.parquet
TFIDF_FEATURES = 20_000
TRAIN_EXAMPLES = 50_000  # most training examples of a task that baselines read, for memory
SENTENCES = 10_000  # training summaries that give the usual number of sentences


def draw(items: Sequence[str], *key: str | int) -> str:
    """Return one of `items`, uniformly by a hash of `key`; empty if there are none."""
    return items[int(uniform(*key) * len(items))] if items else ""


# -- summarization and instructions


def usual_sentences(summaries: Iterable[str]) -> int:
    """Return the median number of sentences of the first 10,000 training summaries.

    It is 1 for titles and 3 for CNN/DailyMail.
    """
    counts = [
        len(sentences(text, lines=True))
        for text, _ in zip(summaries, range(SENTENCES), strict=False)
    ]
    return max(1, round(statistics.median(counts))) if counts else 1


def lead(document: str, count: int) -> str:
    """Return the first `count` sentences, one a line (Lead-3 with count 3: See et al. 2017,
    arXiv:1704.04368).
    """
    return "\n".join(sentences(document)[:count])


def random_sentences(document: str, count: int, seed: int, example_id: str) -> str:
    """Return `count` random sentences in the document's order, one a line."""
    found = sentences(document)
    order = sorted(range(len(found)), key=lambda i: (uniform("sentence", seed, example_id, i), i))
    return "\n".join(found[i] for i in sorted(order[:count]))


# -- question answering


def random_sentence(context: str, seed: int, example_id: str) -> str:
    """Return a random sentence of the context."""
    return draw(sentences(context), "sentence", seed, example_id)


def sliding_window(context: str, question: str) -> str:
    """Return the context's sentence that matches the question best; the first in a tie.

    The sliding window of Richardson et al. 2013 (MCTest, algorithm 1), which SQuAD took as its
    baseline (Rajpurkar et al. 2016, section 5.1): a window as long as the question has distinct
    words slides over the text, and a word of the question found in it adds its inverse count log(1
    + 1/count in the context). There the candidates are given answers or the constituents of a
    parse; here they are sentences, and a window stays inside one."""
    candidates = sentences(context)
    counts = collections.Counter(words(context))
    wanted = set(words(question))
    best, answer = -1.0, ""
    for candidate in candidates:
        tokens = words(candidate)
        width = max(1, min(len(wanted), len(tokens)))
        gains = [math.log(1 + 1 / counts[word]) if word in wanted else 0.0 for word in tokens]
        score = max(
            (math.fsum(gains[i : i + width]) for i in range(len(tokens) - width + 1)), default=0.0
        )
        if score > best:
            best, answer = score, candidate
    return answer


def name_match(context: str, question: str) -> str:
    """Return what the context says at the name that the question asks for.

    Reference documentation describes a name on a line of its own: `name: …`, `Returns name: …`,
    `Raises name: …`. The name is the last one in back quotes; a question about what is returned or
    raised looks for the lines that begin so. The answer is the line's first sentence, without its
    full stop. A question without a name, or whose name begins no line, gets the sliding window's
    answer.
    """
    names = re.findall(r"`([^`]+)`", question)
    asked, form = (names[-1] if names else ""), re.sub(r"`[^`]+`", "", question).lower()
    heads = {asked}
    if "return" in form or "result" in form:
        heads = {f"Returns {asked}", "Returns"}
    elif "raise" in form:
        heads = {f"Raises {asked}"}
    for line in context.splitlines():
        head, _, text = line.partition(": ")
        if head in heads and text:
            return (sentences(text) or [text])[0].rstrip(".")
    return sliding_window(context, question)


# -- classification


def majority(labels: Iterable[str]) -> str:
    """Return the most frequent training label; the first by name in a tie; empty if there is none."""
    counts = collections.Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label)) if counts else ""


def tfidf(
    train_texts: Sequence[str], train_labels: Sequence[str], texts: Sequence[str]
) -> list[str]:
    """Return labels of `texts` by logistic regression on TF-IDF of words and word pairs.

    It reads the same prompts as a model, with their templates, and trains on the same examples.
    """
    if len(set(train_labels)) < 2 or not any(words(text) for text in train_texts):
        return [majority(train_labels)] * len(texts)
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from threadpoolctl import threadpool_limits

    model = make_pipeline(
        TfidfVectorizer(
            sublinear_tf=True, ngram_range=(1, 2), max_features=TFIDF_FEATURES, token_pattern=r"\w+"
        ),
        LogisticRegression(C=10.0, tol=1e-3, max_iter=1000),
    )
    with threadpool_limits(1):  # fixes the order of sums on any machine
        model.fit(list(train_texts), list(train_labels))
    return [str(label) for label in model.predict(list(texts))]


# -- by kind


def answers(
    kind: str,
    rows: Sequence[Row],
    train: Sequence[tuple[str, str]],
    seed: int,
    every: Sequence[tuple[str, str]] = (),
) -> dict[str, list[str]]:
    """Return the predictions of every baseline of a kind of task: name → one text a row.

    Args:
        kind: kind of task.
        rows: test examples.
        train: prompts and responses of the training examples that the model learns from.
        seed: of the random baselines.
        every: prompts and responses of all training examples of a classification, where the model
            learns from some; empty elsewhere.
    """
    train_responses = [response for _, response in train]
    each: dict[str, Callable[[Row], str]]
    if kind == "summarization":
        count = usual_sentences(train_responses)
        each = {
            "lead": lambda row: lead(row["document"], count),
            "random": lambda row: random_sentences(row["document"], count, seed, row["id"]),
        }
    elif kind == "question_answering":
        each = {
            "random": lambda row: random_sentence(row["context"], seed, row["id"]),
            "sliding_window": lambda row: sliding_window(row["context"], row["question"]),
            "name_match": lambda row: name_match(row["context"], row["question"]),
        }
        if not all(has_answer(row["references"]) for row in rows):
            each["unanswerable"] = lambda row: UNANSWERABLE
    elif kind == "instructions":
        count = usual_sentences(train_responses)
        each = {"lead": lambda row: lead(row["input"] or row["instruction"], count)}
    elif kind == "classification":
        usual = majority(train_responses)
        each = {
            "majority": lambda row: usual,
            "random": lambda row: draw(row["choices"], "label", seed, row["id"]),
        }
    else:  # a user's own kind: baselines that fit any kind, and those of its module
        usual = majority(train_responses)
        each = {
            "majority": lambda row: usual,
            "random": lambda row: draw(train_responses, "response", seed, row["id"]),
        }
        own: Callable[[Row], dict[str, str]] = getattr(tasks.get(kind), "baselines", lambda row: {})
        for name in own(rows[0]):
            each[name] = partial(lambda name, row: own(row)[name], name)
    found = {name: [answer(row) for row in rows] for name, answer in each.items()}
    if kind == "classification":
        for name, examples in (("tfidf", train), ("tfidf_all", every)):
            if examples or name == "tfidf":
                prompts, labels = ([example[i] for example in examples] for i in (0, 1))
                found[name] = tfidf(prompts, labels, [row["prompt"] for row in rows])
    return found
