"""Records of local and remote files, through the gate."""

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
from llm.sources.record_filter import Gate
from llm.sources.remote_files import fetch
from llm.sources.resume import Restart

PACKED, UNPACKED = (
    1.1,
    0.5,
)  # room that records take, for each byte of files that are compressed, or are not
HUB_NAME = re.compile(r"(train|validation|test)-\d{5}-of-\d{5}\.")


def write_files(
    name: str, source: FilesSource, gate: Gate, copies: Path, restart: Restart
) -> dict[str, Any]:
    """Send every row of the files to the gate.

    Args:
        copies: directory for remote files.

    Returns:
        revision, licence, kept, dropped, inputs and notes of the manifest.

    Raises:
        UserError: what is wrong with the source, with the file's name.
    """
    where = f"download.{name}"
    found = find(source.all_paths, f"{where}.paths")
    splits = _own_splits(source, where)
    named = not splits and bool(splits := _named_splits(found))
    if source.max_documents is None:
        room = sum(
            max(0, item.size()) * (PACKED if item.packed else UNPACKED)
            for item in found[restart.input :]
        )
        refuse_what_cannot_fit(
            f"{where}: the records", room, gate.writer.directory, "take less (max_documents)"
        )
    notes = restart.more.get("notes", ["the files' names say their splits"] if named else [])
    stopped = Counter[str]()
    stored: list[dict[str, Any]] = restart.more.get("stored", [])
    stamps: list[list[str]] = []  # of the files until now, with their names
    wanted = _pinned(source, found, where)
    came = Counter[str]()
    with Progress(name, sum(max(0, item.size()) for item in found), "B", scale=True) as progress:
        for number, remote in enumerate(found):
            item = fetch(remote, copies, partial(_fetched, progress, came))
            stamp = item.stamp()
            stamps.append([item.shown, stamp])
            if number == min(restart.input, len(found) - 1):
                restart.compare(stamps)
            split = splits.get(item.shown, "")
            stopped[split] += gate.kept[item.shown]  # by an earlier, killed call
            if number < restart.input:  # in `stored` already
                continue
            if source.max_documents is not None and stopped[split] >= source.max_documents:
                notes.append(f"{item.shown} was not read: max_documents was reached")
                stored.append(_stored(item, stamp, wanted))
                continue
            with open_table(
                item,
                source.format,
                gate.shaper.kind,
                gate.shaper.keep,
                source.encoding,
                source.header,
            ) as table:
                gate.check_columns(
                    table.columns, item.shown, table.format in ("csv", "tsv") and source.header
                )
                last = 0
                for place, row in restart.rows(number, table.rows):
                    before = gate.writer.rows
                    gate.add(row, item.shown, item.label, split, table.labels)
                    stopped[split] += gate.writer.rows - before
                    if source.max_documents is not None and stopped[split] >= source.max_documents:
                        break
                    restart.note(gate, number, place, notes=notes, stored=stored, stamps=stamps)
                    if (now := table.position()) - last > 1 << 16:
                        progress.update(now - last, rows=f"{gate.writer.rows:,}")
                        last = now
                progress.update(table.position() - last)
                notes += table.notes
            stored.append(_stored(item, stamp, wanted))
    if source.max_documents is not None and max(stopped.values()) >= source.max_documents:
        notes.append(f"stopped after max_documents = {source.max_documents} records")
    return {
        "revision": joined(source.revision or "", _revision(stored)),
        "licence": source.licence or NOT_STATED,
        "kept": {item.shown: gate.kept[item.shown] for item in found},
        "inputs": stored,
        "notes": joined(*notes),
    }


def _fetched(progress: Progress, came: Counter[str], count: int) -> None:
    """Show how much of the remote files is here."""
    came["bytes"] += count
    progress.update(0, fetched=f"{came['bytes'] / 1e6:.1f} MB")


def _pinned(source: FilesSource, found: list[Input], where: str) -> dict[str, str]:
    """The digests that files must have. Raises UserError for one of a file that is not there."""
    strange = sorted(set(source.sha256) - {item.shown for item in found})
    if strange:
        raise UserError(
            f"{where}.sha256: {strange[0]} is not among the files found ({', '.join(i.shown for i in found[:5])}"
            f"{', …' if len(found) > 5 else ''}). Write it as there."
        )
    return source.sha256


def _stored(item: Input, stamp: str, wanted: dict[str, str]) -> dict[str, Any]:
    """Path, size and digest of a file that was read.

    Raises:
        UserError: it is another file than before it was read, or than the params say.
    """
    digest = item.sha256()
    with reading(item):
        if item.stamp() != stamp:
            raise UserError(
                f"{item.shown}: changed while it was read. Rerun when whatever writes it has finished."
            )
        size = item.size()
    if wanted.get(item.shown, digest) != digest:
        raise UserError(
            f"{item.shown}: its SHA-256 is {digest}, expected {wanted[item.shown]}: it is damaged, or another version. "
            "Get the right one, or correct the param sha256."
        )
    return {"path": item.shown, "bytes": size, "sha256": digest}


def _own_splits(source: FilesSource, where: str) -> dict[str, str]:
    """Splits of files, where the params have test_paths or val_paths. Raises UserError for a file
    that is in two.
    """
    splits: dict[str, str] = {}
    keys: dict[str, str] = {}  # the file itself, not a link to it -> the param that names it
    for key, split in (("paths", "train"), ("val_paths", "validation"), ("test_paths", "test")):
        paths = getattr(source, key)
        for item in find(paths, f"{where}.{key}") if paths else []:
            before = keys.setdefault(item.shown if item.fs else os.path.realpath(item.path), key)
            if before != key:
                raise UserError(
                    f"{where}: {item.shown} is in {before} and in {key}; take it out of one of them."
                )
            splits[item.shown] = split
    return splits if source.val_paths or source.test_paths else {}


def _named_splits(found: list[Input]) -> dict[str, str]:
    """Splits of files that are all named as the Hugging Face hub does:
    train-00000-of-00001.parquet.
    """
    matches = {item.shown: HUB_NAME.match(item.name) for item in found}
    splits = {shown: match[1] for shown, match in matches.items() if match}
    return splits if len(splits) == len(found) and len(set(splits.values())) > 1 else {}


def _revision(stored: list[dict[str, Any]]) -> str:
    """One digest over those of the files."""
    return (
        "sha256:" + hashlib.sha256("".join(item["sha256"] for item in stored).encode()).hexdigest()
    )
