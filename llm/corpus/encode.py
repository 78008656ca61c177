"""From `data/raw/pretrain` to token shards: in bounded memory, on all cores, and on from where it
was after a kill.

Workers encode chunks of the corpus; this process appends what they give, in the corpus' order, and
writes down every few seconds how far it got. So the bytes depend neither on the number of workers
nor on kills."""

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

from llm.corpus import chunks
from llm.corpus.chunks import Chunk
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
from llm.text.hashing import is_validation
from llm.tokenizer.bpe import Tokenizer, valid_unicode
from llm.tokenizer.encoders import make_encoder
from llm.tokenizer.split_points import content

SYNC_SECONDS = 10.0  # between two records of how far it got
CHECKED_EVERY, CHECKED_BYTES = (
    512,
    1 << 18,
)  # documents compared with tiktoken: each so many, if no longer than that
COUNTED = 1 << 20  # ids counted at a time
WORKER_BYTES = 64 << 20  # of text that are worth another worker: starting one takes half a second


def worker_count(found: list[Chunk], wanted: int | None) -> int:
    """Processes for a corpus: as many as are wanted, or as there are cores and work for."""
    return wanted or max(1, min(pool.cores(), sum(chunk.bytes for chunk in found) // WORKER_BYTES))


Ordered = Callable[
    [Callable[[], "ChunkEncoder"], list[Chunk]], Iterator["Encoded"]
]  # a function over chunks, in order


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
        documents = read_documents(chunk, self.plan, counts.tally)
        texts, held_out = documents["text"], is_held_out(documents["text"], self.val_fraction)
        ids, lengths = self.encoder.encode(texts)
        self._check(chunk, ids, lengths, documents)
        ids = np.insert(ids, np.cumsum(lengths), self.tokenizer.eos_id)
        lengths = lengths + 1
        counts.add(np.diff(content(texts)[1]), lengths, held_out, documents["source"])
        for some in np.split(
            ids, range(COUNTED, len(ids), COUNTED)
        ):  # bincount makes 8 bytes of each id
            counts.tokens += np.bincount(some, minlength=len(counts.tokens))
        mask = np.repeat(held_out, lengths)
        return Encoded({"train": ids[~mask], "val": ids[mask]}, counts)

    def _check(
        self,
        chunk: Chunk,
        ids: np.ndarray,
        lengths: np.ndarray,
        documents: dict[str, pa.StringArray],
    ) -> None:
        """Raises UserError where a sampled document's ids are not tiktoken's."""
        ends = np.cumsum(lengths)
        sizes = np.diff(content(documents["text"])[1])
        for row in range(0, len(ends), CHECKED_EVERY):
            if sizes[row] > CHECKED_BYTES:
                continue
            expected = self.tokenizer.encode_to_numpy(documents["text"][row].as_py())
            if not np.array_equal(ids[ends[row] - lengths[row] : ends[row]], expected):
                raise UserError(
                    f"tokenize: the ids of document {documents['id'][row].as_py()} ({chunk.path}, among documents "
                    f"{chunk.place:,} to {chunk.place + chunk.rows - 1:,}) are not tiktoken's. That is a fault of this "
                    "program: please report it with the document. Set tokenize.encoder to tiktoken to go on without "
                    "the fast encoder."
                )


def read_documents(chunk: Chunk, plan: Plan, tally: Tally) -> dict[str, pa.StringArray]:
    """id, text and source of a chunk's documents, after cleaning."""
    table = chunks.read_chunk(chunk)
    columns: dict[str, Any] = {name: _whole(table[name]) for name in chunks.COLUMNS}
    if plan.params.active:
        rows, texts = [], []
        for row, value in enumerate(columns["text"]):
            text = value.as_py()
            cleaned = plan(chunk.place + row, text)
            tally.add(chunk.place + row, text, cleaned)
            if cleaned.text is not None:
                rows.append(row)
                texts.append(valid_unicode(cleaned.text))
        kept = pa.array(rows, pa.int64())
        columns = {name: columns[name].take(kept) for name in chunks.COLUMNS} | {
            "text": pa.array(texts, pa.string())
        }
    return columns


def is_held_out(texts: pa.StringArray, val_fraction: float) -> np.ndarray:
    """Whether each of (n,) cleaned documents is on the validation side, bool (n,): what is equal
    lies on one side.
    """
    data, ends = content(texts)
    return np.array([is_validation(data[a:b], val_fraction) for a, b in pairwise(ends)], dtype=bool)


def _whole(column: pa.ChunkedArray) -> pa.StringArray:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def encode_corpus(
    found: list[Chunk],
    tokenizer: Tokenizer,
    work: Path,
    val_fraction: float,
    shard_tokens: int,
    plan: Plan,
    ordered: Ordered | None = None,
    encoder: str = "auto",
    mixture: dict[str, float] | None = None,
) -> tuple[dict[str, Any], Counts]:
    """Write train and val shards into `work`/tokens, from where an earlier call was killed.

    Args:
        found: all chunks of the corpus.
        work: a directory of this corpus, tokenizer and params alone.
        plan: what is to become of each document.
        ordered: `Workers.ordered`, or that of a cluster; None: this process alone.
        mixture: weights by source, of a mixture.

    Returns:
        File, tokens and sha256 of each shard, by split; what was counted.

    Raises:
        UserError: a damaged part; ids that are not tiktoken's; a worker was killed.
    """
    begin = partial(
        ShardWriter, work / "tokens", dtype=tokenizer.id_type, shard_tokens=shard_tokens
    )
    done, writers, counts = _continued(work, begin) or _afresh(
        work, begin, Counts(tokenizer.vocab_size, mixture)
    )
    if done:
        print(f"tokenize: continues after {done} of {len(found)} chunks", flush=True)
    left = [chunk.bytes for chunk in found[done:]]
    make = partial(ChunkEncoder, tokenizer, val_fraction, encoder, plan, mixture or {})
    ordered = ordered or pool.Workers(1).ordered
    every = env.state_seconds(SYNC_SECONDS)
    saved = time.monotonic()
    whole = sum(chunk.bytes for chunk in found)
    with Progress("tokenize", whole, "B", start=whole - sum(left), scale=True) as progress:
        for chunk, encoded in zip(found[done:], ordered(make, found[done:]), strict=True):
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
    shards = {split: writer.close() for split, writer in writers.items()}
    _save(work, done, {split: {"shards": shards[split], "filled": 0} for split in SPLITS}, counts)
    return shards, counts


Place = tuple[
    int, dict[str, ShardWriter], Counts
]  # chunks done, writers that stand behind them, what they hold


def _save(work: Path, done: int, places: dict[str, Any], counts: Counts) -> None:
    write_json(
        work / "progress.json", {"chunks": done, "places": places, "counts": counts.to_json()}
    )


def _continued(work: Path, begin: Callable[..., ShardWriter]) -> Place | None:
    """Where an earlier call came to, if one did and what it left is whole."""
    path = work / "progress.json"
    if not path.exists():
        return None
    try:
        place = read_json(path)
        writers = {split: begin(split=split, place=place["places"][split]) for split in SPLITS}
        return int(place["chunks"]), writers, Counts.from_json(place["counts"])
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        print(
            f"warning: tokenize starts afresh: {path} cannot be continued ({error}).",
            file=sys.stderr,
            flush=True,
        )
        return None


def _afresh(work: Path, begin: Callable[..., ShardWriter], counts: Counts) -> Place:
    shutil.rmtree(work / "tokens", ignore_errors=True)
    (work / "tokens").mkdir(parents=True)
    return 0, {split: begin(split=split) for split in SPLITS}, counts


def describe(
    shards: dict[str, Any],
    counts: Counts,
    tokenizer: Tokenizer,
    val_fraction: float,
    min_train_tokens: int = 1,
) -> dict[str, Any]:
    """The content of meta.json.

    Raises:
        UserError: no text on one of the two sides, or fewer training tokens than one sequence
            takes.
    """
    for split, other in (("train", "lower"), ("val", "raise")):
        if not counts.splits[split]["tokens"]:
            total = sum(side["documents"] for side in counts.splits.values())
            raise UserError(
                f"tokenize: no document fell on the {split} side of {total}; "
                f"add documents (download.pretrain) or {other} tokenize.val_fraction."
            )
    if (found := counts.splits["train"]["tokens"]) < min_train_tokens:
        raise UserError(
            f"tokenize: {found} training tokens are fewer than one sequence of {min_train_tokens}; "
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
    """Digest of the source that decides what is written, and the versions that do."""
    versions = {name: version(name) for name in ("tiktoken", "tokenizers", "pyarrow")}
    return {"code": code_digest("corpus", "text", "tokenizer"), **versions}


def decided_by(p: Params, raw: Path) -> dict[str, Any]:
    """Digests of all that decides what is written; after a change of it, unfinished work is begun
    anew.

    raw: the text to tokenize, beside which lie the tasks' records.
    """
    t = p.tokenize
    found: dict[str, Any] = {"tokenize": t.model_dump(exclude={"workers", "encoder", "engine"})}
    found["raw"] = sha256(raw / "manifest.json")
    if t.tokenizer == "pretrained":
        found["source"] = sha256(Path(t.origin) / "tokenizer.json")
    if t.clean.decontaminate:
        found["examples"] = {
            name: sha256(raw.parent / name / "manifest.json") for name in p.mix.tasks
        }
        found["split"] = [p.mix.val_fraction, p.mix.test_fraction]
    return found | code_version()
