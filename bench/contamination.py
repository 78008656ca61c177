"""The time to find the test examples that the training text contains.

By default 200 MB are searched for 10,000 examples.

    python -m bench.contamination [--text DIR] [--megabytes 200] [--examples 10000]

The text is that of the folder's files (the shared test data by default), repeated up to the size;
without a folder it is the documentation in the installed packages. The examples are passages of 40
to 150 words from documents that are not scanned (some are quoted elsewhere); of half of them a run
of 13 words is planted in the text, in another case and with other punctuation. The planted ones
must all be found, and on the first 5 MB the answer must be that of sets of tuples."""

from __future__ import annotations

import argparse
import os
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from llm.evaluate.contamination import Contamination
from llm.sources.docs import source as docs
from llm.sources.readers import open as readers
from llm.sources.readers import paths
from llm.text.ngrams import N, words

PLAIN_BYTES = 5_000_000  # compared with sets of tuples too


def documents(folder: Path | None) -> list[str]:
    """All documents of a folder, or of the installed packages."""
    if folder is None:
        return [record["text"] for record in docs.records("pretrain", None)[0]]
    found = []
    for source in paths.find([str(folder)], "--text"):
        with readers.open_table(source, "auto", "pretrain") as table:
            found += [
                row.record["text"]
                for row in table.rows
                if row.record and isinstance(row.record.get("text"), str)
            ]
    return found


def examples(texts: list[str], count: int, rng: random.Random) -> list[str]:
    """Passages of 40 to 150 words."""
    found = []
    for text in texts:
        line = text.split()
        start = 0
        while start + 150 < len(line) and len(found) < count:
            size = rng.randint(40, 150)
            found.append(" ".join(line[start : start + size]))
            start += size
    return found


def planted(example: str, rng: random.Random) -> str:
    """13 words in a row of an example, written in another way."""
    line = words(example)
    start = rng.randrange(len(line) - N + 1)
    return (
        ", ".join(word.upper() if word.isascii() else word for word in line[start : start + N])
        + "!"
    )


def scanned(texts: list[str], plants: list[str], size: int) -> Iterator[str]:
    """The training text: the documents over and over, a planted passage after every so many."""
    every = max(
        1, size // max(1, sum(map(len, texts)) // max(1, len(texts))) // max(1, len(plants))
    )
    done, number, rest = 0, 0, iter(plants)
    while done < size:
        for text in texts:
            number += 1
            if number % every == 0 and (plant := next(rest, None)):
                text = f"{text} {plant} {text[:50]}"
            yield text
            done += len(text)
            if done >= size:
                break
    yield from rest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = Path(os.environ.get("LLM_TEST_DATA", "../shared/data")) / "pretrain"
    parser.add_argument("--text", type=Path, default=shared if shared.is_dir() else None)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--examples", type=int, default=10_000)
    args = parser.parse_args()
    rng = random.Random(0)
    texts = documents(args.text)
    rng.shuffle(texts)
    held_out, texts = texts[: len(texts) // 5], texts[len(texts) // 5 :]
    tests = examples(held_out, args.examples, rng)
    half = len(tests) // 2
    plants = [planted(example, rng) for example in tests[:half]]
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    check = Contamination()
    for number, example in enumerate(tests):
        check.add_example("planted" if number < half else "not planted", [example])
    runs = len(check.grams)
    prepared = time.perf_counter() - began
    size, began = 0, time.perf_counter()
    for text in scanned(texts, plants, args.megabytes * 1_000_000):
        size += len(text.encode())
        check.scan(text)
    fractions = check.fractions()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{'test examples':34} {len(tests):>12,}  ({runs:,} runs of {N} words, prepared in {prepared:.1f} s)"
    )
    print(f"{'training text':34} {size / 1e6:>12,.1f}  MB")
    print(f"{'scan, one process':34} {seconds:>12.1f}  s")
    print(f"{'':34} {size / 1e6 / seconds:>12.1f}  MB/s")
    print(f"{'memory above the texts held':34} {(peak - base) / 1024:>12.0f}  MiB")
    for task, fraction in fractions.items():
        print(f"{'found, ' + task:34} {100 * fraction:>12.2f}  %")
    assert fractions["planted"] == 1.0, "a planted run was not found"
    _plain(tests, texts)


def _plain(tests: list[str], texts: list[str]) -> None:
    """Ask the same question of sets of tuples, on a piece of the text: seconds, and whether the
    answers agree.
    """
    some, size = [], 0
    for text in texts:
        some.append(text)
        size += len(text.encode())
        if size > PLAIN_BYTES:
            break
    tests = tests[:1000] + [
        " ".join(text.split()[:60]) for text in some[:200]
    ]  # these are contained
    began = time.perf_counter()
    lines = [words(test) for test in tests]
    wanted = {tuple(line[i : i + N]) for line in lines for i in range(len(line) - N + 1)}
    found: set[tuple[str, ...]] = set()
    for text in some:
        line = words(text)
        found.update(wanted.intersection(zip(*(line[i:] for i in range(N)), strict=False)))
    plain = sum(
        any(tuple(line[i : i + N]) in found for i in range(len(line) - N + 1)) for line in lines
    )
    seconds = time.perf_counter() - began
    check = Contamination()
    for test in tests:
        check.add_example("t", [test])
    began = time.perf_counter()
    for text in some:
        check.scan(text)
    ours = round(check.fractions()["t"] * len(tests))
    rate, others = size / 1e6 / seconds, size / 1e6 / (time.perf_counter() - began)
    print(
        f"{f'sets of tuples, {size / 1e6:.0f} MB':34} {rate:>12.1f}  MB/s, {plain} of {len(tests)} found"
    )
    print(f"{'ours, the same':34} {others:>12.1f}  MB/s, {ours} of {len(tests)} found")
    assert plain == ours, "the two disagree"


if __name__ == "__main__":
    main()
