"""Samples of a corpus: text to train a tokenizer on, and an estimate of the shards' size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from llm.corpus.chunks import Chunk, read_chunk
from llm.corpus.clean.plan import Plan
from llm.corpus.clean.report import Tally
from llm.corpus.encode import read_documents
from llm.params import Tokenize
from llm.runtime import outputs
from llm.runtime.disk import refuse_what_cannot_fit
from llm.runtime.io import whole_directory
from llm.text.spaced import spaced
from llm.tokenizer.bpe import Tokenizer

# bytes of text to train BPE on; docs/LOG.md shows that more does not help
SAMPLE_BYTES = 100_000_000
# row groups, and bytes of text in each, from which tokens a byte are estimated
ESTIMATE_GROUPS, ESTIMATE_BYTES = 8, 1 << 16
MARGIN = 1.1  # free disk asked for, as a multiple of the estimate


def training_texts(groups: list[Chunk], val_fraction: float, plan: Plan) -> Iterator[str]:
    """Yield training documents for BPE: all, or evenly spaced row groups of about SAMPLE_BYTES.

    Args:
        groups: all row groups of the corpus (`find_chunks` with size 1).
        val_fraction: share of the documents that is held out.
        plan: cleans the documents.
    """
    total = sum(group.bytes for group in groups)
    for group in spaced(groups, max(1, len(groups) * SAMPLE_BYTES // max(1, total))):
        documents, held_out = read_documents(group, plan, Tally(), val_fraction)
        for text, is_validation in zip(documents["text"], held_out, strict=True):
            if not is_validation:
                yield text.as_py()


def make_tokenizer(p: Tokenize, groups: list[Chunk], plan: Plan, saved: Path) -> Tokenizer:
    """Return GPT-2's tokenizer, a model directory's, or one trained on this text.

    An interrupted run left its tokenizer in `saved`; it is loaded instead of made again.
    """
    if saved.is_dir():
        return Tokenizer.load(saved)
    if p.tokenizer == "gpt2":
        tokenizer = Tokenizer.gpt2()
    elif p.tokenizer == "pretrained":
        tokenizer = Tokenizer.load(p.origin)
    else:
        tokenizer = Tokenizer.train(training_texts(groups, p.val_fraction, plan), p.vocab_size)
        if (size := tokenizer.vocab_size) < p.vocab_size:
            print(
                f"tokenize: the text yields {size} tokens, fewer than tokenize.vocab_size={p.vocab_size}"
            )
    with whole_directory(saved, outputs.TOKENIZER) as directory:
        tokenizer.save(directory)
    return tokenizer


def shard_bytes(groups: list[Chunk], tokenizer: Tokenizer) -> int:
    """Estimate the bytes of the corpus' shards from a few row groups."""
    tokens = size = 0
    for group in spaced(groups, ESTIMATE_GROUPS):
        sampled = 0
        for text in read_chunk(group)["text"]:
            sample = text.as_py()[:ESTIMATE_BYTES]
            tokens += len(tokenizer.encode(sample)) + 1
            sampled += len(sample.encode())
            if sampled >= ESTIMATE_BYTES:
                break
        size += sampled
    return int(
        sum(group.bytes for group in groups) * tokens / max(1, size) * tokenizer.id_type.itemsize
    )


def check_disk(needed: int, work: Path, output: Path) -> None:
    """Refuse to start if the shards do not fit on the disk.

    Args:
        needed: bytes of the shards.
        work: directory to write them in; shards of an interrupted run count as written.
        output: directory that they are linked into; on another file system they are copied.

    Raises:
        UserError: the disk is too full.
    """
    written = sum(path.stat().st_size for path in (work / "tokens").glob("*.npy"))
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    by_device = {
        os.stat(existing).st_dev: (existing, MARGIN * needed),
        os.stat(work).st_dev: (work, MARGIN * needed - written),
    }
    for directory, room in by_device.values():
        remedy = "take remedy text (max_documents or max_bytes of download.pretrain)"
        refuse_what_cannot_fit("tokenize: the token shards", room, directory, remedy)
