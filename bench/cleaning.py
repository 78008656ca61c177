"""The speed of each cleaning rule alone, on real text, and of the pass that compares documents.

    python -m bench.cleaning [--text DIR] [--megabytes 20]

Every line is one rule of `tokenize.clean` at its paper's value, alone, in one process, on the same
documents: the files of the folder (the shared test data by default), or without a folder the
    documentation in the installed packages. Behind
it the whole of `presets/clean.yaml`; then the comparing pass with one process and with two, and the
sorting of digests of two million documents that were made up, in bounded memory.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.contamination import documents
from llm.corpus.clean import duplicates, plan
from llm.corpus.clean.rules import Cleaner
from llm.corpus.clean.scan import DOCUMENT
from llm.params import Clean
from llm.runtime.io import read_yaml
from llm.sources import raw

MANY = 2_000_000  # made-up documents
SIGNED = 200_000  # of them with a signature


def single_rules(preset: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each rule of the preset that looks at one document, by itself."""
    found: dict[str, dict[str, Any]] = {
        "unicode: nfc": {"unicode": "nfc"},
        "unicode: ftfy": {"unicode": "ftfy"},
    }
    for name in ("whitespace", "min_characters", "languages"):
        found[name] = {name: preset[name]}
    for rule, value in preset["personal_data"].items():
        found[f"personal_data.{rule}"] = {"personal_data": {rule: value}}
    for section in ("gopher_quality", "gopher_repetition", "c4"):
        found[f"{section}, all"] = {section: preset[section]}
    return found


def local(preset: dict[str, Any]) -> dict[str, Any]:
    """The preset without the rules that compare documents."""
    compared = ("decontaminate", "exact_duplicates", "near_duplicates", "duplicate_paragraphs")
    return {key: value for key, value in preset.items() if key not in compared}


def peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = Path(os.environ.get("LLM_TEST_DATA", "../shared/data")) / "pretrain"
    parser.add_argument("--text", type=Path, default=shared if shared.is_dir() else None)
    parser.add_argument("--megabytes", type=int, default=20)
    args = parser.parse_args()
    preset = read_yaml("presets/clean.yaml")["tokenize"]["clean"]
    rng = random.Random(0)
    texts = documents(args.text)
    rng.shuffle(texts)
    total = 0
    for count, text in enumerate(texts, 1):
        total += len(text.encode())
        if total > args.megabytes * 1_000_000:
            del texts[count:]
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(
        f"{len(texts):,} documents, {size:.1f} MB, one process\n\n{'rule':34} {'MB/s':>8} {'removed':>9} {'changed':>9}"
    )
    for name, params in {**single_rules(preset), "all of these": local(preset)}.items():
        cleaner = Cleaner(Clean(**params))
        cleaner("Models are loaded with the first text. " * 20)
        began = time.perf_counter()
        done = [cleaner(text) for text in texts]
        seconds = time.perf_counter() - began
        removed = sum(cleaned.text is None for cleaned in done)
        changed = sum(bool(cleaned.edits) for cleaned in done)
        print(f"{name:34} {size / seconds:8.1f} {removed:9,} {changed:9,}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), texts, preset, size)
        sort(Path(folder))


def compare(folder: Path, texts: list[str], preset: dict[str, Any], size: float) -> None:
    """The pass over all documents, each comparing rule alone and all together."""
    with raw.Writer(folder / "raw", "pretrain") as writer:
        for i, text in enumerate(texts):
            writer.write({"id": str(i), "text": text, "source": "", "group": ""})
    print(f"\n{'comparing pass':34} {'MB/s':>8} {'removed':>9} {'paragraphs':>11}")
    rules: dict[str, dict[str, Any]] = {
        name: {name: preset[name]}
        for name in ("exact_duplicates", "duplicate_paragraphs", "near_duplicates")
    }
    together = {key: value for rule in rules.values() for key, value in rule.items()}
    examples = [" ".join(text.split()[:60]) for text in texts[:1000]]
    rules["decontaminate (1,000 examples)"] = {"decontaminate": True}
    written = []
    for name, params, workers in [
        *((name, params, 1) for name, params in rules.items()),
        ("all but decontaminate, 1 process", together, 1),
        ("all but decontaminate, 2 processes", together, 2),
    ]:
        began = time.perf_counter()
        made = plan.prepare(Clean(**params), folder / "raw", folder / "plan", examples, workers)
        seconds = time.perf_counter() - began
        removed = np.load(folder / "plan" / plan.REMOVED)
        dropped = np.load(folder / "plan" / plan.PARAGRAPHS)
        print(
            f"{name:34} {size / seconds:8.1f} {int((removed > 0).sum()):9,} {len(dropped):11,}",
            flush=True,
        )
        written.append(made.digests())
    assert written[-1] == written[-2], "the number of processes must not matter"


def sort(folder: Path) -> None:
    """Equal digests and similar signatures among many documents."""
    rng = np.random.default_rng(0)
    records = np.zeros(MANY, DOCUMENT)
    records["high"] = rng.integers(0, MANY, size=MANY)
    records["index"] = np.arange(MANY)
    records.tofile(folder / "documents")
    values = rng.integers(0, 2**32, size=(SIGNED, 128), dtype=np.uint32)
    values[1::10] = values[::10]  # a tenth are copies
    values.tofile(folder / "signatures")
    np.arange(SIGNED, dtype=np.uint64).tofile(folder / "signed")
    removed = np.zeros(MANY, np.uint8)
    expected = MANY - len(np.unique(records["high"]))
    del records, values
    print(f"\n{'made-up documents':34} {'seconds':>8} {'found':>9} {'MiB more':>11}")
    for budget in (256, 16):
        duplicates.BUDGET, base, began = budget << 20, peak(), time.perf_counter()
        found = sum(
            len(batch) for batch in duplicates.repeated(folder / "documents", DOCUMENT, removed)
        )
        seconds = time.perf_counter() - began
        assert found == expected
        print(
            f"{f'{MANY:,} digests, {budget} MiB at a time':34} {seconds:8.1f} {found:9,} {peak() - base:11.0f}"
        )
    base, began = peak(), time.perf_counter()
    found = len(duplicates.similar(folder / "signed", folder / "signatures", 0.8, 128, removed))
    assert found == SIGNED // 10
    print(
        f"{f'{SIGNED:,} signatures':34} {time.perf_counter() - began:8.1f} {found:9,} {peak() - base:11.0f}"
    )


if __name__ == "__main__":
    main()
