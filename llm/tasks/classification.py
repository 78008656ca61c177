"""Classification of a text, or of a pair of texts, into named classes.

The response is the class's name; the choices are the names that the training examples have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from llm.tasks.base import Record

COLUMNS = ("text", "text_pair", "label")
METRICS = ("accuracy", "mcc", "f1", "f1_macro")  # f1: where two classes have an order
CUT = "text"
CLOSED = True
RESPONSE_TOKENS = 16
TEST_COLUMNS = {"text": pa.string(), "choices": pa.list_(pa.string()), "label": pa.string()}
# characters of choices that a prompt lists at most; longer lists would crowd out a small model's
# text
LISTED = 160

TEMPLATES = (
    "{text}\n\nWhich of these fits the text: {choices}?",
    "Classify the text as one of: {choices}.\n\n{text}",
    "{text}\n\nOptions: {choices}\n\nCategory:",
    "Which category does the text belong to: {choices}?\n\n{text}",
)
TEMPLATES_UNLISTED = (
    "{text}\n\nWhich category fits the text?",
    "Classify the text.\n\n{text}",
    "{text}\n\nCategory:",
    "Which category does the text belong to?\n\n{text}",
)
TEMPLATES_PAIR = (
    "Text 1: {text}\n\nText 2: {text_pair}\n\nHow do they relate: {choices}?",
    "{text}\n\n{text_pair}\n\nWhich of these describes the two texts: {choices}?",
    "Classify the pair as one of: {choices}.\n\nText 1: {text}\n\nText 2: {text_pair}",
)
TEMPLATES_PAIR_UNLISTED = (
    "Text 1: {text}\n\nText 2: {text_pair}\n\nHow do they relate?",
    "{text}\n\n{text_pair}\n\nWhich category describes the two texts?",
    "Classify the pair.\n\nText 1: {text}\n\nText 2: {text_pair}",
)


def input_text(record: Record) -> str:
    """The text, or the pair."""
    return f"{record['text']}\n{record.get('text_pair') or ''}"


def label(record: Record) -> str:
    """The class's name."""
    return str(record["label"]).strip()


def fields(record: Record, labels: Sequence[str]) -> dict[str, str]:
    """`text`, `text_pair` (empty where there is none) and `choices`, the names as a list in prose."""
    names = list(labels)
    choices = ", ".join(names[:-1]) + f" or {names[-1]}" if len(names) > 1 else "".join(names)
    return {
        "text": record["text"].strip(),
        "text_pair": (record.get("text_pair") or "").strip(),
        "choices": choices,
    }


def templates(fields: dict[str, str], labels: Sequence[str]) -> tuple[str, ...]:
    """For one text or for a pair; with the choices where they are few."""
    listed = len(fields["choices"]) <= LISTED
    if fields["text_pair"]:
        return TEMPLATES_PAIR if listed else TEMPLATES_PAIR_UNLISTED
    return TEMPLATES if listed else TEMPLATES_UNLISTED


def target(record: Record) -> str:
    """The class's name."""
    return label(record)


def lost(record: Record, visible: str) -> bool:
    """Never: a class is not a span."""
    return False


def references(record: Record) -> list[str]:
    """The class's name."""
    return [label(record)]


def test_columns(record: Record, labels: Sequence[str]) -> dict[str, Any]:
    """`text` (a pair with an empty line between), `choices` and `label`."""
    values = fields(record, labels)
    text = f"{values['text']}\n\n{values['text_pair']}" if values["text_pair"] else values["text"]
    return {"text": text, "choices": list(labels), "label": label(record)}
