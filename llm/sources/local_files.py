"""Records of local and remote files, written through the filter."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from llm.errors import UserError
from llm.params import FilesSource
from llm.runtime.disk import refuse_what_cannot_fit
from llm.runtime.progress import Progress
from llm.sources.manifest import NOT_STATED, joined
from llm.sources.readers.open import open_table
from llm.sources.readers.paths import Input, find, reading
from llm.sources.record_filter import RecordFilter
from llm.sources.remote_files import fetch
from llm.sources.resume import SavedProgress

# Disk space of the records for each byte of compressed and of uncompressed files.
PACKED, UNPACKED = 1.1, 0.5
HUB_NAME = re.compile(r"(train|validation|test)-\d{5}-of-\d{5}\.")


def write_files(
    name: str, source: FilesSource, record_filter: RecordFilter, copies: Path, saved: SavedProgress
) -> dict[str, Any]:
    """Write the records of the files.

    Args:
        copies: directory for copies of remote files.

    Returns:
        The manifest's entries revision, licence, kept, inputs and notes.

    Raises:
        UserError: a file or a param is invalid; the message names it.
    """
    where = f"download.{name}"
    files = find(source.all_paths, f"{where}.paths")
    splits = _own_splits(source, where)
    named = not splits and bool(splits := _named_splits(files))
    if source.max_documents is None:
        space = sum(
            max(0, item.size()) * (PACKED if item.packed else UNPACKED)
            for item in files[saved.input :]
        )
        refuse_what_cannot_fit(
            f"{where}: the records",
            space,
            record_filter.writer.directory,
            "take less (max_documents)",
        )
    notes = saved.more.get("notes", ["the files' names say their splits"] if named else [])
    stopped = Counter[str]()
    stored: list[dict[str, Any]] = saved.more.get("stored", [])
    stamps: list[list[str]] = []  # name and stamp of each file so far
    wanted = _pinned(source, files, where)
    fetched = Counter[str]()
    with Progress(name, sum(max(0, item.size()) for item in files), "B", scale=True) as progress:
        for number, remote in enumerate(files):
            item = fetch(remote, copies, partial(_show_fetched, progress, fetched))
            stamp = item.stamp()
            stamps.append([item.title, stamp])
            if number == min(saved.input, len(files) - 1):
                saved.check_inputs(stamps)
            split = splits.get(item.title, "")
            stopped[split] += record_filter.kept[item.title]  # by an earlier, killed call
            if number < saved.input:  # already in `stored`
                continue
            if source.max_documents is not None and stopped[split] >= source.max_documents:
                notes.append(f"{item.title} was not read: max_documents was reached")
                stored.append(_stored(item, stamp, wanted))
                continue
            with open_table(
                item,
                source.format,
                record_filter.schema.kind,
                record_filter.schema.keep,
                source.encoding,
                source.header,
            ) as table:
                record_filter.check_columns(
                    table.columns, item.title, table.format in ("csv", "tsv") and source.header
                )
                last = 0
                for row_number, row in saved.remaining(number, table.rows):
                    before = record_filter.writer.rows
                    record_filter.add(row, item.title, item.label, split, table.labels)
                    stopped[split] += record_filter.writer.rows - before
                    if source.max_documents is not None and stopped[split] >= source.max_documents:
                        break
                    saved.update(
                        record_filter, number, row_number, notes=notes, stored=stored, stamps=stamps
                    )
                    if (now := table.position()) - last > 1 << 16:
                        progress.update(now - last, rows=f"{record_filter.writer.rows:,}")
                        last = now
                progress.update(table.position() - last)
                notes += table.notes
            stored.append(_stored(item, stamp, wanted))
    if source.max_documents is not None and max(stopped.values()) >= source.max_documents:
        notes.append(f"stopped after max_documents = {source.max_documents} records")
    return {
        "revision": joined(source.revision or "", _revision(stored)),
        "licence": source.licence or NOT_STATED,
        "kept": {item.title: record_filter.kept[item.title] for item in files},
        "inputs": stored,
        "notes": joined(*notes),
    }


def _show_fetched(progress: Progress, fetched: Counter[str], count: int) -> None:
    """Show how much of the remote files was fetched."""
    fetched["bytes"] += count
    progress.update(0, fetched=f"{fetched['bytes'] / 1e6:.1f} MB")


def _pinned(source: FilesSource, files: list[Input], where: str) -> dict[str, str]:
    """Return the digests that files must have.

    Raises:
        UserError: a digest names a file that is not among them.
    """
    unknown = sorted(set(source.sha256) - {item.title for item in files})
    if unknown:
        raise UserError(
            f"{where}.sha256: {unknown[0]} is not among the files found ({', '.join(i.title for i in files[:5])}"
            f"{', …' if len(files) > 5 else ''}). Write it as there."
        )
    return source.sha256


def _stored(item: Input, stamp: str, wanted: dict[str, str]) -> dict[str, Any]:
    """Return path, size and digest of a file that was read.

    Raises:
        UserError: the file changed while it was read, or does not have the digest in the params.
    """
    digest = item.sha256()
    with reading(item):
        if item.stamp() != stamp:
            raise UserError(
                f"{item.title}: changed while it was read. Rerun when whatever writes it has finished."
            )
        size = item.size()
    if wanted.get(item.title, digest) != digest:
        raise UserError(
            f"{item.title}: its SHA-256 is {digest}, expected {wanted[item.title]}: it is damaged, or another version. "
            "Get the right one, or correct the param sha256."
        )
    return {"path": item.title, "bytes": size, "sha256": digest}


def _own_splits(source: FilesSource, where: str) -> dict[str, str]:
    """Return the split of each file where the params have test_paths or val_paths, else nothing.

    Raises:
        UserError: a file is in two splits.
    """
    splits: dict[str, str] = {}
    keys: dict[str, str] = {}  # file, with links resolved -> the param that names it
    for key, split in (("paths", "train"), ("val_paths", "validation"), ("test_paths", "test")):
        paths = getattr(source, key)
        for item in find(paths, f"{where}.{key}") if paths else []:
            before = keys.setdefault(item.title if item.fs else os.path.realpath(item.path), key)
            if before != key:
                raise UserError(
                    f"{where}: {item.title} is in {before} and in {key}; take it out of one of them."
                )
            splits[item.title] = split
    return splits if source.val_paths or source.test_paths else {}


def _named_splits(files: list[Input]) -> dict[str, str]:
    """Return the split of each file where all have the hub's names: train-00000-of-00001.parquet."""
    matches = {item.title: HUB_NAME.match(item.name) for item in files}
    splits = {title: match[1] for title, match in matches.items() if match}
    return splits if len(splits) == len(files) and len(set(splits.values())) > 1 else {}


def _revision(stored: list[dict[str, Any]]) -> str:
    """Return one digest over the digests of the files."""
    return (
        "sha256:" + hashlib.sha256("".join(item["sha256"] for item in stored).encode()).hexdigest()
    )
