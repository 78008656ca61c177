"""A weighted mixture of pretraining sources: `download.pretrain.source: mixture`.

The weights are shares of the bytes of text. Whole documents are chosen by a hash of their text, so
that a source that grows loses none of the documents it had. A source that is too small for its
weight is repeated, up to a stated number of times (Muennighoff et al. 2023, arXiv:2305.16264:
four passes over a text are worth nearly as much as new text)."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm.params import MixtureSource, Source
from llm.runtime.progress import Progress
from llm.sources import raw


def shares(
    sizes: dict[str, int], weights: dict[str, float], max_repeats: float
) -> dict[str, float]:
    """Return how often each source is taken: below 1 in part, above 1 with repetitions.

    The total is as large as the weights allow: the source that is scarcest for its weight is
    repeated at most `max_repeats` times, and the most plentiful one is taken at most once.

    Args:
        sizes: bytes of text, all above 0.
        weights: any positive numbers; their sum does not matter.
    """
    total_weight = sum(weights.values())
    per_weight = {name: size / (weights[name] / total_weight) for name, size in sizes.items()}
    total = min(max_repeats * min(per_weight.values()), max(per_weight.values()))
    return {name: total / per_weight[name] for name in sizes}


def copies(text: str, share: float) -> int:
    """Return how often a document is taken; the mean over documents is `share`."""
    digest = hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=8, person=b"mixture"
    ).digest()
    return int(share) + (int.from_bytes(digest, "big") < (share - int(share)) * 2**64)


def write_mixture(
    source: MixtureSource, out: Path, write: Callable[[str, Source, Path], dict[str, Any]]
) -> tuple[raw.Writer, dict[str, Any]]:
    """Write the documents of all sources; `source` of a record is the name of its source.

    Args:
        out: directory for the parts, with a temporary directory for the sources.
        write: writes a source's records, given its name, the source and a directory; returns its
            manifest.

    Returns:
        The closed writer, and the manifest's entry for each source.
    """
    manifests = {
        name: write(name, inner, out / ".sources" / name) for name, inner in source.sources.items()
    }
    sizes = {name: manifest["bytes"] for name, manifest in manifests.items()}
    weights = {name: source.weights.get(name, 1.0) for name in sizes}
    taken = shares(sizes, weights, source.max_repeats)
    entries = {}
    with (
        raw.Writer(out, "pretrain") as writer,
        Progress("mixture", sum(sizes.values()), "B", scale=True) as progress,
    ):
        for name, manifest in manifests.items():
            rows, size = writer.rows, writer.bytes
            for record in raw.read(out / ".sources" / name):
                for number in range(copies(record["text"], taken[name])):
                    again = f"#{number + 1}" if number else ""
                    writer.write({**record, "id": f"{name}/{record['id']}{again}", "source": name})
                progress.update(raw.text_bytes(record))
            entries[name] = {
                "weight": weights[name] / sum(weights.values()),
                "times_taken": taken[name],
                "taken_rows": writer.rows - rows,
                "taken_bytes": writer.bytes - size,
                **{
                    key: value
                    for key, value in manifest.items()
                    if key not in ("name", "kind", "files")
                },
            }
    shutil.rmtree(out / ".sources")
    return writer, entries
