"""The manifest `data/raw/<name>/manifest.json`: origin, kept and rejected records."""

from __future__ import annotations

from collections import Counter
from typing import Any

from llm.params import Source
from llm.sources.raw import Writer

NOT_STATED = "not stated"


def manifest(
    name: str,
    kind: str,
    source: Source,
    writer: Writer,
    *,
    revision: str,
    licence: str,
    kept: dict[str, int],
    dropped: dict[str, int],
    reasons: Counter[str],
    examples: list[dict[str, Any]],
    notes: str,
) -> dict[str, Any]:
    """Return the manifest of the records that a writer wrote.

    Args:
        kept: records by file (docs: by package; a mixture: by source).
        dropped: valid records that were left out, by reason.
        reasons: rejected records, by reason.
        examples: some rejected records, with file, line and reason.
    """
    return {
        "name": name,
        "kind": kind,
        "source": source.model_dump(mode="json"),
        "revision": revision,
        "licence": licence,
        "rows": writer.rows,
        "bytes": writer.bytes,
        "files": writer.files,
        "kept": kept,
        "dropped": dropped,
        "rejected": {
            "count": reasons.total(),
            "by_reason": dict(sorted(reasons.items())),
            "examples": examples,
        },
        "notes": notes,
    }


def joined(*notes: str) -> str:
    """Join the notes that are not empty in one line."""
    return "; ".join(note for note in notes if note)
