"""The shards of a corpus are the same bytes whoever wrote them: one process or several, in one go
or after kills.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llm.corpus import encode, sample
from llm.corpus.chunks import Chunk, digest, find_chunks, read_chunk
from llm.corpus.clean.plan import Plan
from llm.corpus.clean.rules import Cleaned
from llm.corpus.encode import describe, encode_corpus
from llm.corpus.statistics import Counts
from llm.data.shards import TokenStream
from llm.errors import UserError
from llm.params import Clean
from llm.runtime import disk
from llm.runtime import pool as parallel
from llm.runtime.io import sha256, write_json
from llm.runtime.pool import Workers
from llm.sources.raw import Writer
from llm.text.hashing import is_validation
from llm.tokenizer.bpe import Tokenizer
from tests import warm

TEXTS = [
    f"Document {i} returns the {i % 7}th value of {'the array, ' * (i % 40)}é中 <|endoftext|>.\n"
    for i in range(600)
]
SIZE = 6000  # bytes of a chunk


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS[:100], 400)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Chunk]:
    folder = tmp_path_factory.mktemp("raw")
    with Writer(folder, "pretrain", part_bytes=40_000, group_bytes=2000) as writer:
        for number, text in enumerate(TEXTS):
            writer.write(
                {"id": f"d{number}", "text": text, "source": f"source {number % 3}", "group": ""}
            )
    return find_chunks(folder, SIZE)


def write(
    found: list[Chunk], tokenizer: Tokenizer, work: Path, **changes: Any
) -> tuple[dict[str, str], Counts]:
    """Digests of the shards and of meta.json, and the counts."""
    settings = {"val_fraction": 0.2, "shard_tokens": 1500, "plan": Plan(Clean(), None), **changes}
    with Workers(settings.pop("workers", 1)) as workers:
        shards, counts = encode_corpus(found, tokenizer, work, ordered=workers.ordered, **settings)
    write_json(work / "tokens" / "meta.json", describe(shards, counts, tokenizer, 0.2))
    return {path.name: sha256(path) for path in sorted((work / "tokens").iterdir())}, counts


@pytest.fixture(scope="module")
def expected(
    found: list[Chunk], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], dict[str, Any]]:
    digests, counts = write(found, tokenizer, tmp_path_factory.mktemp("whole"))
    assert len(found) > 10
    assert len(digests) > 10
    return digests, counts.to_json()


def test_chunks_hold_every_document_once_and_are_bounded(found: list[Chunk]) -> None:
    tables = [read_chunk(chunk) for chunk in found]
    assert [text for table in tables for text in table["text"].to_pylist()] == TEXTS
    assert [len(table) for table in tables] == [chunk.rows for chunk in found]
    assert len({chunk.path for chunk in found}) > 1
    assert all(
        SIZE <= chunk.bytes < 2 * SIZE
        for chunk in found[:-1]
        if chunk.path == found[found.index(chunk) + 1].path
    )
    assert [read_chunk(chunk)["id"][0].as_py() for chunk in found] == [
        f"d{chunk.start}" for chunk in found
    ]


def test_the_digest_follows_the_content_and_not_the_time(
    found: list[Chunk], tmp_path: Path
) -> None:
    for name, texts in (("same", ["a", "b"]), ("again", ["a", "b"]), ("other", ["a", "c"])):
        with Writer(tmp_path / name, "pretrain") as writer:
            for text in texts:
                writer.write({"id": "1", "text": text, "source": "", "group": ""})
    same, again, other = (
        digest(find_chunks(tmp_path / name)) for name in ("same", "again", "other")
    )
    assert same == again != other


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_change_no_byte(
    workers: int,
    found: list[Chunk],
    tokenizer: Tokenizer,
    tmp_path: Path,
    expected: tuple[dict, dict],
) -> None:
    digests, counts = write(found, tokenizer, tmp_path, workers=workers)
    assert (digests, counts.to_json()) == expected


@pytest.mark.parametrize("encoder", ["words", "tiktoken"])
def test_the_encoder_changes_no_byte(
    encoder: str,
    found: list[Chunk],
    tokenizer: Tokenizer,
    tmp_path: Path,
    expected: tuple[dict, dict],
) -> None:
    assert write(found, tokenizer, tmp_path, encoder=encoder)[0] == expected[0]


@pytest.mark.parametrize("size", [1, 20_000, 10**9])
def test_the_size_of_chunks_changes_no_byte(
    size: int, found: list[Chunk], tokenizer: Tokenizer, tmp_path: Path, expected: tuple[dict, dict]
) -> None:
    digests, counts = write(find_chunks(found[0].path.parent, size), tokenizer, tmp_path)
    assert (digests, counts.to_json()) == expected


# -- kills

VICTIM = """
import os, signal, sys
from pathlib import Path
from llm.corpus import encode as corpus, shard_writer
from llm.corpus.clean.plan import Plan
from llm.params import Clean
from llm.corpus.chunks import find_chunks
from llm.tokenizer.bpe import Tokenizer

raw, work, tokenizer, place, nth = sys.argv[1:]
calls = 0
owner, name = {"save": (corpus, "_save"), "add": (shard_writer.ShardWriter, "add"),
               "finish": (shard_writer.ShardWriter, "_finish"), "header": (shard_writer.ShardWriter, "_header"),
               "sync": (shard_writer.ShardWriter, "sync")}[place.removesuffix("-after")]
real = getattr(owner, name)

def counted(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(nth) and not place.endswith("-after"):
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*args, **kwargs)
    if calls == int(nth):
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, counted)
plan = Plan(Clean(), None)
corpus.encode_corpus(find_chunks(Path(raw), 6000), Tokenizer.load(tokenizer), Path(work), 0.2, 1500, plan)
"""
KILLS = [
    ("save", 1),
    ("save", 6),
    ("save-after", 3),
    ("add", 9),
    ("add-after", 16),
    ("finish", 4),
    ("finish-after", 5),
]


@pytest.mark.parametrize(
    "kills", [[kill] for kill in KILLS] + [[("save-after", 4), ("header", 3), ("sync-after", 7)]]
)
def test_a_killed_run_continues_and_ends_with_the_same_bytes(
    kills: list[tuple[str, int]],
    found: list[Chunk],
    tokenizer: Tokenizer,
    tmp_path: Path,
    expected: tuple[dict, dict],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    work = tmp_path / "work"
    work.mkdir()
    for place, nth in kills:
        command = [
            warm.python(),
            "-c",
            VICTIM,
            str(found[0].path.parent),
            str(work),
            str(tmp_path / "tokenizer"),
            place,
            str(nth),
        ]
        assert (
            subprocess.run(command, env={**os.environ, "LLM_STATE_SECONDS": "0"}).returncode
            == -signal.SIGKILL
        )
    saved = (work / "progress.json").exists()
    capfd.readouterr()
    digests, counts = write(found, tokenizer, work)
    assert ("resumes after" in capfd.readouterr().out) == saved
    assert (digests, counts.to_json()) == expected


def interrupted(
    found: list[Chunk], tokenizer: Tokenizer, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ended after 8 chunks, all of them on record."""
    real = encode.ChunkEncoder.__call__

    def breaks(self: encode.ChunkEncoder, chunk: Chunk) -> encode.Encoded:
        if chunk == found[8]:
            raise KeyboardInterrupt
        return real(self, chunk)

    with monkeypatch.context() as patch:
        patch.setenv("LLM_STATE_SECONDS", "0")
        patch.setattr(encode.ChunkEncoder, "__call__", breaks)
        with pytest.raises(KeyboardInterrupt):
            write(found, tokenizer, work)
    assert json.loads((work / "progress.json").read_text())["chunks"] == 8


def test_chunks_on_record_are_not_encoded_again(
    found: list[Chunk], tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(found, tokenizer, tmp_path, monkeypatch)
    seen = []
    real = encode.ChunkEncoder.__call__
    monkeypatch.setattr(
        encode.ChunkEncoder, "__call__", lambda self, chunk: seen.append(chunk) or real(self, chunk)
    )
    write(found, tokenizer, tmp_path)
    assert seen == found[8:]
    write(found, tokenizer, tmp_path)
    assert seen == found[8:], "a finished run has nothing left to do"


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "record", "no record"])
def test_damaged_work_is_noticed_and_done_again(
    damage: str,
    found: list[Chunk],
    tokenizer: Tokenizer,
    tmp_path: Path,
    expected: tuple[dict, dict],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    interrupted(found, tokenizer, tmp_path, monkeypatch)
    shard = tmp_path / "tokens" / "train-00000.npy"
    last = sorted((tmp_path / "tokens").glob("train-*.npy"))[-1]
    if damage == "flip":
        content = bytearray(shard.read_bytes())
        content[500] ^= 1
        shard.write_bytes(content)
    elif damage == "cut":
        os.truncate(last, 150)
    elif damage == "missing":
        last.unlink()
    elif damage == "record":
        (tmp_path / "progress.json").write_text('{"chunks": 8}')
    else:
        (tmp_path / "progress.json").unlink()
    digests, counts = write(found, tokenizer, tmp_path)
    assert (digests, counts.to_json()) == expected
    assert ("starts afresh" in capfd.readouterr().err) == (damage != "no record")


# -- what goes wrong


def test_ids_that_are_not_tiktokens_name_the_document(
    found: list[Chunk], tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm.tokenizer.word_cache import Words

    real = Words.encode

    def wrong(self: Words, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        ids, counts = real(self, texts)
        ids[0] += 1
        return ids, counts

    monkeypatch.setattr(Words, "encode", wrong)
    with pytest.raises(
        UserError, match=r"document d0 .*part-00000\.parquet.*tokenize\.encoder to tiktoken"
    ):
        write(found, tokenizer, tmp_path, encoder="words")


def test_a_damaged_part_is_named_by_whichever_process_reads_it(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with Writer(tmp_path / "raw", "pretrain", group_bytes=2000) as writer:
        for text in TEXTS[:200]:
            writer.write({"id": "1", "text": text, "source": "", "group": ""})
    chunks = find_chunks(tmp_path / "raw", SIZE)
    path = tmp_path / "raw" / "part-00000.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes(len(content) // 2) + content[100 + len(content) // 2 :])
    for workers in (1, 2):
        with pytest.raises(
            UserError, match=r"part-00000\.parquet cannot be read.*dvc repro -f download"
        ):
            write(chunks, tokenizer, tmp_path / str(workers), workers=workers)


def test_parts_that_hold_no_documents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no part-"):
        find_chunks(tmp_path)
    with Writer(tmp_path, "summarization") as writer:
        writer.write(dict.fromkeys(("id", "document", "summary", "group", "split"), "x"))
    with pytest.raises(UserError, match="has no column text, source"):
        find_chunks(tmp_path)


def dies(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def doubles(item: int) -> int:
    if item == 7:
        raise ValueError("seven")
    return 2 * item


def give(function: Any) -> Any:
    return function


def run(function: Any, count: int) -> list[int]:
    with Workers(count) as workers:
        return list(workers.ordered(partial(give, function), range(10)))


def test_a_worker_that_is_killed_is_told_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"want of memory.*tokenize\.workers"):
        run(dies, 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_errors_in_their_turn(workers: int) -> None:
    with Workers(workers) as pool:
        results = pool.ordered(partial(give, doubles), range(100))
        assert [next(results) for _ in range(7)] == [0, 2, 4, 6, 8, 10, 12]
        with pytest.raises(ValueError, match="seven"):
            next(results)


def test_few_items_are_handed_out_at_a_time() -> None:
    given = []

    def items() -> Iterator[int]:
        for i in range(50):
            given.append(i)
            yield i % 7

    with Workers(2) as workers:
        next(workers.ordered(partial(give, doubles), items()))
        assert len(given) <= 2 + parallel.AHEAD + 1


def test_workers_that_never_get_a_function_end_too() -> None:
    with Workers(2) as workers:
        assert workers.pool is not None
        children = list(workers.pool._processes.values())
    assert [child.exitcode for child in children] == [0, 0]


def test_too_little_room_is_refused_before_the_work(
    found: list[Chunk], tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sample.shard_bytes(found, tokenizer)
    write(found, tokenizer, tmp_path / "work")
    taken = sum(path.stat().st_size for path in (tmp_path / "work" / "tokens").glob("*.npy"))
    assert (
        taken < needed < 1.5 * taken
    )  # in row groups this small, Parquet's own statistics are a third of the bytes
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed // 2))
    sample.check_disk(
        needed, tmp_path / "work", tmp_path / "data" / "tokens"
    )  # most is there already
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"will take about .* GB free.*download\.pretrain"):
        sample.check_disk(needed, tmp_path / "empty", tmp_path / "data" / "tokens")


# -- cleaning


class Fifth(Plan):
    """Leaves out every fifth document and puts words in upper case."""

    def __call__(self, index: int, text: str) -> Cleaned:
        return Cleaned(None, "fifth", None, text) if index % 5 == 0 else Cleaned(text.upper())


@pytest.mark.parametrize("workers", [1, 2])
def test_cleaned_documents_are_split_by_what_they_were_and_counted(
    workers: int, found: list[Chunk], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    _, counts = write(
        found, tokenizer, tmp_path, workers=workers, plan=Fifth(Clean(whitespace=True), None)
    )
    for split in ("train", "val"):
        texts = [
            t.upper()
            for i, t in enumerate(TEXTS)
            if i % 5 and is_validation(t, 0.2) == (split == "val")
        ]
        stream = TokenStream(tmp_path / "tokens", split)
        assert [tokenizer.decode(ids.tolist()) for ids in stream.documents_ids()] == texts
    assert counts.tally.removed == {"fifth": 120}
    assert [place for place, _, _ in counts.tally.examples["fifth"]] == [0, 5, 10, 15, 20]
    assert (
        counts.metrics(tokenizer, Clean(whitespace=True))["clean"]["rules"]["fifth"]["removed"]
        == 120
    )
    assert (
        sum(
            source["train_documents"] + source["val_documents"]
            for source in counts.sources.values()
        )
        == 480
    )


# -- counts


def test_counts_come_back_from_json_and_add_up(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    whole, parts = Counts(10), Counts(10)
    for number in range(5):
        sizes, lengths = rng.integers(1, 500, 40), rng.integers(1, 100, 40)
        validation, sources = (
            rng.random(40) < 0.3,
            pa.array([f"s{i}" for i in rng.integers(0, 6, 40)]),
        )
        part = Counts(10)
        for counts in (whole, part):
            counts.add(sizes, lengths, validation, sources)
            counts.tokens += np.bincount(rng.integers(0, 10, 5) * 0 + number, minlength=10)
        parts.merge(Counts.from_json(json.loads(json.dumps(part.to_json()))))
    assert parts.to_json() == whole.to_json()
    for split in ("train", "val"):
        for kind, number in whole.splits[split].items():
            assert sum(source[f"{split}_{kind}"] for source in whole.sources.values()) == number > 0
    assert whole.lengths.total() == 200


def test_many_sources_are_counted_together_beyond_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm.corpus.statistics.MAX_SOURCES", 3)
    counts = Counts(10)
    ones = np.ones(10, dtype=np.int64)
    counts.add(ones, ones, ones > 1, pa.array(["a", "b", "c", "d", "e", "a", "f", "d", "b", "g"]))
    assert {name: source["train_documents"] for name, source in counts.sources.items()} == {
        "a": 2,
        "b": 2,
        "c": 1,
        "(other sources)": 5,
    }
