"""The two rules by which evaluation cuts text: into sentences, and (`llm.data.ngrams`) into words."""

from __future__ import annotations

import re

from llm.data.ngrams import words

__all__ = ["sentences", "words"]

# A sentence ends at `.`, `!` or `?` (and a closing quote or bracket) before white space and a capital, a digit or an
# opening quote or bracket; not after "e.g.", "i.e.", "cf.", "vs.", or an initial such as "J.".
_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)\]]))"
    r"(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bcf\.)(?<!\bvs\.)(?<!\b[A-Z]\.)"
    r"\s+(?=[\"'“‘(\[`]*[A-Z0-9])"
)
_LINES = re.compile(r"\n+")
_PARAGRAPHS = re.compile(r"\n[ \t]*\n\s*")


def sentences(text: str, lines: bool = False) -> list[str]:
    """Sentences of a text, stripped, none empty.

    lines: every line break ends a sentence (a summary written a sentence a line); otherwise only an empty line does,
        because documents are often wrapped.
    """
    blocks = (_LINES if lines else _PARAGRAPHS).split(text)
    return [part for block in blocks for sentence in _END.split(block) if (part := sentence.strip())]
