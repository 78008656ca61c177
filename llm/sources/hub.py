"""Hugging Face data sets as streams: from the hub by id and pinned revision, or a local directory.

Code that comes with a data set is never run: `datasets` 4 and later does not support it."""

from __future__ import annotations

import os
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.errors import UserError, first_line
from llm.params import HubSource
from llm.runtime.io import files_digest, parse_yaml
from llm.sources.manifest import NOT_STATED
from llm.sources.readers.paths import Input, Row

# Time limit for a connection to the hub; without a network `datasets` would retry for 24 s.
CONNECT_SECONDS = 0.9


@dataclass(frozen=True)
class Stream:
    """A split that is opened but not read yet."""

    columns: list[str] | None  # None: known only from the records
    labels: dict[str, list[str]]  # class names by column
    # The argument of `rows` chooses the columns to read from those of the split.
    rows: Callable[[Callable[[list[str]], list[str]]], Iterator[Row]]


def open_split(name: str, source: HubSource, split: str) -> Stream:
    """Open a split for streaming.

    Args:
        name: name of the data set under `download`, for messages.

    Raises:
        UserError: the hub cannot be reached; the data set, configuration, revision or split does
            not exist; files are damaged.
    """
    where = f"download.{name}: {source.id}"
    local = is_local(source)
    if not local:
        check_reachable(where)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets

    datasets.utils.logging.set_verbosity_error()
    with _explained(where, local):
        dataset = datasets.load_dataset(
            source.id,
            source.config,
            split=split,
            revision=None if local else source.revision,
            streaming=True,
        )
        if dataset.features is None:
            dataset = dataset._resolve_features()
    features = dataset.features or {}
    labels = {
        key: list(f.names) for key, f in features.items() if isinstance(f, datasets.ClassLabel)
    }
    columns = list(features) or None

    def rows(keep: Callable[[list[str]], list[str]]) -> Iterator[Row]:
        chosen = dataset.select_columns(keep(columns)) if columns else dataset
        iterator, number = iter(chosen), 0
        while True:
            with _explained(f"{where}, split {split}, after record {number}", local):
                record = next(iterator, None)
            if record is None:
                return
            number += 1
            yield Row(number, record)

    return Stream(columns, labels, rows)


class _explained:  # noqa: N801 - reads as a statement
    """Context that turns the exceptions of `datasets` into a UserError."""

    def __init__(self, where: str, local: bool) -> None:
        self.where, self.local = where, local

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, UserError):
            return
        name = type(error).__name__
        if isinstance(error, ConnectionError | TimeoutError) or "Connection" in name:
            remedy = "The network failed; rerun when it is back."
        elif self.local:
            remedy = "Correct id, config or split, or fix the directory's files."
        else:
            remedy = (
                "Correct id, config, split or revision; a gated data set needs `hf auth login`."
            )
        raise UserError(f"{self.where}: {first_line(error)[:300].rstrip('.')}. {remedy}") from error


def is_local(source: HubSource) -> bool:
    """Return whether the id is a local directory."""
    return Path(source.id).is_dir()


def revision(source: HubSource) -> str:
    """Return the pinned revision, or the digest of a local directory's files (names and content)."""
    if not is_local(source):
        return source.revision
    return f"sha256:{files_digest(_data_files(source.id), source.id)}"


def stamps(source: HubSource) -> list[list[str]]:
    """Return name and stamp of each file of a local directory; [] for a pinned revision."""
    files = _data_files(source.id) if is_local(source) else []
    return [[str(path), Input(str(path)).stamp()] for path in files]


def licence(source: HubSource) -> str:
    """Return the licence that the data set's card states."""
    try:
        if is_local(source):
            card = (Path(source.id) / "README.md").read_text(encoding="utf-8")
            front = card.split("---", 2)[1] if card.startswith("---") else ""
            stated = (parse_yaml(front, "its card") or {}).get("license")
        else:
            from huggingface_hub import DatasetCard, hf_hub_download

            path = hf_hub_download(
                source.id, "README.md", repo_type="dataset", revision=source.revision
            )
            stated = DatasetCard.load(path).data.to_dict().get("license")
    except Exception as error:  # a data set without a readable card is still usable
        return f"{NOT_STATED} (no readable card: {type(error).__name__})"
    if isinstance(stated, list):
        return ", ".join(map(str, stated))
    return str(stated) if stated else NOT_STATED


def _data_files(directory: str) -> list[Path]:
    return sorted(
        p for p in Path(directory).rglob("*") if p.is_file() and not p.name.startswith(".")
    )


def check_reachable(where: str) -> None:
    """Fail within a second if the hub, or the proxy to it, does not answer.

    Raises:
        UserError: there is no answer, or HF_HUB_OFFLINE is set.
    """
    advice = (
        "Connect and rerun, or use local files: source: files, or the path of a downloaded data set as id. "
        "`source: docs` needs no network."
    )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise UserError(
            f"{where}: the hub is not asked because HF_HUB_OFFLINE is set. Unset it, or: {advice}"
        )
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    address = urllib.parse.urlsplit(endpoint)
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(address.hostname or ""):
        address = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    host, port = address.hostname or "", address.port or (443 if address.scheme == "https" else 80)
    outcome: list[str] = []

    def connect() -> None:
        try:
            with socket.create_connection((host, port), timeout=CONNECT_SECONDS):
                outcome.append("")
        except OSError as error:
            outcome.append(error.strerror or str(error))

    # In a thread: a name server that does not answer cannot be given a time limit.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    reason = outcome[0] if outcome else f"no answer within {CONNECT_SECONDS} s"
    if reason:
        raise UserError(f"{where}: {host}:{port} cannot be reached ({reason}). {advice}")
