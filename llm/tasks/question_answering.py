"""Extractive question answering in SQuAD's form: a context, a question, and a span of the context.

A question without an answer (SQuAD v2) has the response `unanswerable`; where training holds such
questions, every prompt says so, as FLAN's templates for SQuAD v2 do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from llm.tasks.base import Record

COLUMNS = ("context", "question", "answers")
METRICS = ("exact_match", "f1")
CUT = "context"
CLOSED = False
RESPONSE_TOKENS = 32
TEST_COLUMNS = {"context": pa.string(), "question": pa.string()}
UNANSWERABLE = "unanswerable"

# The question comes last, next to the answer, with nothing behind it: a small model then need not
# carry it across the context.
TEMPLATES = (
    "{context}\n\n{question}",
    "{context}\n\nQuestion: {question}",
    "Context: {context}\n\nQuestion: {question}",
    "Read the text and answer the question.\n\n{context}\n\n{question}",
    "{context}\n\nAnswer from the text above: {question}",
)
TEMPLATES_V2 = (
    '{context}\n\n{question} If the text does not say, answer "unanswerable".',
    '{context}\n\nQuestion (say "unanswerable" if the text has no answer): {question}',
    'Context: {context}\n\nIf there is no answer, say "unanswerable".\n\nQuestion: {question}',
    'Read the text and answer the question, or say "unanswerable".\n\n{context}\n\n{question}',
    '{context}\n\nAnswer from the text above, or say "unanswerable": {question}',
)


def input_text(record: Record) -> str:
    """The context: questions about one paragraph tell each other's answers, so they stay on one
    side.
    """
    return str(record["context"])


def label(record: Record) -> str:
    """Whether there is an answer."""
    return "answerable" if answers(record) else UNANSWERABLE


def answers(record: Record) -> list[str]:
    """The distinct answers in the order of the source, without empty ones."""
    return list(
        dict.fromkeys(text for answer in record["answers"] or [] if (text := answer.strip()))
    )


def fields(record: Record, labels: Sequence[str]) -> dict[str, str]:
    """`context` and `question`."""
    return {"context": record["context"].strip(), "question": record["question"].strip()}


def templates(fields: dict[str, str], labels: Sequence[str]) -> tuple[str, ...]:
    """Those that mention `unanswerable` where training holds such questions."""
    return TEMPLATES_V2 if UNANSWERABLE in labels else TEMPLATES


def target(record: Record) -> str:
    """The first answer."""
    return (answers(record) or [UNANSWERABLE])[0]


def lost(record: Record, visible: str) -> bool:
    """Whether an answer stood in the context and none does any more."""
    spans = [answer for answer in answers(record) if answer in record["context"]]
    return bool(spans) and not any(answer in visible for answer in spans)


def references(record: Record) -> list[str]:
    """All answers: the scores take the best match. `[unanswerable]` where there is none."""
    return answers(record) or [UNANSWERABLE]


def test_columns(record: Record, labels: Sequence[str]) -> dict[str, Any]:
    """`context`, whole, and `question`."""
    return fields(record, labels)
