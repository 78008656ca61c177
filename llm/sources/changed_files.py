"""Files of the user that have other bytes than when they were read: DVC does not watch files
outside the repository.

What was read is noted in `.state/sources.json`: of each path its digest, and its stamp (size, time)
so that a later look costs nothing where nothing was touched.
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


def place() -> Path:
    """Where it is noted."""
    return state_root() / "sources.json"


def read_files(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Path, bytes and sha256 of the files that a data set was made of, those of a mixture's sources
    too.
    """
    found = list(manifest.get("inputs", []))
    for part in manifest.get("sources", {}).values():
        found += read_files(part)
    return found


def note(manifest: dict[str, Any]) -> list[str]:
    """Note the files of a data set; returns a line for each that had other bytes the last time it
    was read.
    """
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
    write_json(place(), dict(sorted(noted.items())))
    return lines


def changes(p: params.Params, raw: Path = Path("data/raw")) -> list[str]:
    """A line for each file of the params that is not what `data/raw` was made of.

    Remote files are not asked about. Raises UserError where paths of the params lead nowhere.
    """
    lines: list[str] = []
    noted = _noted()
    for name, source in p.download.items():
        path = raw / name / "manifest.json"
        if not path.is_file():
            continue
        then = {
            file["path"]: file["sha256"]
            for file in read_files(read_json(path))
            if "://" not in file["path"]
        }
        now = {item.shown: item for item in _local(name, source)}
        for shown, item in now.items():
            known = noted.get(shown, {})
            if shown not in then:
                lines.append(f"{name}: {shown} is new")
                continue
            untouched = (known.get("sha256"), known.get("stamp")) == (then[shown], item.stamp())
            if not untouched and item.sha256() != then[shown]:
                lines.append(f"{name}: {shown} has other bytes")
        lines += [f"{name}: {shown} is gone" for shown in then if shown not in now]
    return lines


def show() -> None:
    """`python -m llm sources`: print what changed, and what to do about it."""
    found = changes(params.load())
    for line in found:
        print(line)
    if found:
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
        noted: dict[str, dict[str, str]] = json.loads(place().read_text(encoding="utf-8"))
        return noted
    except (
        OSError,
        ValueError,
    ):  # nothing noted yet, or not readable: then the files are compared themselves
        return {}
