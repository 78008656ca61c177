"""Encoding of `data/raw/pretrain` as token shards: bounded memory, all cores, resumable.

Workers encode chunks of the corpus. This process appends their ids in the order of the corpus and
saves its progress every few seconds. So the bytes depend neither on the number of workers nor on
kills.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from llm.corpus.chunks import COLUMNS, Chunk, read_chunk
from llm.corpus.clean.plan import Plan
from llm.corpus.clean.report import Tally
from llm.corpus.shard_writer import ShardWriter
from llm.corpus.statistics import SPLITS, Counts
from llm.errors import UserError
from llm.params import Params
from llm.runtime import env, pool
from llm.runtime.io import read_json, sha256, write_json
from llm.runtime.progress import Progress
from llm.runtime.provenance import code_digest
from llm.text.hashing import is_held_out
from llm.tokenizer.bpe import Tokenizer, valid_unicode
from llm.tokenizer.encoders import make_encoder
from llm.tokenizer.split_points import content

SYNC_SECONDS = 10.0  # between two saves of the progress
# One of so many documents is compared with tiktoken, unless it has more bytes than this.
CHECKED_EVERY, CHECKED_BYTES = 512, 1 << 18
COUNTED = 1 << 20  # ids counted at a time
WORKER_BYTES = 64 << 20  # text that is worth another worker, which takes half a second to start


def worker_count(chunks: list[Chunk], wanted: int | None) -> int:
    """Return the number of processes: `wanted`, or as many as there are cores and work for."""
    return wanted or max(1, min(pool.cores(), sum(chunk.bytes for chunk in chunks) // WORKER_BYTES))


# Maps a function over chunks, and yields the results in their order.
Ordered = Callable[[Callable[[], "ChunkEncoder"], list[Chunk]], Iterator["Encoded"]]


class Encoded(NamedTuple):
    """A chunk's ids by split, each document followed by the end token, and its counts."""

    ids: dict[str, np.ndarray]
    counts: Counts


class ChunkEncoder:
    """Reads a chunk, cleans its documents, encodes them and compares a sample with tiktoken."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        val_fraction: float,
        encoder: str,
        plan: Plan,
        mixture: dict[str, float],
    ) -> None:
        self.tokenizer, self.val_fraction, self.plan, self.mixture = (
            tokenizer,
            val_fraction,
            plan,
            mixture,
        )
        self.encoder = make_encoder(tokenizer, encoder)

    def __call__(self, chunk: Chunk) -> Encoded:
        counts = Counts(self.tokenizer.vocab_size, self.mixture)
        documents, held_out = read_documents(chunk, self.plan, counts.tally, self.val_fraction)
        texts = documents["text"]
        ids, lengths = self.encoder.encode(texts)
        self._check(chunk, ids, lengths, documents)
        ids = np.insert(ids, np.cumsum(lengths), self.tokenizer.eos_id)
        lengths = lengths + 1
        counts.add(np.diff(content(texts)[1]), lengths, held_out, documents["source"])
        # bincount needs 8 bytes an id, so it gets a part at a time.
        for part in np.split(ids, range(COUNTED, len(ids), COUNTED)):
            counts.tokens += np.bincount(part, minlength=len(counts.tokens))
        mask = np.repeat(held_out, lengths)
        return Encoded({"train": ids[~mask], "val": ids[mask]}, counts)

    def _check(
        self,
        chunk: Chunk,
        ids: np.ndarray,
        lengths: np.ndarray,
        documents: dict[str, pa.StringArray],
    ) -> None:
        """Raise UserError if the ids of a sampled document are not tiktoken's."""
        ends = np.cumsum(lengths)
        sizes = np.diff(content(documents["text"])[1])
        for row in range(0, len(ends), CHECKED_EVERY):
            if sizes[row] > CHECKED_BYTES:
                continue
            expected = self.tokenizer.encode_to_numpy(documents["text"][row].as_py())
            if not np.array_equal(ids[ends[row] - lengths[row] : ends[row]], expected):
                raise UserError(
                    f"tokenize: the ids of document {documents['id'][row].as_py()} ({chunk.path}, among documents "
                    f"{chunk.start:,} to {chunk.start + chunk.rows - 1:,}) are not tiktoken's. That is a fault of this "
                    "program: please report it with the document. Set tokenize.encoder to tiktoken to go on without "
                    "the fast encoder."
                )


def read_documents(
    chunk: Chunk, plan: Plan, tally: Tally, val_fraction: float
) -> tuple[dict[str, pa.StringArray], np.ndarray]:
    """Return the columns of a chunk's documents after cleaning, and a mask of the held-out ones.

    A document's side follows from its group, or from its text before cleaning, so no rule moves it.
    """
    table = read_chunk(chunk)
    columns: dict[str, Any] = {name: _whole(table[name]) for name in COLUMNS}
    data, ends = content(columns["text"])
    groups = columns["group"].to_pylist()
    held_out = np.array(
        [
            is_held_out(group, data[a:b], val_fraction)
            for group, (a, b) in zip(groups, pairwise(ends), strict=True)
        ],
        dtype=bool,
    )
    if plan.params.active:
        rows, texts = [], []
        for row, value in enumerate(columns["text"]):
            text = value.as_py()
            cleaned = plan(chunk.start + row, text)
            tally.add(chunk.start + row, text, cleaned)
            if cleaned.text is not None:
                rows.append(row)
                texts.append(valid_unicode(cleaned.text))
        kept_rows = pa.array(rows, pa.int64())
        columns = {name: columns[name].take(kept_rows) for name in COLUMNS} | {
            "text": pa.array(texts, pa.string())
        }
        held_out = held_out[rows]
    return columns, held_out


def _whole(column: pa.ChunkedArray) -> pa.StringArray:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def encode_corpus(
    chunks: list[Chunk],
    tokenizer: Tokenizer,
    work: Path,
    val_fraction: float,
    shard_tokens: int,
    plan: Plan,
    ordered: Ordered | None = None,
    encoder: str = "auto",
    mixture: dict[str, float] | None = None,
    last: Callable[[], Encoded] | None = None,
) -> tuple[dict[str, Any], Counts]:
    """Write train and val shards into `work`/tokens; resume a run that was killed.

    Args:
        chunks: all chunks of the corpus.
        tokenizer: encodes the documents.
        work: directory for this corpus, tokenizer and params alone.
        val_fraction: share of the documents that is held out.
        shard_tokens: ids of a full shard.
        plan: cleans the documents.
        ordered: `Workers.ordered`, or a cluster's; None encodes in this process.
        encoder: `tokenize.encoder`.
        mixture: weights by source, if the corpus is a mixture.
        last: encodes documents that follow those of the chunks; None: there are none.

    Returns:
        File, tokens and sha256 of each shard, by split; counts of the corpus.

    Raises:
        UserError: a part is damaged, ids are not tiktoken's, or a worker was killed.
    """
    new_writer = partial(
        ShardWriter, work / "tokens", dtype=tokenizer.id_type, shard_tokens=shard_tokens
    )
    done, writers, counts = _saved_progress(work, new_writer) or _start(
        work, new_writer, Counts(tokenizer.vocab_size, mixture)
    )
    if done:
        print(f"tokenize: resumes after {done} of {len(chunks)} chunks", flush=True)
    left = sum(chunk.bytes for chunk in chunks[done:])
    make = partial(ChunkEncoder, tokenizer, val_fraction, encoder, plan, mixture or {})
    ordered = ordered or pool.Workers(1).ordered
    every = env.state_seconds(SYNC_SECONDS)
    saved = time.monotonic()
    total = sum(chunk.bytes for chunk in chunks)
    with Progress("tokenize", total, "B", start=total - left, scale=True) as progress:
        for chunk, encoded in zip(chunks[done:], ordered(make, chunks[done:]), strict=True):
            for split, writer in writers.items():
                writer.add(encoded.ids[split])
            counts.merge(encoded.counts)
            done += 1
            if time.monotonic() - saved >= every:
                _save(
                    work, done, {split: writer.sync() for split, writer in writers.items()}, counts
                )
                saved = time.monotonic()
            progress.update(chunk.bytes)
    if last is not None and done == len(chunks):
        encoded = last()
        for split, writer in writers.items():
            writer.add(encoded.ids[split])
        counts.merge(encoded.counts)
        done += 1
    shards = {split: writer.close() for split, writer in writers.items()}
    _save(work, done, {split: {"shards": shards[split], "filled": 0} for split in SPLITS}, counts)
    return shards, counts


# chunks done, writers positioned behind them, counts of them
State = tuple[int, dict[str, ShardWriter], Counts]


def _save(work: Path, done: int, positions: dict[str, Any], counts: Counts) -> None:
    write_json(
        work / "progress.json", {"chunks": done, "places": positions, "counts": counts.to_json()}
    )


def _saved_progress(work: Path, new_writer: Callable[..., ShardWriter]) -> State | None:
    """Return the progress of a killed run, or None if there is none or its files are damaged."""
    path = work / "progress.json"
    if not path.exists():
        return None
    try:
        saved = read_json(path)
        writers = {
            split: new_writer(split=split, position=saved["places"][split]) for split in SPLITS
        }
        return int(saved["chunks"]), writers, Counts.from_json(saved["counts"])
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        print(
            f"warning: tokenize starts afresh: {path} cannot be continued ({error}).",
            file=sys.stderr,
            flush=True,
        )
        return None


def _start(work: Path, new_writer: Callable[..., ShardWriter], counts: Counts) -> State:
    shutil.rmtree(work / "tokens", ignore_errors=True)
    (work / "tokens").mkdir(parents=True)
    return 0, {split: new_writer(split=split) for split in SPLITS}, counts


def describe(
    shards: dict[str, Any],
    counts: Counts,
    tokenizer: Tokenizer,
    val_fraction: float,
    min_train_tokens: int = 1,
) -> dict[str, Any]:
    """Return the content of meta.json.

    Raises:
        UserError: a side has no text, or training has fewer tokens than one sequence.
    """
    for split, other in (("train", "lower"), ("val", "raise")):
        if not counts.splits[split]["tokens"]:
            total = sum(side["documents"] for side in counts.splits.values())
            raise UserError(
                f"tokenize: no document fell on the {split} side of {total}; "
                f"add documents (download.pretrain) or {other} tokenize.val_fraction."
            )
    if (train_tokens := counts.splits["train"]["tokens"]) < min_train_tokens:
        raise UserError(
            f"tokenize: {train_tokens} training tokens are fewer than one sequence of {min_train_tokens}; "
            "add text (download.pretrain) or lower pretrain.sequence_length."
        )
    return {
        "dtype": tokenizer.id_type.name,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "val_fraction": val_fraction,
        "tokenizer_sha256": hashlib.sha256(tokenizer.files()["tokenizer.json"]).hexdigest(),
        **{
            split: {
                **{kind: counts.splits[split][kind] for kind in ("tokens", "documents", "bytes")},
                "shards": shards[split],
            }
            for split in SPLITS
        },
    }


def code_version() -> dict[str, str]:
    """Return the digest of our code, and the package versions, that decide the written bytes."""
    versions = {name: version(name) for name in ("tiktoken", "tokenizers", "pyarrow")}
    return {"code": code_digest("corpus", "tasks", "text", "tokenizer"), **versions}


def decided_by(p: Params, raw: Path) -> dict[str, Any]:
    """Return digests of everything that decides the written bytes.

    If one changes, unfinished work restarts.

    Args:
        p: all params.
        raw: folder of the text to tokenize; the tasks' records are beside it.
    """
    t = p.tokenize
    inputs: dict[str, Any] = {"tokenize": t.model_dump(exclude={"workers", "encoder", "engine"})}
    inputs["raw"] = sha256(raw / "manifest.json")
    if t.tokenizer == "pretrained":
        inputs["source"] = sha256(Path(t.origin) / "tokenizer.json")
    if t.task_examples:
        inputs["drawn"] = [p.seed, p.pretrain.sequence_length]
    if t.clean.decontaminate or t.task_examples:
        inputs["examples"] = {
            name: sha256(raw.parent / name / "manifest.json") for name in p.mix.tasks
        }
        inputs["split"] = [p.mix.val_fraction, p.mix.test_fraction]
    return inputs | code_version()
