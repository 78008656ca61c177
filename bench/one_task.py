"""A finetuning task of a few records: `tokenize` refuses params whose tasks have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAME = "summarization"


def write(raw: Path) -> None:
    """Write its records to data/raw."""
    from llm.runtime.io import write_json
    from llm.sources.raw import Writer

    with Writer(raw / NAME, NAME) as writer:
        for i in range(100):
            text = {"document": f"document {i}", "summary": f"summary {i}"}
            writer.write({"id": f"s{i}", "group": f"s{i}", "split": "", **text})
    write_json(
        raw / NAME / "manifest.json", {"kind": NAME, "rows": writer.rows, "bytes": writer.bytes}
    )


def alone(params: dict[str, Any]) -> None:
    """Take all other tasks out of the params."""
    params["download"] = {name: params["download"][name] for name in ("pretrain", NAME)}
    params["mix"]["tasks"] = {NAME: params["mix"]["tasks"][NAME]}
