"""Summarization: a document, and a summary of one or a few sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from llm.tasks.base import Record

COLUMNS = ("document", "summary")
METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu")
CUT = "document"
CLOSED = False
RESPONSE_TOKENS = 64
TEST_COLUMNS = {"document": pa.string()}

# In the manner of FLAN's templates for CNN/DailyMail (Wei et al. 2022), in fewer tokens.
TEMPLATES = (
    "Summarize the text below.\n\n{document}",
    "{document}\n\nSummarize the text above.",
    "{document}\n\nWrite a short summary of this text.",
    "Text: {document}\n\nSummary:",
    "{document}\n\nWhat is this text about, in brief?",
)


def input_text(record: Record) -> str:
    """The document."""
    return str(record["document"])


def label(record: Record) -> None:
    """There are no classes."""


def fields(record: Record, labels: Sequence[str]) -> dict[str, str]:
    """`document`."""
    return {"document": record["document"].strip()}


def templates(fields: dict[str, str], labels: Sequence[str]) -> tuple[str, ...]:
    """All of them suit every document."""
    return TEMPLATES


def target(record: Record) -> str:
    """The summary; its line breaks stay, because rougeLsum reads them as the borders of sentences."""
    return str(record["summary"])


def lost(record: Record, visible: str) -> bool:
    """Never: a summary is not a span, and the beginning of a document tells most of it."""
    return False


def references(record: Record) -> list[str]:
    """The one summary."""
    return [record["summary"].strip()]


def test_columns(record: Record, labels: Sequence[str]) -> dict[str, Any]:
    """`document`, whole."""
    return {"document": record["document"].strip()}
