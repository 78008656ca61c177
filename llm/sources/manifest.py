"""What `data/raw/<name>/manifest.json` says: where the records came from, what was kept, and what
was not.
"""

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
    """The manifest of what a writer wrote.

    Args:
        kept: records by file (docs: by package; a mixture: by source).
        dropped: records that were left out for no fault of their own, by reason.
        reasons: the rejected records, by reason.
        examples: some of these, with file, line and reason.
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
    """Notes that are not empty, in one line."""
    return "; ".join(note for note in notes if note)
