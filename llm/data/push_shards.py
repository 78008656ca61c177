"""Copying of token shards to a remote file system, where other machines read them."""

from __future__ import annotations

import hashlib
import json
import posixpath
from functools import partial
from pathlib import Path
from typing import Any

from llm.data.remote_shards import BLOCK, INDEX, digest, remote_folder
from llm.errors import UserError
from llm.runtime.io import read_json
from llm.runtime.progress import Progress
from llm.runtime.remote_fs import Address

SPLITS = ("train", "val")


def push(directory: Path, url: str, block: int = BLOCK) -> str:
    """Copy the shards to a folder of their own at the address, then the digests of their blocks.

    A push that was interrupted resumes. Readers accept the folder once the digests are there.

    Args:
        directory: the folder of token shards and their meta.json.
        url: address of the remote folder.
        block: bytes that a reader fetches at a time.

    Returns:
        The folder at the address, named by the digest of meta.json.

    Raises:
        UserError: there are no tokens, a shard is not what meta.json says, or the address cannot be
            written.
    """
    meta = directory / "meta.json"
    if not meta.exists():
        raise UserError(f"{meta}: no such file. `dvc checkout` or `dvc repro tokenize` brings it.")
    address = Address(url, "URL")
    fs, root = address.fs, remote_folder(address, directory)
    manifest = read_json(meta)
    try:
        listed = [
            {key: shard[key] for key in ("file", "sha256")}
            for s in SPLITS
            for shard in manifest[s]["shards"]
        ]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{meta} does not describe shards ({type(error).__name__}: {error}). Run `dvc repro -sf tokenize`."
        ) from None
    missing = [shard["file"] for shard in listed if not (directory / shard["file"]).exists()]
    if missing:
        raise UserError(
            f"{directory / missing[0]}: no such file. `dvc checkout` or `dvc repro tokenize` brings it."
        )
    entries, total = [], sum((directory / shard["file"]).stat().st_size for shard in listed)
    write = partial(address.require, failure="cannot be written", remedy="Fix it, and push again.")
    fs.invalidate_cache()
    write(lambda: fs.makedirs(root, exist_ok=True))
    with Progress("tokens", total, "B", scale=True) as progress:
        for shard in listed:
            entry = described(directory / shard["file"], shard, block)
            path = posixpath.join(root, shard["file"])
            write(partial(_put, fs, directory, path, entry["bytes"]))
            entries.append(entry)
            progress.update(entry["bytes"])
    index = json.dumps({"block": block, "shards": entries}).encode()
    write(lambda: fs.put_file(str(meta), posixpath.join(root, "meta.json")))
    write(lambda: fs.pipe_file(posixpath.join(root, INDEX), index))
    print(
        f"tokens: {len(entries)} shards, {total:,} bytes → {address.url}/{posixpath.basename(root)}"
    )
    return root


def described(path: Path, shard: dict[str, Any], block: int) -> dict[str, Any]:
    """Return a shard's entry in blocks.json.

    Args:
        path: the shard's file.
        shard: its `file` and `sha256` in meta.json.
        block: bytes of a block.

    Raises:
        UserError: the file is not what meta.json says.
    """
    whole, digests = hashlib.sha256(), []
    with open(path, "rb") as file:
        while data := file.read(block):
            whole.update(data)
            digests.append(digest(data))
        size = file.tell()
    if whole.hexdigest() != shard["sha256"]:
        raise UserError(
            f"{path} is not what meta.json says. Run `dvc repro -sf tokenize` to write it again."
        )
    return {
        "file": shard["file"],
        "sha256": shard["sha256"],
        "bytes": size,
        "digests": "".join(digests),
    }


def _put(fs: Any, directory: Path, there: str, size: int) -> None:
    """Copy a shard unless a file of its length is there: only this function writes that folder."""
    if not fs.exists(there) or fs.size(there) != size:
        fs.put_file(str(directory / posixpath.basename(there)), there)
