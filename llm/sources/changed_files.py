"""User files that changed since they were read; DVC does not watch files outside the repository.

`.state/sources.json` holds the digest of each file that was read, and its stamp (size, time), so
that an untouched file need not be read again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm import params
from llm.runtime.io import read_json, write_json
from llm.runtime.state_dirs import state_root
from llm.sources.readers import paths


def notes_path() -> Path:
    """Return the path of the file that holds digests and stamps."""
    return state_root() / "sources.json"


def read_files(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return path, bytes and sha256 of the files that a data set or mixture was made of."""
    files = list(manifest.get("inputs", []))
    for part in manifest.get("sources", {}).values():
        files += read_files(part)
    return files


def note(manifest: dict[str, Any]) -> list[str]:
    """Note the files of a data set; return a line for each that changed since it was last read."""
    noted = _noted()
    lines = []
    for file in read_files(manifest):
        before = noted.get(file["path"], {}).get("sha256", file["sha256"])
        if before != file["sha256"]:
            lines.append(
                f"{file['path']}: same name, other bytes than when it was last read "
                f"(SHA-256 {before[:12]}…, now {file['sha256'][:12]}…)"
            )
        noted[file["path"]] = {"sha256": file["sha256"], "stamp": _stamp(file["path"])}
    write_json(notes_path(), dict(sorted(noted.items())))
    return lines


def changes(p: params.Params, raw: Path = Path("data/raw")) -> list[str]:
    """Return a line for each local file of the params that differs from what `data/raw` was made of.

    Raises:
        UserError: a path of the params does not exist.
    """
    lines: list[str] = []
    noted = _noted()
    for name, source in p.download.items():
        path = raw / name / "manifest.json"
        if not path.is_file():
            continue
        recorded = {
            file["path"]: file["sha256"]
            for file in read_files(read_json(path))
            if "://" not in file["path"]
        }
        now = {item.title: item for item in _local(name, source)}
        for title, item in now.items():
            known = noted.get(title, {})
            if title not in recorded:
                lines.append(f"{name}: {title} is new")
                continue
            untouched = (known.get("sha256"), known.get("stamp")) == (recorded[title], item.stamp())
            if not untouched and item.sha256() != recorded[title]:
                lines.append(f"{name}: {title} has other bytes")
        lines += [f"{name}: {title} is gone" for title in recorded if title not in now]
    return lines


def show() -> None:
    """Print which files changed, and how to read them again (`python -m llm sources`)."""
    lines = changes(params.load())
    for line in lines:
        print(line)
    if lines:
        print("data/raw is older than these files: `dvc repro -f download` reads them again.")


def _local(name: str, source: params.Source) -> Iterator[paths.Input]:
    if isinstance(source, params.MixtureSource):
        for part, inner in source.sources.items():
            yield from _local(f"{name}.sources.{part}", inner)
    elif isinstance(source, params.FilesSource):
        local = [path for path in source.all_paths if "://" not in path]
        yield from paths.find(local, f"download.{name}.paths") if local else []


def _stamp(path: str) -> str:
    try:
        return "" if "://" in path else paths.Input(path).stamp()
    except OSError:
        return ""


def _noted() -> dict[str, dict[str, str]]:
    try:
        noted: dict[str, dict[str, str]] = json.loads(notes_path().read_text(encoding="utf-8"))
        return noted
    except (OSError, ValueError):
        return {}  # no readable notes: the files' digests are compared instead
