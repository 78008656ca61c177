"""From a source in params.yaml to `data/raw/<name>`: docs, files or a hub, all through one gate.

Every record passes the gate or is counted at it, with file, line and reason; past `max_rejected_fraction` the data set
is refused. The manifest says where the records came from, what was kept, and what was not.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llm import params, tasks
from llm.data import inputs, readers, streams
from llm.data.blend import write_mixture
from llm.data.fetch import fetch
from llm.data.raw import FIELDS, Writer, read
from llm.data.restart import Changed, Restart, clear
from llm.data.room import refuse_what_cannot_fit
from llm.data.shapes import MissingColumns, Rejected, Shaper
from llm.errors import UserError
from llm.io import write_json
from llm.progress import Progress

EXAMPLES = 20  # rejected records that the manifest shows
FOREIGN = 1 << 14  # bytes that are not UTF-8, of which the encoding is guessed
SHOWN = 5  # and that an error message shows
MAX_LABELS = 100  # classes that the manifest counts
NOT_STATED = "not stated"
PACKED, UNPACKED = 1.1, 0.5  # room that records take, for each byte of files that are compressed, or are not
HUB_NAME = re.compile(r"(train|validation|test)-\d{5}-of-\d{5}\.")


class Gate:
    """Shapes, checks, numbers and writes the records of one data set."""

    def __init__(self, name: str, shaper: Shaper, writer: Writer) -> None:
        self.name, self.shaper, self.writer = name, shaper, writer
        self.reasons: Counter[str] = Counter()
        self.examples: list[dict[str, Any]] = []
        self.kept: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.foreign = b""  # the beginnings of records that are not UTF-8
        self._ids: set[int] = set()  # 8-byte digests; pretraining ids are places and unique by themselves

    def add(
        self, row: readers.Row, file: str, label: str, split: str, class_names: dict[str, list[str]] | None = None
    ) -> None:
        """Write a row's record, or count why not.

        Args:
            file: as messages and the manifest name it.
            label: the same, short and free of the machine, for ids.
            split: of the file, where the record itself says nothing.
            class_names: names of integer classes that the file brings.
        """
        if row.record is None:
            self.reject(file, row.line, row.reason, row.detail)
            return
        try:
            record = self.shaper.shape(row.record, class_names or {})
        except Rejected as rejected:
            own = row.record.get("id")  # a whole SQuAD file may be one line
            self.reject(file, row.line, rejected.reason, rejected.detail + (f" (id {own})" if own else ""))
            if rejected.reason == "not UTF-8" and len(self.foreign) < FOREIGN:
                text = " ".join(value for value in row.record.values() if isinstance(value, str))
                self.foreign += text[:FOREIGN].encode("utf-8", "surrogateescape")
            return
        place = f"{label}:{row.line}"
        if "source" in record:
            record["source"] = record["source"] or label
        else:
            record["split"] = split or record["split"]
        record["id"] = self._unique(record, place)
        if "group" in record:
            record["group"] = record["group"] or record["id"]
        if "label" in record and (len(self.labels) <= MAX_LABELS or record["label"] in self.labels):
            self.labels[record["label"]] += 1
        self.writer.write(record)
        self.kept[file] += 1

    def _unique(self, record: dict[str, Any], place: str) -> str:
        """The record's own id, else a digest of its text, else (pretraining) its place; if repeated, with the place."""
        own = record["id"]
        if not own and self.shaper.kind == "pretrain":
            return place
        if not own:
            body = json.dumps({k: v for k, v in record.items() if k not in ("id", "group", "split")}, sort_keys=True)
            own = hashlib.sha256(body.encode()).hexdigest()[:16]
        key = _key(own)
        if key in self._ids:
            return f"{own}@{place}"
        self._ids.add(key)
        return own

    def counted(self) -> dict[str, Any]:
        """What was counted until now, for `go_on`."""
        counters = {name: dict(getattr(self, name)) for name in ("reasons", "kept", "labels")}
        foreign = self.foreign.decode("latin-1")
        return {**counters, "examples": list(self.examples), "foreign": foreign, "own_ids": bool(self._ids)}

    def go_on(self, counted: dict[str, Any]) -> None:
        """Take over what was counted when the writer's parts had just been written; ids are read from those."""
        for name in ("reasons", "kept", "labels"):
            getattr(self, name).update(counted[name])
        self.examples = list(counted["examples"])
        self.foreign = counted["foreign"].encode("latin-1")
        if counted["own_ids"]:
            self._ids = {_key(record["id"]) for record in read(self.writer.directory, ["id"])}

    def reject(self, file: str, line: int, reason: str, detail: str = "") -> None:
        """Count a record that is set aside."""
        self.reasons[reason] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append({"file": file, "line": line, "reason": f"{reason}: {detail}" if detail else reason})

    def check(self, allowed: float) -> None:
        """Raises UserError where there are no records, or more than the allowed fraction were rejected."""
        rejected = self.reasons.total()
        seen = self.writer.rows + rejected
        if not rejected and not seen:
            raise UserError(f"download.{self.name}: the source holds no records. Check its paths, or its split.")
        if not self.writer.rows or rejected > allowed * seen:
            lines = "".join(f"\n  {e['file']}:{e['line']}: {e['reason']}" for e in self.examples[:SHOWN])
            more = f"\n  … and {rejected - SHOWN:,} more" if rejected > SHOWN else ""
            advice = f" {self.shaper.advice()}." if self.reasons["missing column"] else ""
            if self.foreign and (guess := streams.looks_like(self.foreign)):
                advice += f" The text looks like {guess}: if it is, set download.{self.name}.encoding: {guess}."
            raise UserError(
                f"download.{self.name}: {rejected:,} of {seen:,} records have the wrong shape, more than "
                f"max_rejected_fraction {allowed:g} allows:{lines}{more}\nMend them, or raise "
                f"download.{self.name}.max_rejected_fraction to leave them out.{advice}"
            )


def _key(own: str) -> int:
    return int.from_bytes(hashlib.blake2b(own.encode(), digest_size=8).digest(), "big")


def write_raw(name: str, kind: str, source: params.Source, out: Path, copies: Path | None = None) -> dict[str, Any]:
    """Write the records of one data set.

    Args:
        name: of the data set, under `download`.
        kind: one of `FIELDS` or of `llm.tasks`: the columns that the records get.
        source: its params.
        out: directory for part-NNNNN.parquet and manifest.json; what a killed call for the same source left there is
            gone on with. How far it came stands beside it, in `<out>.part.json`.
        copies: directory for remote files, which a later attempt finds again; None: a temporary one.

    Returns:
        The manifest.

    Raises:
        UserError: whatever is wrong with the source; the message names the place.
    """
    if kind not in FIELDS and kind not in tasks.kinds():
        known = dict.fromkeys([*FIELDS, *tasks.kinds()])
        raise UserError(
            f"download.{name}: kind {kind!r} is unknown; expected {', '.join(k for k in known if k != 'pretrain')}. "
            f"Set download.{name}.kind."
        )
    if isinstance(source, params.MixtureSource):
        return _mixture(name, source, out, copies)
    restart = Restart(out, {"name": name, "kind": kind, "source": source.model_dump(mode="json")})
    try:
        manifest = _single(name, kind, source, out, copies, restart)
    except Changed as changed:
        print(f"download: {name} begins anew: {changed}", flush=True)
        restart.end()
        return write_raw(name, kind, source, out, copies)
    restart.end()
    return manifest


def _single(
    name: str, kind: str, source: params.SingleSource, out: Path, copies: Path | None, restart: Restart
) -> dict[str, Any]:
    with Writer(out, kind, place=restart.writer) as writer:
        if isinstance(source, params.DocsSource):
            gate = Gate(name, Shaper(name, kind, {}, None), writer)
            about = _docs(kind, source, gate)
        else:
            gate = Gate(name, Shaper(name, kind, source.columns, source.labels), writer)
            if restart.writer is not None:
                gate.go_on(restart.more["gate"])
                print(f"download: {name} continues after {writer.rows:,} records", flush=True)
            if isinstance(source, params.FilesSource):
                with nullcontext(copies) if copies else TemporaryDirectory(prefix="llm-") as folder:
                    about = _files(name, source, gate, Path(folder), restart)
            else:
                about = _hub(name, source, gate, restart)
        gate.check(source.max_rejected_fraction)
    manifest = {
        "name": name,
        "kind": kind,
        "source": source.model_dump(mode="json"),
        "revision": about["revision"],
        "licence": about["licence"],
        "rows": writer.rows,
        "bytes": writer.bytes,
        "files": writer.files,
        "kept": about.get("kept", dict(gate.kept)),
        "dropped": about.get("dropped", {}),
        "rejected": {
            "count": gate.reasons.total(),
            "by_reason": dict(sorted(gate.reasons.items())),
            "examples": gate.examples,
        },
        "notes": about["notes"],
    }
    if 0 < len(gate.labels) <= MAX_LABELS:
        manifest["labels"] = dict(sorted(gate.labels.items()))
        if all(label.isdecimal() for label in gate.labels):
            manifest["notes"] = _join(
                manifest["notes"], f"the classes are numbers; give them names with download.{name}.labels"
            )
    if "inputs" in about:
        manifest["inputs"] = about["inputs"]
    write_json(Path(out) / "manifest.json", manifest)
    return manifest


def _mixture(name: str, source: params.MixtureSource, out: Path, copies: Path | None) -> dict[str, Any]:
    """Write a mixture's records and manifest; `sources` of the manifest holds those of its sources.

    After a kill the source that was being read goes on at its last finished part; those that were whole by then are
    read again (of the copies, where they are remote), and so is what had been taken of them.
    """
    clear(out)

    def write(part: str, inner: params.Source, directory: Path) -> dict[str, Any]:
        return write_raw(f"{name}.sources.{part}", "pretrain", inner, directory, copies)

    writer, told = write_mixture(source, out, write)
    reasons = Counter[str]()
    for part in told.values():
        reasons.update(part["rejected"]["by_reason"])
    manifest = {
        "name": name,
        "kind": "pretrain",
        "source": source.model_dump(mode="json"),
        "revision": _join(*(f"{part}: {about['revision']}" for part, about in told.items())),
        "licence": _join(*(f"{part}: {about['licence']}" for part, about in told.items())),
        "rows": writer.rows,
        "bytes": writer.bytes,
        "files": writer.files,
        "kept": {part: about["taken_rows"] for part, about in told.items()},
        "dropped": {
            f"{part}: beyond its weight": about["rows"] - about["taken_rows"]
            for part, about in told.items()
            if about["taken_rows"] < about["rows"]
        },
        "rejected": {
            "count": reasons.total(),
            "by_reason": dict(sorted(reasons.items())),
            "examples": [example for about in told.values() for example in about["rejected"]["examples"]][:EXAMPLES],
        },
        "notes": _join(*(f"{part}: {about['notes']}" for part, about in told.items() if about["notes"])),
        "sources": told,
    }
    write_json(Path(out) / "manifest.json", manifest)
    return manifest


def _docs(kind: str, source: params.DocsSource, gate: Gate) -> dict[str, Any]:
    from llm.data import docs

    records, about = docs.records(kind, source.packages)
    beyond = 0
    with Progress(gate.name, None, "records") as progress:
        for number, record in enumerate(records, 1):
            if source.max_documents is not None and number > source.max_documents:
                beyond += 1
                continue
            _check_documented(record, kind)
            gate.writer.write(record)
            if "label" in record:
                gate.labels[record["label"]] += 1
            progress.update(mb=f"{gate.writer.bytes / 1e6:.1f}")
    if beyond:
        about["dropped"] = {**about["dropped"], "beyond max_documents": beyond}
    return about


def _check_documented(record: dict[str, Any], kind: str) -> None:
    assert tuple(sorted(record)) == tuple(sorted(FIELDS[kind])), f"docs made {sorted(record)} for {kind}"


def _files(name: str, source: params.FilesSource, gate: Gate, copies: Path, restart: Restart) -> dict[str, Any]:
    where = f"download.{name}"
    found = inputs.find([*source.paths, *source.test_paths], f"{where}.paths")
    held_out = inputs.find(source.test_paths, f"{where}.test_paths") if source.test_paths else []
    tests = {item.shown for item in held_out}
    both = [item.shown for item in inputs.find(source.paths, f"{where}.paths") if item.shown in tests]
    if both:
        raise UserError(f"{where}: {both[0]} is in paths and in test_paths; take it out of one of them.")
    named = {} if tests else _named_splits(found)
    if source.max_documents is None:
        room = sum(max(0, item.size()) * (PACKED if item.packed else UNPACKED) for item in found[restart.input :])
        refuse_what_cannot_fit(f"{where}: the records", room, gate.writer.directory, "take less (max_documents)")
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
            split = "test" if item.shown in tests else "train" if tests else named.get(item.shown, "")
            stopped[split] += gate.kept[item.shown]  # by an earlier, killed call
            if number < restart.input:  # in `stored` already
                continue
            if source.max_documents is not None and stopped[split] >= source.max_documents:
                notes.append(f"{item.shown} was not read: max_documents was reached")
                stored.append(_stored(item, stamp, wanted))
                continue
            with readers.open_table(item, source.format, gate.shaper.kind, gate.shaper.keep, source.encoding) as table:
                _check_columns(table, item.shown, gate.shaper)
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
        "revision": _join(source.revision or "", _revision(stored)),
        "licence": source.licence or NOT_STATED,
        "kept": {item.shown: gate.kept[item.shown] for item in found},
        "inputs": stored,
        "notes": _join(*notes),
    }


def _fetched(progress: Progress, came: Counter[str], count: int) -> None:
    """Show how much of the remote files is here."""
    came["bytes"] += count
    progress.update(0, fetched=f"{came['bytes'] / 1e6:.1f} MB")


def _pinned(source: params.FilesSource, found: list[inputs.Input], where: str) -> dict[str, str]:
    """The digests that files must have. Raises UserError for one of a file that is not there."""
    strange = sorted(set(source.sha256) - {item.shown for item in found})
    if strange:
        raise UserError(
            f"{where}.sha256: {strange[0]} is not among the files found ({', '.join(i.shown for i in found[:5])}"
            f"{', …' if len(found) > 5 else ''}). Write it as there."
        )
    return source.sha256


def _stored(item: inputs.Input, stamp: str, wanted: dict[str, str]) -> dict[str, Any]:
    """Path, size and digest of a file that was read.

    Raises:
        UserError: it is another file than before it was read, or than the params say.
    """
    digest = item.sha256()
    with inputs.reading(item):
        if item.stamp() != stamp:
            raise UserError(f"{item.shown}: changed while it was read. Rerun when whatever writes it has finished.")
        size = item.size()
    if wanted.get(item.shown, digest) != digest:
        raise UserError(
            f"{item.shown}: its SHA-256 is {digest}, expected {wanted[item.shown]}: it is damaged, or another version. "
            "Get the right one, or correct the param sha256."
        )
    return {"path": item.shown, "bytes": size, "sha256": digest}


def _named_splits(found: list[inputs.Input]) -> dict[str, str]:
    """Splits of files that are all named as the Hugging Face hub does: train-00000-of-00001.parquet."""
    matches = {item.shown: HUB_NAME.match(item.name) for item in found}
    splits = {shown: match[1] for shown, match in matches.items() if match}
    return splits if len(splits) == len(found) and len(set(splits.values())) > 1 else {}


def _check_columns(table: readers.Table, file: str, shaper: Shaper) -> None:
    """A file whose columns are the same for all rows is refused at once where they are not the ones needed."""
    if table.columns is None:
        return
    try:
        shaper.mapping(table.columns)
    except MissingColumns as error:
        raise UserError(f"{file}: {error.detail}. {shaper.advice()}.") from None


def _hub(name: str, source: params.HubSource, gate: Gate, restart: Restart) -> dict[str, Any]:
    from llm.data import hub

    stamps = hub.stamps(source)
    restart.compare(stamps)
    notes: list[str] = restart.more.get("notes", [])
    sides = [(source.split, "train" if source.test_split else "")]
    if source.test_split:
        sides.append((source.test_split, "test"))
    with Progress(name, None, "records") as progress:
        for number, (split, side) in enumerate(sides):
            if number < restart.input:
                continue
            shown = f"{source.id}/{split}"
            stream = hub.open_split(name, source, split)
            _check_columns(readers.Table("hub", stream.columns, {}, iter(()), int, []), shown, gate.shaper)
            begun = number == restart.input and restart.more.get("begun")
            rows, size = begun or (gate.writer.rows, gate.writer.bytes)
            for place, row in restart.rows(number, stream.rows(gate.shaper.keep)):
                gate.add(row, shown, split, side, stream.labels)
                progress.update(mb=f"{gate.writer.bytes / 1e6:.1f}")
                if source.max_documents is not None and gate.writer.rows - rows >= source.max_documents:
                    notes.append(f"{split}: stopped after max_documents = {source.max_documents} records")
                    break
                if source.max_bytes is not None and gate.writer.bytes - size >= source.max_bytes:
                    notes.append(f"{split}: stopped after max_bytes = {source.max_bytes} bytes of text")
                    break
                restart.note(gate, number, place, notes=notes, begun=(rows, size), stamps=stamps)
    return {"revision": hub.revision(source), "licence": hub.licence(source), "notes": _join(*notes)}


def _revision(stored: list[dict[str, Any]]) -> str:
    """One digest over those of the files."""
    return "sha256:" + hashlib.sha256("".join(item["sha256"] for item in stored).encode()).hexdigest()


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def fingerprint(name: str, kind: str, source: params.Source) -> str:
    """Digest of all that a data set depends on: params, code, versions, and its files' names, sizes and times.

    The times keep a second look cheap; they decide only whether an interrupted stage's finished work is used again.
    """
    digest = hashlib.sha256(json.dumps([name, kind, source.model_dump(mode="json")], sort_keys=True).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(platform.python_version().encode())
    for line in sorted({f"{d.name}=={d.version}" for d in importlib.metadata.distributions()}):
        digest.update(line.encode())
    for inner in source.sources.values() if isinstance(source, params.MixtureSource) else [source]:
        if isinstance(inner, params.FilesSource):
            for item in inputs.find([*inner.paths, *inner.test_paths], f"download.{name}.paths"):
                with inputs.reading(item):
                    digest.update(f"{item.shown} {item.stamp()}".encode())
    return digest.hexdigest()[:16]


def datasets_of(p: params.Params) -> Iterator[tuple[str, str, params.Source]]:
    """Name, kind and source of each data set of the params, pretraining first."""
    for name in sorted(p.download, key=lambda name: (name != "pretrain", list(p.download).index(name))):
        yield name, "pretrain" if name == "pretrain" else p.download[name].kind or name, p.download[name]
