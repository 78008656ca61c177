"""Following instructions, in Alpaca's form: an instruction, an input that may be empty, and an
output.

Alpaca's preamble ("Below is an instruction that describes a task …") is left out: the chat tokens
around a prompt say the same in two tokens instead of forty.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from llm.tasks.base import Record, Task


class Instructions(Task):
    """An instruction, an optional input, and an output."""

    COLUMNS = ("instruction", "input", "output")
    METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu")
    CUT = "input"
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

    def input_text(self, record: Record) -> str:
        """Return the instruction and its input."""
        return f"{record['instruction']}\n{record['input'] or ''}"

    def templates(self, fields: dict[str, str], labels: Sequence[str]) -> tuple[str, ...]:
        """Return the phrasings with or without an input."""
        return self.TEMPLATES if fields["input"] else self.TEMPLATES_ALONE

    def target(self, record: Record) -> str:
        """Return the output."""
        return str(record["output"])
