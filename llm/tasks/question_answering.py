"""Extractive question answering in SQuAD's form: a context, a question, and a span of the context.

A question without an answer (SQuAD v2) has the response `unanswerable`; where training holds such
questions, every prompt says so, as FLAN's templates for SQuAD v2 do.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from llm.tasks.base import Record, Task

UNANSWERABLE = "unanswerable"


class QuestionAnswering(Task):
    """A context, a question, and the answers that count as right."""

    COLUMNS = ("context", "question", "answers")
    METRICS = ("exact_match", "f1")
    # Questions about one context tell each other's answers, so they stay on one side of a split.
    CUT = "context"
    EXTRACTIVE = "context"
    RESPONSE_TOKENS = 32
    TEST_COLUMNS = {"context": pa.string(), "question": pa.string()}

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

    def label(self, record: Record) -> str:
        """Return whether the question has an answer."""
        return "answerable" if self.answers(record) else UNANSWERABLE

    def answers(self, record: Record) -> list[str]:
        """Return the distinct answers in the order of the source, without empty ones."""
        return list(
            dict.fromkeys(text for answer in record["answers"] or [] if (text := answer.strip()))
        )

    def templates(self, fields: dict[str, str], labels: Sequence[str]) -> tuple[str, ...]:
        """Mention `unanswerable` where the training examples include such questions."""
        return self.TEMPLATES_V2 if UNANSWERABLE in labels else self.TEMPLATES

    def target(self, record: Record) -> str:
        """Return the first answer."""
        return (self.answers(record) or [UNANSWERABLE])[0]

    def lost(self, record: Record, visible: str) -> bool:
        """Return whether the cut removed every answer from the context."""
        spans = [answer for answer in self.answers(record) if answer in record["context"]]
        return bool(spans) and not any(answer in visible for answer in spans)

    def references(self, record: Record) -> list[str]:
        """Return all answers (the best match counts), or `[unanswerable]`."""
        return self.answers(record) or [UNANSWERABLE]

    def other_answers(self, row: Record) -> tuple[str, ...]:
        """Allow `unanswerable` where the prompt does."""
        return (UNANSWERABLE,) if UNANSWERABLE in row["prompt"] else ()
