"""From a source in params.yaml to `data/raw/<name>`: docs, files or a hub, all through one gate.

Every record passes the gate or is counted at it, with file, line and reason; past
`max_rejected_fraction` the data set is refused. The manifest says where the records came from, what
was kept, and what was not."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llm import params, tasks
from llm.addresses import all_public
from llm.errors import UserError
from llm.runtime.io import write_json
from llm.runtime.progress import Progress
from llm.runtime.provenance import code_digest
from llm.sources.hub_records import write_hub
from llm.sources.local_files import write_files
from llm.sources.manifest import joined, manifest
from llm.sources.mixture import write_mixture
from llm.sources.raw import FIELDS, Writer
from llm.sources.readers import paths
from llm.sources.record_filter import EXAMPLES, MAX_LABELS, Gate
from llm.sources.record_schema import Shaper
from llm.sources.resume import Changed, Restart, clear


def write_raw(
    name: str, kind: str, source: params.Source, out: Path, copies: Path | None = None
) -> dict[str, Any]:
    """Write the records of one data set.

    Args:
        name: of the data set, under `download`.
        kind: one of `FIELDS` or of `llm.tasks`: the columns that the records get.
        source: its params.
        out: directory for part-NNNNN.parquet and manifest.json; what a killed call for the same
            source left there is gone on with. How far it came stands beside it, in
            `<out>.part.json`.
        copies: directory for remote files, which a later attempt finds again; None: a temporary
            one.

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
    restart = Restart(
        out, {"name": name, "kind": kind, "source": all_public(source.model_dump(mode="json"))}
    )
    try:
        written = _single(name, kind, source, out, copies, restart)
    except Changed as changed:
        print(f"download: {name} begins anew: {changed}", flush=True)
        restart.end()
        return write_raw(name, kind, source, out, copies)
    restart.end()
    return written


def _single(
    name: str,
    kind: str,
    source: params.SingleSource,
    out: Path,
    copies: Path | None,
    restart: Restart,
) -> dict[str, Any]:
    with Writer(out, kind, place=restart.writer) as writer:
        if isinstance(source, params.DocsSource):
            gate = Gate(name, Shaper(name, kind, {}, None), writer)
            about = _write_docs(kind, source, gate)
        else:
            gate = Gate(name, Shaper(name, kind, source.columns, source.labels), writer)
            if restart.writer is not None:
                gate.go_on(restart.more["gate"])
                print(f"download: {name} continues after {writer.rows:,} records", flush=True)
            if isinstance(source, params.FilesSource):
                with nullcontext(copies) if copies else TemporaryDirectory(prefix="llm-") as folder:
                    about = write_files(name, source, gate, Path(folder), restart)
            else:
                about = write_hub(name, source, gate, restart)
        gate.check(source.max_rejected_fraction)
    inputs_read = {"inputs": about.pop("inputs")} if "inputs" in about else {}
    about = {"kept": dict(gate.kept), "dropped": {}} | about
    told = manifest(
        name, kind, source, writer, reasons=gate.reasons, examples=gate.examples, **about
    )
    if 0 < len(gate.labels) <= MAX_LABELS:
        told["labels"] = dict(sorted(gate.labels.items()))
        if all(label.isdecimal() for label in gate.labels):
            told["notes"] = joined(
                told["notes"],
                f"the classes are numbers; give them names with download.{name}.labels",
            )
        if positive := gate.positive():
            told["positive_label"] = positive
    told = all_public(told | inputs_read)
    write_json(Path(out) / "manifest.json", told)
    return told


def _mixture(
    name: str, source: params.MixtureSource, out: Path, copies: Path | None
) -> dict[str, Any]:
    """Write a mixture's records and manifest; `sources` of the manifest holds those of its sources.

    After a kill the source that was being read goes on at its last finished part; those that were
    whole by then are read again (of the copies, where they are remote), and so is what had been
    taken of them."""
    clear(out)

    def write(part: str, inner: params.Source, directory: Path) -> dict[str, Any]:
        return write_raw(f"{name}.sources.{part}", "pretrain", inner, directory, copies)

    writer, told = write_mixture(source, out, write)
    reasons = Counter[str]()
    for part in told.values():
        reasons.update(part["rejected"]["by_reason"])
    whole = manifest(
        name,
        "pretrain",
        source,
        writer,
        revision=joined(*(f"{part}: {about['revision']}" for part, about in told.items())),
        licence=joined(*(f"{part}: {about['licence']}" for part, about in told.items())),
        kept={part: about["taken_rows"] for part, about in told.items()},
        dropped={
            f"{part}: beyond its weight": about["rows"] - about["taken_rows"]
            for part, about in told.items()
            if about["taken_rows"] < about["rows"]
        },
        reasons=reasons,
        examples=[example for about in told.values() for example in about["rejected"]["examples"]][
            :EXAMPLES
        ],
        notes=joined(
            *(f"{part}: {about['notes']}" for part, about in told.items() if about["notes"])
        ),
    ) | {"sources": told}
    whole = all_public(whole)
    write_json(Path(out) / "manifest.json", whole)
    return whole


def _write_docs(kind: str, source: params.DocsSource, gate: Gate) -> dict[str, Any]:
    from llm.sources.docs.source import records

    rows, about = records(kind, source.packages)
    beyond = 0
    with Progress(gate.name, None, "records") as progress:
        for number, record in enumerate(rows, 1):
            if source.max_documents is not None and number > source.max_documents:
                beyond += 1
                continue
            assert tuple(sorted(record)) == tuple(sorted(FIELDS[kind])), (
                f"docs made {sorted(record)} for {kind}"
            )
            gate.writer.write(record)
            if "label" in record:
                gate.labels[record["label"]] += 1
            progress.update(mb=f"{gate.writer.bytes / 1e6:.1f}")
    if beyond:
        about["dropped"] = {**about["dropped"], "beyond max_documents": beyond}
    return about


def fingerprint(name: str, kind: str, source: params.Source) -> str:
    """Digest of all that a data set depends on: params, code, versions, and its files' names, sizes
    and times.

    The times keep a second look cheap; they decide only whether an interrupted stage's finished
    work is used again."""
    digest = hashlib.sha256(
        json.dumps([name, kind, source.model_dump(mode="json")], sort_keys=True).encode()
    )
    digest.update(code_digest("sources", "text").encode())
    digest.update(platform.python_version().encode())
    for line in sorted({f"{d.name}=={d.version}" for d in importlib.metadata.distributions()}):
        digest.update(line.encode())
    for inner in source.sources.values() if isinstance(source, params.MixtureSource) else [source]:
        if isinstance(inner, params.FilesSource):
            for item in paths.find(inner.all_paths, f"download.{name}.paths"):
                with paths.reading(item):
                    digest.update(f"{item.shown} {item.stamp()}".encode())
    return digest.hexdigest()[:16]


def datasets_of(p: params.Params) -> Iterator[tuple[str, str, params.Source]]:
    """Name, kind and source of each data set of the params, pretraining first."""
    for name in sorted(
        p.download, key=lambda name: (name != "pretrain", list(p.download).index(name))
    ):
        yield (
            name,
            "pretrain" if name == "pretrain" else p.download[name].kind or name,
            p.download[name],
        )
