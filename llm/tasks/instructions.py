"""Following instructions, in Alpaca's form: an instruction, an input that may be empty, and an
output.

Alpaca's preamble ("Below is an instruction that describes a task …") is left out: the chat tokens
around a prompt say the same in two tokens instead of forty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from llm.tasks.base import Record

COLUMNS = ("instruction", "input", "output")
METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu")
CUT = "input"
CLOSED = False
RESPONSE_TOKENS = 128
TEST_COLUMNS = {"instruction": pa.string(), "input": pa.string()}

TEMPLATES = (
    "{instruction}\n\n{input}",
    "{instruction}\n\nInput: {input}",
    "{input}\n\n{instruction}",
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:",
)
TEMPLATES_ALONE = (
    "{instruction}",
    "Instruction: {instruction}",
    "### Instruction:\n{instruction}\n\n### Response:",
)


def input_text(record: Record) -> str:
    """The instruction and its input."""
    return f"{record['instruction']}\n{record['input'] or ''}"


def label(record: Record) -> None:
    """There are no classes."""


def fields(record: Record, labels: Sequence[str]) -> dict[str, str]:
    """`instruction`, and `input`, which may be empty."""
    return {"instruction": record["instruction"].strip(), "input": (record["input"] or "").strip()}


def templates(fields: dict[str, str], labels: Sequence[str]) -> tuple[str, ...]:
    """With an input or without."""
    return TEMPLATES if fields["input"] else TEMPLATES_ALONE


def target(record: Record) -> str:
    """The output."""
    return str(record["output"])


def lost(record: Record, visible: str) -> bool:
    """Never: an output is not a span."""
    return False


def references(record: Record) -> list[str]:
    """The one output."""
    return [record["output"].strip()]


def test_columns(record: Record, labels: Sequence[str]) -> dict[str, Any]:
    """`instruction` and `input`, whole."""
    return fields(record, labels)
