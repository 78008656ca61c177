"""The download of a data set: from docs, files or a hub, through one filter, to `data/raw/<name>`.

The filter writes each record, or counts it as rejected with its file, line and reason. Above
`max_rejected_fraction` the data set is refused. The manifest says where the records came from and
which were kept."""

from __future__ import annotations

import functools
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
from llm.params import DocsSource, FilesSource, HubSource
from llm.runtime.io import write_json
from llm.runtime.progress import Progress
from llm.runtime.provenance import code_digest
from llm.sources.hub_records import write_hub
from llm.sources.local_files import write_files
from llm.sources.manifest import joined, manifest
from llm.sources.mixture import write_mixture
from llm.sources.raw import FIELDS, Writer
from llm.sources.readers import paths
from llm.sources.record_filter import EXAMPLES, MAX_LABELS, RecordFilter
from llm.sources.record_schema import RecordSchema
from llm.sources.resume import Changed, SavedProgress, clear


def write_raw(
    name: str, kind: str, source: params.Source, out: Path, copies: Path | None = None
) -> dict[str, Any]:
    """Write the records of one data set.

    Args:
        name: name of the data set under `download`.
        kind: one of `FIELDS` or of `llm.tasks`; it decides the columns of the records.
        source: params of the data set.
        out: directory for part-NNNNN.parquet and manifest.json. A killed call for the same source
            is resumed from `<out>.part.json`.
        copies: directory for remote files, which a later attempt reuses; None: a temporary one.

    Returns:
        The manifest.

    Raises:
        UserError: the source is invalid; the message names the file or param.
    """
    if kind not in FIELDS and kind not in tasks.kinds():
        known = dict.fromkeys([*FIELDS, *tasks.kinds()])
        raise UserError(
            f"download.{name}: kind {kind!r} is unknown; expected {', '.join(k for k in known if k != 'pretrain')}. "
            f"Set download.{name}.kind."
        )
    if isinstance(source, params.MixtureSource):
        return _mixture(name, source, out, copies)
    saved = SavedProgress(
        out, {"name": name, "kind": kind, "source": all_public(source.model_dump(mode="json"))}
    )
    try:
        written = _single(name, kind, source, out, copies, saved)
    except Changed as changed:
        print(f"download: {name} restarts: {changed}", flush=True)
        saved.delete()
        return write_raw(name, kind, source, out, copies)
    saved.delete()
    return written


def _single(
    name: str,
    kind: str,
    source: DocsSource | FilesSource | HubSource,
    out: Path,
    copies: Path | None,
    saved: SavedProgress,
) -> dict[str, Any]:
    with Writer(out, kind, position=saved.writer) as writer:
        if isinstance(source, DocsSource):
            record_filter = RecordFilter(name, RecordSchema(name, kind, {}, None), writer)
            about = _write_docs(kind, source, record_filter)
        else:
            record_filter = RecordFilter(
                name, RecordSchema(name, kind, source.columns, source.labels), writer
            )
            if saved.writer is not None:
                record_filter.restore(saved.more["gate"])
                print(f"download: {name} resumes after {writer.rows:,} records", flush=True)
            if isinstance(source, FilesSource):
                with nullcontext(copies) if copies else TemporaryDirectory(prefix="llm-") as folder:
                    about = write_files(name, source, record_filter, Path(folder), saved)
            else:
                about = write_hub(name, source, record_filter, saved)
        record_filter.check(source.max_rejected_fraction)
    inputs = {"inputs": about.pop("inputs")} if "inputs" in about else {}
    about = {"kept": dict(record_filter.kept), "dropped": {}} | about
    contents = manifest(
        name,
        kind,
        source,
        writer,
        reasons=record_filter.reasons,
        examples=record_filter.examples,
        **about,
    )
    if 0 < len(record_filter.labels) <= MAX_LABELS:
        contents["labels"] = dict(sorted(record_filter.labels.items()))
        if all(label.isdecimal() for label in record_filter.labels):
            contents["notes"] = joined(
                contents["notes"],
                f"the classes are numbers; give them names with download.{name}.labels",
            )
        if positive := record_filter.positive_label():
            contents["positive_label"] = positive
    contents = all_public(contents | inputs)
    write_json(Path(out) / "manifest.json", contents)
    return contents


def _mixture(
    name: str, source: params.MixtureSource, out: Path, copies: Path | None
) -> dict[str, Any]:
    """Write a mixture's records and manifest; `sources` holds the manifests of its sources.

    After a kill, the source that was being read resumes at its last finished part. Finished sources
    are read again (remote ones from their copies), and so are the documents taken from them."""
    clear(out)

    def write(part: str, inner: params.Source, directory: Path) -> dict[str, Any]:
        return write_raw(f"{name}.sources.{part}", "pretrain", inner, directory, copies)

    writer, parts = write_mixture(source, out, write)
    reasons = Counter[str]()
    for about in parts.values():
        reasons.update(about["rejected"]["by_reason"])
    contents = manifest(
        name,
        "pretrain",
        source,
        writer,
        revision=joined(*(f"{part}: {about['revision']}" for part, about in parts.items())),
        licence=joined(*(f"{part}: {about['licence']}" for part, about in parts.items())),
        kept={part: about["taken_rows"] for part, about in parts.items()},
        dropped={
            f"{part}: beyond its weight": about["rows"] - about["taken_rows"]
            for part, about in parts.items()
            if about["taken_rows"] < about["rows"]
        },
        reasons=reasons,
        examples=[example for about in parts.values() for example in about["rejected"]["examples"]][
            :EXAMPLES
        ],
        notes=joined(
            *(f"{part}: {about['notes']}" for part, about in parts.items() if about["notes"])
        ),
    ) | {"sources": parts}
    contents = all_public(contents)
    write_json(Path(out) / "manifest.json", contents)
    return contents


def _write_docs(kind: str, source: DocsSource, record_filter: RecordFilter) -> dict[str, Any]:
    from llm.sources.docs.source import records

    rows, about = records(kind, source.packages)
    beyond = 0
    with Progress(record_filter.name, None, "records") as progress:
        for number, record in enumerate(rows, 1):
            if source.max_documents is not None and number > source.max_documents:
                beyond += 1
                continue
            assert tuple(sorted(record)) == tuple(sorted(FIELDS[kind])), (
                f"docs made {sorted(record)} for {kind}"
            )
            record_filter.writer.write(record)
            if "label" in record:
                record_filter.labels[record["label"]] += 1
            progress.update(mb=f"{record_filter.writer.bytes / 1e6:.1f}")
    if beyond:
        about["dropped"] = {**about["dropped"], "beyond max_documents": beyond}
    return about


def fingerprint(name: str, kind: str, source: params.Source) -> str:
    """Return a digest of all that a data set depends on.

    That is its params, the code, the versions, and its files' names, sizes and times. Times are
    cheap to compare; they decide only whether an interrupted stage reuses a finished data set."""
    digest = hashlib.sha256(
        json.dumps([name, kind, source.model_dump(mode="json")], sort_keys=True).encode()
    )
    digest.update(code_digest("sources", "text").encode())
    digest.update(platform.python_version().encode())
    for line in installed():
        digest.update(line.encode())
    for inner in source.sources.values() if isinstance(source, params.MixtureSource) else [source]:
        if isinstance(inner, FilesSource):
            for item in paths.find(inner.all_paths, f"download.{name}.paths"):
                with paths.reading(item):
                    digest.update(f"{item.title} {item.stamp()}".encode())
    return digest.hexdigest()[:16]


@functools.cache
def installed() -> list[str]:
    """Return `distribution==version` of all that is installed; a tenth of a second, once."""
    return sorted({f"{d.name}=={d.version}" for d in importlib.metadata.distributions()})


def datasets_of(p: params.Params) -> Iterator[tuple[str, str, params.Source]]:
    """Yield name, kind and source of each data set of the params, pretraining first."""
    for name in sorted(
        p.download, key=lambda name: (name != "pretrain", list(p.download).index(name))
    ):
        yield (
            name,
            "pretrain" if name == "pretrain" else p.download[name].kind or name,
            p.download[name],
        )
