"""Summarization: a document, and a summary of one or a few sentences."""

from __future__ import annotations

import pyarrow as pa

from llm.tasks.base import Record, Task


class Summarization(Task):
    """A document and its summary."""

    COLUMNS = ("document", "summary")
    METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu")
    CUT = "document"
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

    def target(self, record: Record) -> str:
        """Return the summary with its line breaks, at which rougeLsum separates sentences."""
        return str(record["summary"])
