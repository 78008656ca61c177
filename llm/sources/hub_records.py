"""Records of a Hugging Face data set, through the gate."""

from __future__ import annotations

from typing import Any

from llm.params import HubSource
from llm.runtime.progress import Progress
from llm.sources import hub
from llm.sources.manifest import joined
from llm.sources.record_filter import Gate
from llm.sources.resume import Restart


def write_hub(name: str, source: HubSource, gate: Gate, restart: Restart) -> dict[str, Any]:
    """Stream the records of the split, and of those for validation and test, to the gate.

    Returns:
        revision, licence and notes of the manifest.

    Raises:
        UserError: what is wrong with the source.
    """
    stamps = hub.stamps(source)
    restart.compare(stamps)
    notes: list[str] = restart.more.get("notes", [])
    sides = [(source.split, "train" if source.val_split or source.test_split else "")]
    sides += [(source.val_split, "validation")] if source.val_split else []
    sides += [(source.test_split, "test")] if source.test_split else []
    with Progress(name, None, "records") as progress:
        for number, (split, side) in enumerate(sides):
            if number < restart.input:
                continue
            shown = f"{source.id}/{split}"
            stream = hub.open_split(name, source, split)
            gate.check_columns(stream.columns, shown)
            begun = number == restart.input and restart.more.get("begun")
            rows, size = begun or (gate.writer.rows, gate.writer.bytes)
            for place, row in restart.rows(number, stream.rows(gate.shaper.keep)):
                gate.add(row, shown, split, side, stream.labels)
                progress.update(mb=f"{gate.writer.bytes / 1e6:.1f}")
                if (
                    source.max_documents is not None
                    and gate.writer.rows - rows >= source.max_documents
                ):
                    notes.append(
                        f"{split}: stopped after max_documents = {source.max_documents} records"
                    )
                    break
                if source.max_bytes is not None and gate.writer.bytes - size >= source.max_bytes:
                    notes.append(
                        f"{split}: stopped after max_bytes = {source.max_bytes} bytes of text"
                    )
                    break
                restart.note(gate, number, place, notes=notes, begun=(rows, size), stamps=stamps)
    return {
        "revision": hub.revision(source),
        "licence": hub.licence(source),
        "notes": joined(*notes),
    }
