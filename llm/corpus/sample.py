"""What a small part of a corpus tells of the whole: a tokenizer, and the room that its tokens will
take.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from llm.corpus.chunks import Chunk, read_chunk
from llm.corpus.clean.plan import Plan
from llm.corpus.clean.report import Tally
from llm.corpus.encode import is_held_out, read_documents
from llm.params import Tokenize
from llm.runtime import outputs
from llm.runtime.disk import refuse_what_cannot_fit
from llm.runtime.io import whole_directory
from llm.tokenizer.bpe import Tokenizer

# of text that BPE is trained on; of more, row groups at equal distances (docs/LOG.md: enough)
SAMPLE_BYTES = 100_000_000
LOOKED_AT, LOOK_BYTES = (
    8,
    1 << 16,
)  # places, and bytes of text at each, from which tokens a byte are estimated
MARGIN = 1.1  # room asked for beyond the estimate
T = TypeVar("T")


def spaced(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items at equal distances, or all where there are no more."""
    return (
        list(items)
        if count >= len(items)
        else [items[i * len(items) // count] for i in range(count)]
    )


def training_texts(groups: list[Chunk], val_fraction: float, plan: Plan) -> Iterator[str]:
    """Training documents for BPE: all, or of more than SAMPLE_BYTES those of row groups at equal
    distances.

    Args:
        groups: all row groups of the corpus (`find_chunks` with size 1).
    """
    total = sum(group.bytes for group in groups)
    for group in spaced(groups, max(1, len(groups) * SAMPLE_BYTES // max(1, total))):
        texts = read_documents(group, plan, Tally())["text"]
        for text, held_out in zip(texts, is_held_out(texts, val_fraction), strict=True):
            if not held_out:
                yield text.as_py()


def make_tokenizer(p: Tokenize, groups: list[Chunk], plan: Plan, kept: Path) -> Tokenizer:
    """GPT-2's encoding, a model directory's, or BPE trained on this text; what was made before is
    in `kept`.
    """
    if kept.is_dir():
        return Tokenizer.load(kept)
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
    with whole_directory(kept, outputs.TOKENIZER) as directory:
        tokenizer.save(directory)
    return tokenizer


def shard_bytes(groups: list[Chunk], tokenizer: Tokenizer) -> int:
    """About how many bytes the corpus' shards will take, from a look at a few places of it."""
    tokens = size = 0
    for group in spaced(groups, LOOKED_AT):
        looked = 0
        for text in read_chunk(group)["text"]:
            sample = text.as_py()[:LOOK_BYTES]
            tokens += len(tokenizer.encode(sample)) + 1
            looked += len(sample.encode())
            if looked >= LOOK_BYTES:
                break
        size += looked
    return int(
        sum(group.bytes for group in groups) * tokens / max(1, size) * tokenizer.id_type.itemsize
    )


def check_disk(needed: int, work: Path, output: Path) -> None:
    """Refuse what cannot fit, before it begins.

    Args:
        needed: bytes of the shards.
        work: where they are written; what an earlier call left there counts as written.
        output: the directory that they get a second name in, which takes room on another file
            system only.

    Raises:
        UserError: too little room.
    """
    written = sum(path.stat().st_size for path in (work / "tokens").glob("*.npy"))
    above = next(path for path in (output, *output.absolute().parents) if path.exists())
    places = {
        os.stat(above).st_dev: (above, MARGIN * needed),
        os.stat(work).st_dev: (work, MARGIN * needed - written),
    }
    for place, room in places.values():
        less = "take less text (max_documents or max_bytes of download.pretrain)"
        refuse_what_cannot_fit("tokenize: the token shards", room, place, less)
