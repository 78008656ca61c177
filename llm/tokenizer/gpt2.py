"""GPT-2's vocabulary: OpenAI's two files in tiktoken's cache, verified, downloaded if missing."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from pathlib import Path

from llm.errors import UserError
from llm.runtime.io import sha256, write_bytes

BASE = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
SHA256 = {  # as in tiktoken_ext.openai_public
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
TIMEOUT = 15.0  # seconds without an answer; tiktoken's own download has no time-out


def ranks() -> dict[bytes, int]:
    """Return token bytes to id, as tiktoken numbers them, without the end-of-text token.

    Raises:
        UserError: the files are not on this machine and cannot be downloaded, or differ from the
            published ones.
    """
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    folder = fetched()
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    # tiktoken must read the files that were just verified.
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    try:
        vocabulary, encoder = ((BASE + name, digest) for name, digest in SHA256.items())
        return data_gym_to_mergeable_bpe_ranks(vocabulary[0], encoder[0], vocabulary[1], encoder[1])
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before


def are_here() -> bool:
    """Tell whether GPT-2's two files are on this machine, without a download."""
    return all(path.is_file() for path in paths()[1].values())


def paths() -> tuple[Path, dict[str, Path]]:
    """Return tiktoken's cache folder and the paths of the two files in it."""
    configured = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = Path(configured) if configured else Path(tempfile.gettempdir()) / "data-gym-cache"
    names = {name: hashlib.sha1((BASE + name).encode()).hexdigest() for name in SHA256}  # noqa: S324
    return folder, {name: folder / cached for name, cached in names.items()}


def fetched() -> Path:
    """Download GPT-2's two files if they are missing, verify them and return their folder.

    Raises:
        UserError: they cannot be downloaded, or differ from the published ones.
    """
    folder, files = paths()
    remedy = "Copy the two files from a machine with a network:" + "".join(
        f"\n  {BASE}{name}\n    to {path}" for name, path in files.items()
    )
    remedy += "\n(TIKTOKEN_CACHE_DIR chooses another folder), or set tokenize.tokenizer to bpe."
    for name, path in files.items():
        if path.is_file():
            if sha256(path) != SHA256[name]:
                raise UserError(f"{path} is not GPT-2's {name}: its SHA-256 is another. {remedy}")
            continue
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            raise UserError(
                f"GPT-2's {name} is not on this machine, and HF_HUB_OFFLINE is set. {remedy}"
            )
        try:
            with urllib.request.urlopen(BASE + name, timeout=TIMEOUT) as answer:
                content = answer.read()
        except OSError as error:  # urllib's errors and time-outs are OSErrors
            raise UserError(
                f"GPT-2's {name} is not on this machine and cannot be downloaded ({error}). {remedy}"
            ) from None
        if hashlib.sha256(content).hexdigest() != SHA256[name]:
            raise UserError(f"{BASE}{name} answered with other bytes than GPT-2's. {remedy}")
        write_bytes(path, content)
    return folder
