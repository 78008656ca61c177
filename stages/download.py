"""Fetch or extract the records of every data set: data/raw/<name>."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm import params
from llm.data import known
from llm.data.sources import datasets_of, fingerprint, write_raw
from llm.errors import NO_SPACE, no_space, run_stage
from llm.io import link, read_json, whole_directory
from llm.timing import stage_timing

RAW = Path("data/raw")


def main() -> None:
    p = params.load()
    manifests: dict[str, dict[str, Any]] = {}
    with stage_timing("download") as timing, finished_work() as state:
        done = {}
        for name, kind, source in datasets_of(p):
            # What is finished stays outside DVC's outputs until all is, so that a killed stage does it only once.
            done[name] = state / f"{name}-{fingerprint(name, kind, source)}"
            if not (done[name] / "manifest.json").exists():
                print(f"download: {name} ({kind}) from {source.source}", flush=True)
                forget_others(done[name])
                # Not in a whole_directory: the manifest comes last, and what a kill leaves is gone on with.
                try:
                    made = write_raw(name, kind, source, done[name], state / f"remote-{name}")
                except OSError as error:
                    if error.errno in NO_SPACE:
                        raise no_space(done[name], error) from error
                    raise
                for line in known.note(made):
                    print(f"download: {line}", flush=True)
                shutil.rmtree(state / f"remote-{name}", ignore_errors=True)
            manifests[name] = read_json(done[name] / "manifest.json")
        with whole_directory(RAW) as raw:
            for name, directory in done.items():
                shutil.copytree(directory, raw / name, copy_function=link)
        shutil.rmtree(state)
        timing["bytes"] = sum(manifest["bytes"] for manifest in manifests.values())
    print_table(manifests)


@contextmanager
def finished_work() -> Iterator[Path]:
    """The place of finished data sets, held by one process at a time."""
    root = Path(os.environ.get("DVC_ROOT", ".")) / ".state"
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "download.lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("download: waiting for another download of this repository to end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield root / "download"


def forget_others(directory: Path) -> None:
    """Remove what broke off of the data set under other params, code or files: nothing will go on with it."""
    name = directory.name[:-16]  # without the fingerprint
    for other in directory.parent.glob(f"{glob.escape(name)}{'[0-9a-f]' * 16}"):
        if other != directory and not (other / "manifest.json").exists():
            shutil.rmtree(other)
            other.with_name(f"{other.name}.part.json").unlink(missing_ok=True)


def print_table(manifests: dict[str, dict[str, Any]]) -> None:
    """One line a data set, and one for each reason that records were set aside."""
    print(f"{'name':20} {'kind':20} {'rows':>10} {'MB':>9} {'rejected':>9}  licence")
    for name, m in manifests.items():
        licence = m["licence"] if len(m["licence"]) <= 40 else m["licence"][:39] + "…"
        print(
            f"{name:20} {m['kind']:20} {m['rows']:10,} {m['bytes'] / 1e6:9.2f} {m['rejected']['count']:9,}  {licence}"
        )
    for name, m in manifests.items():
        for example in m["rejected"]["examples"][:3]:
            print(f"  set aside in {name}: {example['file']}:{example['line']}: {example['reason']}")


if __name__ == "__main__":
    run_stage(main)
