"""Records of a Hugging Face data set, written through the filter."""

from __future__ import annotations

import math
from typing import Any

from llm.params import HubSource
from llm.runtime.progress import Progress
from llm.sources import hub
from llm.sources.manifest import joined
from llm.sources.record_filter import RecordFilter
from llm.sources.resume import SavedProgress


def write_hub(
    name: str, source: HubSource, record_filter: RecordFilter, saved: SavedProgress
) -> dict[str, Any]:
    """Write the records of the split, and of those for validation and test.

    Returns:
        The manifest's entries revision, licence and notes.

    Raises:
        UserError: the source is invalid or unreachable.
    """
    stamps, writer = hub.stamps(source), record_filter.writer
    saved.check_inputs(stamps)
    notes: list[str] = saved.more.get("notes", [])
    sides = [(source.split, "train" if source.val_split or source.test_split else "")]
    sides += [(source.val_split, "validation")] if source.val_split else []
    sides += [(source.test_split, "test")] if source.test_split else []
    with Progress(name, None, "records") as progress:
        for number, (split, side) in enumerate(sides):
            if number < saved.input:
                continue
            title = f"{source.id}/{split}"
            stream = hub.open_split(name, source, split)
            record_filter.check_columns(stream.columns, title)
            # rows and bytes before this split
            begun = (number == saved.input and saved.more.get("begun")) or (
                writer.rows,
                writer.bytes,
            )
            for row_number, row in saved.remaining(number, stream.rows(record_filter.schema.keep)):
                record_filter.add(row, title, split, side, stream.labels)
                progress.update(mb=f"{writer.bytes / 1e6:.1f}")
                if writer.rows - begun[0] >= (source.max_documents or math.inf):
                    limit = f"max_documents = {source.max_documents} records"
                elif writer.bytes - begun[1] >= (source.max_bytes or math.inf):
                    limit = f"max_bytes = {source.max_bytes} bytes of text"
                else:
                    more = {"notes": notes, "begun": begun, "stamps": stamps}
                    saved.update(record_filter, number, row_number, **more)
                    continue
                notes.append(f"{split}: stopped after {limit}")
                break
    return {
        "revision": hub.revision(source),
        "licence": hub.licence(source),
        "notes": joined(*notes),
    }
