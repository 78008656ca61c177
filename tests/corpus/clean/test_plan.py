"""The pass that compares documents finds what plain sets find, in any number of processes and
parts.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.corpus.clean import duplicates, plan
from llm.corpus.clean.report import Tally
from llm.corpus.clean.scan import paragraphs
from llm.errors import UserError
from llm.params import Clean
from llm.params.clean import NearDuplicates
from llm.sources import raw
from llm.sources.docs.dedup import near_duplicates
from llm.text.hashing import is_held_out
from llm.text.minhash import bands
from llm.text.ngrams import words

WORDS = [
    "harbour",
    "boat",
    "net",
    "girl",
    "bread",
    "gull",
    "bell",
    "school",
    "wind",
    "ship",
    "month",
    "thought",
]


def store(directory: Path, texts: list[str], group_bytes: int = 200) -> Path:
    with raw.Writer(directory, "pretrain", part_bytes=1000, group_bytes=group_bytes) as writer:
        for i, text in enumerate(texts):
            writer.write({"id": f"d{i}", "text": text, "source": "test", "group": ""})
    return directory


def outcome(
    params: Clean,
    texts: list[str],
    place: Path,
    workers: int = 1,
    examples: list[str] | None = None,
):
    """Rule that removed, or text that is left, of every document."""
    source = store(place / "raw", texts)
    made = plan.prepare(params, source, place / "plan", examples, workers)
    found = [made(i, text) for i, text in enumerate(texts)]
    return [(cleaned.removed, cleaned.text) for cleaned in found]


PARAGRAPH = st.sampled_from(["aa aa", "bb  bb", "bb bb", "cc", "dd dd dd", "e"])
DOCUMENT = st.lists(PARAGRAPH, min_size=1, max_size=4).map("\n\n".join)


@settings(max_examples=60)
@given(
    texts=st.lists(DOCUMENT, min_size=1, max_size=12),
    exact=st.booleans(),
    budget=st.sampled_from([40, 1 << 20]),
)
def test_repeated_documents_and_paragraphs_are_those_that_plain_sets_find(
    tmp_path: Path, texts: list[str], exact: bool, budget: int
) -> None:
    duplicates.BUDGET, before = budget, duplicates.BUDGET
    try:
        found = outcome(Clean(exact_duplicates=exact, duplicate_paragraphs=4), texts, tmp_path)
    finally:
        duplicates.BUDGET = before
    documents: set[str] = set()
    seen: set[str] = set()
    expected = []
    for text in texts:
        if exact and text in documents:
            expected.append(("exact_duplicates", None))
            continue
        documents.add(text)
        left = []
        for part in paragraphs(text):
            key = " ".join(part.split())
            if len(part) < 4 or key not in seen:
                left.append(part)
            if len(part) >= 4:
                seen.add(key)
        expected.append((None, "\n\n".join(left)) if left else ("duplicate_paragraphs", None))
    assert found == expected


def sentences(rng: random.Random, count: int) -> list[str]:
    return [" ".join(rng.choices(WORDS, k=9)) for _ in range(count)]


def test_near_copies_are_removed_and_the_first_of_each_is_kept(tmp_path: Path) -> None:
    rng = random.Random(0)
    originals = [sentences(rng, 20) for _ in range(40)]
    texts, copies = [], set()
    for i, original in enumerate(originals):
        texts.append(". ".join(original))
        if i % 4 == 0:  # one sentence of twenty is another: Jaccard similarity about 0.88
            copies.add(len(texts))
            texts.append(". ".join(original[:19] + sentences(rng, 1)).upper())
        if i % 4 == 1:  # half of the sentences: 0.3
            texts.append(". ".join(original[:10] + sentences(rng, 10)))
    texts.append("a short text")
    texts.append("a short text")
    params = Clean(near_duplicates=NearDuplicates(threshold=0.7, num_perm=128, ngram=3))
    found = outcome(params, texts, tmp_path / "one")
    assert {i for i, (rule, _) in enumerate(found) if rule} == copies
    assert all(text == texts[i] for i, (rule, text) in enumerate(found) if not rule)
    kept = near_duplicates(
        [text.lower() for text in texts[:-2]], threshold=0.7
    )  # datasketch's own index, in memory
    assert {i for i, good in enumerate(kept) if not good} == copies
    assert outcome(params, texts, tmp_path / "two", workers=2) == found


def test_a_chain_of_near_copies_keeps_its_first(tmp_path: Path) -> None:
    rng = random.Random(1)
    text, texts = sentences(rng, 30), []
    for i in range(5):
        text = [*text[:i], *sentences(rng, 1), *text[i + 1 :]]
        texts.append(". ".join(text))
    params = Clean(near_duplicates=NearDuplicates(threshold=0.7, num_perm=256, ngram=3))
    assert [rule for rule, _ in outcome(params, texts, tmp_path)] == [None] + [
        "near_duplicates"
    ] * 4


def test_the_estimate_removes_nothing_that_is_unlike(tmp_path: Path) -> None:
    rng = random.Random(2)
    texts = [". ".join(sentences(rng, 12)) for _ in range(150)]
    found = outcome(
        Clean(near_duplicates=NearDuplicates(threshold=0.5, num_perm=64, ngram=2)), texts, tmp_path
    )

    def shingles(text: str) -> set[tuple[str, ...]]:
        line = words(text)
        return set(pairwise(line))

    for i, (rule, _) in enumerate(found):
        if rule:
            near = max(
                len(shingles(texts[i]) & shingles(o)) / len(shingles(texts[i]) | shingles(o))
                for o in texts[:i]
            )
            assert near > 0.5 - 0.25  # four standard errors of 64 values


def test_documents_are_compared_as_they_are_without_the_lines_of_evaluation_examples(
    tmp_path: Path,
) -> None:
    example = " ".join(f"w{i}" for i in range(20))
    quoted = f"As they say: {example.upper().replace(' ', ', ')}!"
    texts = [quoted, "kept", f"{quoted}\n\nmore text here", "kept", "more text here"]
    params = Clean(decontaminate=True, exact_duplicates=True, duplicate_paragraphs=5)
    found = outcome(params, texts, tmp_path, examples=["short", example])
    assert found == [
        ("decontaminate", None),
        (None, "kept"),
        (None, "more text here"),
        ("exact_duplicates", None),
        ("exact_duplicates", None),
    ]


def test_training_text_shares_no_run_with_held_out_documents_which_stay_whole(
    tmp_path: Path,
) -> None:
    shared = " ".join(f"w{i}" for i in range(13))
    names = [f"group {i}" for i in range(200)]
    held = [name for name in names if is_held_out(name, "", 0.1)]
    with raw.Writer(tmp_path / "raw", "pretrain", group_bytes=2000) as writer:
        for i, name in enumerate(names):
            text = f"begins{i}\n{shared}\nends{i}"
            writer.write({"id": f"d{i}", "text": text, "source": "", "group": name})
    params = Clean(decontaminate=True)
    made = plan.prepare(params, tmp_path / "raw", tmp_path / "plan", [], 1, 0.1)
    tally = Tally()
    records = list(made.records(tmp_path / "raw", None, tally, 0.1))
    assert len(records) == 200
    assert [record["group"] for record in records if record["held_out"]] == held
    assert 5 < len(held) < 40
    for record in records:
        assert (shared in record["text"]) == record["held_out"]
        assert record["text"].startswith("begins")
        assert "ends" in record["text"]
    counts = tally.metrics(params)["rules"]["decontaminate"]
    cut = 200 - len(held)
    assert (counts["removed"], counts["changed"], counts["edits"]) == (0, cut, cut)
    assert counts["cut_bytes"] == cut * len(f"{shared}\n")


def test_documents_that_a_rule_of_their_own_removes_are_compared_with_none(tmp_path: Path) -> None:
    texts = ["a" * 30 + "\n\nthe same words", "the same words"]
    found = outcome(Clean(max_characters=20, duplicate_paragraphs=5), texts, tmp_path)
    assert found == [("max_characters", None), (None, "the same words")]


def test_a_plan_can_be_pickled_and_says_what_its_files_are(tmp_path: Path) -> None:
    texts = ["one and one", "two and two", "one and one"]
    source = store(tmp_path / "raw", texts)
    made = plan.prepare(Clean(exact_duplicates=True), source, tmp_path / "plan")
    again = pickle.loads(pickle.dumps(made))  # noqa: S301 - our own bytes
    tally = Tally()
    assert [record["id"] for record in again.records(source, None, tally)] == ["d0", "d1"]
    assert (tally.documents, tally.kept, tally.removed["exact_duplicates"]) == (3, 2, 1)
    assert sorted(path.name for path in (tmp_path / "plan").iterdir()) == sorted(
        made.digests()["clean"]
    )
    assert set(made.digests()["clean"]) == {
        "removed.npy",
        "lines.npy",
        "line_numbers.npy",
        "paragraphs.npy",
        "paragraph_numbers.npy",
    }
    (tmp_path / "plan/removed.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=r"removed\.npy cannot be read.*-sf tokenize"):
        plan.Plan(Clean(exact_duplicates=True), tmp_path / "plan")(0, "x")


LONG = """
import json, random, resource
from llm.corpus.clean.scan import Scanner
from llm.text.ngrams import Grams
from llm.params import Clean
rng = random.Random(0)
words = ["".join(rng.choices("abcdefghij", k=6)) for _ in range(5000)]
text = "\\n\\n".join(" ".join(rng.choices(words, k=60)) for _ in range(48_000))  # 20 MB
grams = Grams()
grams.add(" ".join(words[:40]))
grams.freeze()
params = Clean(decontaminate=True, exact_duplicates=True, duplicate_paragraphs=40, near_duplicates={},
               gopher_quality={"max_doc_words": 10**9}, gopher_repetition={"dup_n_grams": [[5, 0.9]]})
scanner = Scanner(params, grams, 0.0)
scanner([(0, text[:10_000], '')])
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = scanner([(0, text, '')])
print(json.dumps([len(text), len(found.paragraphs[0]), len(found.signatures),
                  (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024]))
"""


def test_a_very_long_document_takes_memory_in_proportion_to_its_text_alone() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", LONG], env=environment, capture_output=True, check=True
    )
    size, found, signed, memory = json.loads(done.stdout)
    assert (found, signed) == (48_000, 1)
    assert memory < 14 * size / 2**20


def test_without_a_rule_that_compares_nothing_is_written(tmp_path: Path) -> None:
    for params in (Clean(), Clean(whitespace=True)):
        made = plan.prepare(params, tmp_path / "absent", tmp_path / "plan")
        assert not (tmp_path / "plan").exists()
        assert made.digests() == {}
    assert plan.Plan(Clean(), None)(0, "a \r\n").text == "a \r\n"


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_pairs_of_a_bucket_reach_every_member(size: int) -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, max(1, size // 3), size=size).astype(np.uint64)
    at = np.arange(size, dtype=np.int64)
    joined = {
        (int(a), int(b))
        for one, other in duplicates._candidates(keys, at)
        for a, b in zip(one, other, strict=True)
    }
    first = {int(key): int(i) for i, key in reversed(list(enumerate(keys)))}
    assert {(first[int(key)], i) for i, key in enumerate(keys) if first[int(key)] != i} <= joined
    assert all(keys[a] == keys[b] and a < b for a, b in joined)


def test_pairs_at_the_threshold_are_nearly_always_candidates() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9):
        count, rows = bands(threshold, 128)
        assert count * rows <= 128
        assert 1 - (1 - threshold**rows) ** count > 0.9
        assert 1 - (1 - (threshold / 2) ** rows) ** count < 0.35
