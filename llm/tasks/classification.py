"""Classification of a text, or of a pair of texts, into named classes.

The response is the class's name; the choices are the names that the training examples have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from llm.tasks.base import Record, Task

# Longest list of choices, in characters, that a prompt shows: a longer one crowds out the text.
LISTED = 160


class Classification(Task):
    """One text or a pair, and the name of its class."""

    COLUMNS = ("text", "text_pair", "label")
    METRICS = ("accuracy", "mcc", "f1", "f1_macro")  # f1: where two classes have an order
    CUT = "text"
    CLOSED = True
    SHOWN = ("text",)
    RESPONSE_TOKENS = 16
    TEST_COLUMNS = {"text": pa.string(), "choices": pa.list_(pa.string()), "label": pa.string()}

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

    def input_text(self, record: Record) -> str:
        """Return the text or the pair."""
        return f"{record['text']}\n{record.get('text_pair') or ''}"

    def label(self, record: Record) -> str:
        """Return the name of the class."""
        return str(record["label"]).strip()

    def fields(self, record: Record, labels: Sequence[str]) -> dict[str, str]:
        """Return `text`, `text_pair` (may be empty) and `choices`, the names as a list in prose."""
        names = list(labels)
        choices = ", ".join(names[:-1]) + f" or {names[-1]}" if len(names) > 1 else "".join(names)
        return {
            "text": record["text"].strip(),
            "text_pair": (record.get("text_pair") or "").strip(),
            "choices": choices,
        }

    def templates(self, fields: dict[str, str], labels: Sequence[str]) -> tuple[str, ...]:
        """Return the phrasings for one text or a pair; a short list of choices is shown."""
        listed = len(fields["choices"]) <= LISTED
        if fields["text_pair"]:
            return self.TEMPLATES_PAIR if listed else self.TEMPLATES_PAIR_UNLISTED
        return self.TEMPLATES if listed else self.TEMPLATES_UNLISTED

    def target(self, record: Record) -> str:
        """Return the name of the class."""
        return self.label(record)

    def test_columns(self, record: Record, labels: Sequence[str]) -> dict[str, Any]:
        """Return `text` (a pair is joined by an empty line), `choices` and `label`."""
        values = self.fields(record, labels)
        text = (
            f"{values['text']}\n\n{values['text_pair']}" if values["text_pair"] else values["text"]
        )
        return {"text": text, "choices": list(labels), "label": self.label(record)}
