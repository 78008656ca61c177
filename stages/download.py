"""Fetch or extract the records of every data set: data/raw/<name>."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from llm import params
from llm.errors import NO_SPACE, no_space
from llm.runtime import outputs
from llm.runtime.io import link, read_json, refuse_other_files, whole_directory
from llm.runtime.stage import run_stage
from llm.runtime.state_dirs import finished_datasets, remove_other_versions
from llm.runtime.timing import stage_timing
from llm.sources import changed_files
from llm.sources.download import datasets_of, fingerprint, write_raw

RAW = Path("data/raw")


def main() -> None:
    p = params.load()
    refuse_other_files(RAW, outputs.RAW)  # before anything is fetched, not after
    manifests: dict[str, dict[str, Any]] = {}
    with stage_timing("download") as timing, finished_datasets() as state:
        done = {}
        for name, kind, source in datasets_of(p):
            # Finished data sets wait outside DVC's outputs until all are finished, so that a killed
            # stage keeps them.
            done[name] = state / f"{name}-{fingerprint(name, kind, source)}"
            if not (done[name] / "manifest.json").exists():
                print(f"download: {name} ({kind}) from {source.source}", flush=True)
                remove_other_versions(done[name])
                # No whole_directory, because a killed download resumes from its files. The manifest
                # is written last.
                try:
                    manifest = write_raw(name, kind, source, done[name], state / f"remote-{name}")
                except OSError as error:
                    if error.errno in NO_SPACE:
                        raise no_space(done[name], error) from error
                    raise
                for line in changed_files.note(manifest):
                    print(f"download: {line}", flush=True)
                shutil.rmtree(state / f"remote-{name}", ignore_errors=True)
            manifests[name] = read_json(done[name] / "manifest.json")
        with whole_directory(RAW, outputs.RAW) as raw:
            for name, directory in done.items():
                shutil.copytree(directory, raw / name, copy_function=link)
        shutil.rmtree(state)
        timing["bytes"] = sum(m["bytes"] for m in manifests.values())
    print_table(manifests)


def print_table(manifests: dict[str, dict[str, Any]]) -> None:
    """Print a line for each data set, and some records that were set aside, with the reason."""
    print(f"{'name':20} {'kind':20} {'rows':>10} {'MB':>9} {'rejected':>9}  licence")
    for name, m in manifests.items():
        licence = m["licence"] if len(m["licence"]) <= 40 else m["licence"][:39] + "…"
        print(
            f"{name:20} {m['kind']:20} {m['rows']:10,} {m['bytes'] / 1e6:9.2f} {m['rejected']['count']:9,}  {licence}"
        )
    for name, m in manifests.items():
        for example in m["rejected"]["examples"][:3]:
            location = f"{example['file']}:{example['line']}"
            print(f"  set aside in {name}: {location}: {example['reason']}")


if __name__ == "__main__":
    run_stage(main)
