"""Input files: found by paths, globs and addresses, and read with readable errors."""

from __future__ import annotations

import fnmatch
import glob
import gzip
import hashlib
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

from llm.addresses import opened, public
from llm.errors import UserError, first_line

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}
# Keys of fsspec's `info` that change with the version of a remote file.
STAMPS = (
    "size",
    "ETag",
    "etag",
    "Content-MD5",
    "md5Hash",
    "generation",
    "LastModified",
    "last_modified",
    "mtime",
)
# Files read from a directory; a file named directly or by a glob may have any name.
SUFFIXES = {".txt", ".text", ".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv"}
DEPTH = 32  # levels of remote folders to search, because links may form cycles
# Control characters, line separators, and bytes of a name that are not UTF-8.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Characters or bytes of one line, JSON value, CSV field or document; limits a reader's memory.
MAX_RECORD = 64 << 20


class Row(NamedTuple):
    """A record and the line or row where it begins (from 1), or the reason why it is invalid."""

    line: int
    record: dict[str, Any] | None
    reason: str = ""  # short, equal for all such rows, so that they can be counted
    detail: str = ""  # about this row


@dataclass(frozen=True)
class Input:
    """One file to read."""

    title: str  # path from the params, for messages and the manifest
    label: str = ""  # short, unique, independent of the checkout's path; for ids
    fs: Any = field(default=None, compare=False, repr=False)  # fsspec file system; None: local
    path: str = field(default="", compare=False)  # in the file system; "" stands for `shown`

    @property
    def name(self) -> str:
        """Return the file's name, without an address's query and fragment."""
        return PurePosixPath(
            self.title.split("?")[0].split("#")[0] if "://" in self.title else self.title
        ).name

    @property
    def suffix(self) -> str:
        """Return the lower-case extension, without the compression's."""
        path = PurePosixPath(self.name)
        return PurePosixPath(
            path.stem if path.suffix.lower() in COMPRESSED else path.name
        ).suffix.lower()

    @property
    def packed(self) -> bool:
        """Return whether the name says that the content is compressed."""
        return PurePosixPath(self.title).suffix.lower() in (*COMPRESSED, ".parquet")

    def open(self) -> BinaryIO:
        """Open the stored bytes, still compressed."""
        if self.fs is not None:
            return cast(BinaryIO, self.fs.open(self.path, "rb"))
        return open(self.path or self.title, "rb")

    def size(self) -> int:
        """Return the stored bytes; -1 if a server does not report them."""
        if self.fs is not None:
            size = self.fs.info(self.path).get("size")
            return -1 if size is None else int(size)
        return os.path.getsize(self.path or self.title)

    def stamp(self) -> str:
        """Return a text that changes with the file: size, time and inode, or a server's stamps."""
        if self.fs is not None:
            info = self.fs.info(self.path)
            return json.dumps({key: str(info[key]) for key in STAMPS if info.get(key) is not None})
        status = os.stat(self.path or self.title)
        return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"

    def sha256(self) -> str:
        with reading(self), self.open() as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()


@contextmanager
def reading(source: Input) -> Iterator[None]:
    """Turn errors of the file system and of decompression into a UserError with the file's name."""
    import zstandard

    kind = COMPRESSED.get(PurePosixPath(source.name).suffix.lower(), "gzip")
    broken = "it is damaged or incomplete: copy or download it again"
    try:
        yield
    except EOFError:
        raise UserError(
            f"{source.title}: ends in the middle of its {kind} data; {broken}."
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{source.title}: corrupt gzip ({error}); {broken}.") from None
    except lzma.LZMAError as error:
        raise UserError(f"{source.title}: corrupt xz ({error}); {broken}.") from None
    except zstandard.ZstdError as error:
        raise UserError(f"{source.title}: corrupt zstd ({error}); {broken}.") from None
    except OSError as error:
        raise UserError(
            f"{source.title}: cannot be read ({error.strerror or error}). Check path and rights."
        ) from None


# -- finding


def find(patterns: list[str], where: str) -> list[Input]:
    """Return the files of paths, directories and globs, each file once.

    They are in the order of the patterns, and sorted within each.

    Args:
        patterns: local paths and globs, relative to the repository or absolute, or fsspec URLs.
        where: the param that holds them, for messages.

    Raises:
        UserError: a path does not exist, a directory has no data files, a glob matches nothing, or
            a link is broken.
    """
    files: dict[str, tuple[str, Any, str]] = {}
    for pattern in patterns:
        if "://" in pattern:
            fs, urls = _remote(pattern, where)
            for url, path in urls.items():
                if "file" in fs.protocol:
                    files.setdefault(os.path.realpath(path), (path, None, path))
                else:
                    files.setdefault(url, (url, fs, path))
        else:
            for path in _local(pattern, where):
                files.setdefault(
                    os.path.realpath(path), (PurePosixPath(path).as_posix(), None, path)
                )
    for title, _, _ in files.values():
        if _UNSHOWABLE.search(title):
            raise UserError(
                f"{where}: the name {title!r} holds a line end or a character that is none. Rename it."
            )
    parents = [str(PurePosixPath(key).parent) for key in files]
    try:
        top = os.path.commonpath(parents)
    except ValueError:  # URLs beside local paths
        top = ""
    return [
        Input(
            title,
            PurePosixPath(os.path.relpath(key, top)).as_posix() if top else title,
            system,
            path,
        )
        for key, (title, system, path) in files.items()
    ]


def _local(pattern: str, where: str) -> list[str]:
    path = os.path.expanduser(pattern)
    if os.path.isdir(path):
        files = [file for file in _walk(path) if Input(file).suffix in SUFFIXES]
        if not files:
            raise UserError(
                f"{where}: the directory {pattern} has no documents; expected files ending in "
                f"{', '.join(sorted(SUFFIXES))}, or those with .gz or .zst after it. Name other files by a glob."
            )
        return files
    if os.path.isfile(path):
        return [path]
    if os.path.exists(path):  # a pipe or a device, which might never end
        raise UserError(
            f"{where}: {pattern}: is no file and no directory. Name the file that holds the data."
        )
    if os.path.islink(path):
        raise UserError(
            f"{where}: {pattern} is a broken link ({os.readlink(path)}). Fix or remove it."
        )
    if not glob.has_magic(path):
        near = (
            sorted(os.listdir(os.path.dirname(path) or "."))
            if os.path.isdir(os.path.dirname(path) or ".")
            else []
        )
        siblings = (
            f" Its directory holds {', '.join(near[:5])}{', …' if len(near) > 5 else ''}."
            if near
            else ""
        )
        raise UserError(f"{where}: {pattern}: no such file or directory.{siblings} Correct the path; it is relative to "
                        f"{'the root' if os.path.isabs(path) else 'the repository'}.")  # fmt: skip
    if "**" in path:
        files = _deep(path)
    else:
        files = sorted(file for file in glob.glob(path) if os.path.isfile(file))
    if not files:
        raise UserError(
            f"{where}: the glob {pattern} matches no file. Correct it; `ls {pattern}` shows what it finds."
        )
    return files


def _deep(pattern: str) -> list[str]:
    """Return the matches of a glob with `**`; `glob` itself would follow cycles of links."""
    base, rest = pattern.split("**", 1)
    rest = rest.lstrip("/") or "*"
    files = _walk(base.rstrip("/") or ("/" if base.startswith("/") else "."))
    return [
        file.removeprefix("./") if not base else file
        for file in files
        if _matches(PurePosixPath(file), rest)
    ]


def _matches(path: PurePosixPath, rest: str) -> bool:
    parts = rest.split("/")
    if "**" in rest:
        return fnmatch.fnmatchcase(path.as_posix(), "*" + rest.replace("**/", "*"))
    return len(path.parts) >= len(parts) and all(
        fnmatch.fnmatchcase(part, want)
        for part, want in zip(path.parts[-len(parts) :], parts, strict=True)
    )


def _walk(top: str) -> list[str]:
    """Return the files below a directory without hidden ones; cycles of links are cut."""
    entered: set[tuple[int, int]] = set()
    files: list[str] = []
    for folder, folders, names in os.walk(top, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    # Pipes and devices are left out. A broken link stays, so that reading it raises an error.
    return sorted(file for file in files if os.path.isfile(file) or not os.path.exists(file))


def _remote(pattern: str, where: str) -> tuple[Any, dict[str, str]]:
    """Return the file system, and address without credentials -> path in it, of each file."""
    title = public(pattern)
    try:
        fs, path = opened(pattern)
        # A question mark is part of an HTTP address, and no glob.
        if "*" in path or ("http" not in fs.protocol and glob.has_magic(path)):
            paths = [item for item in fs.glob(path) if fs.isfile(item)]
        elif _is_folder(fs, path):
            paths = [
                item for item in fs.find(path, maxdepth=DEPTH) if Input(item).suffix in SUFFIXES
            ]
        else:
            fs.info(path)
            paths = [path]
    except FileNotFoundError as error:
        # fsspec reports a refusal as a missing file.
        status = getattr(error.__cause__, "status", None)
        if status in (401, 403):
            raise UserError(
                f"{where}: {title}: the server refuses it ({status}). Where it wants credentials, put them into "
                "~/.netrc: docs/DATA.md."
            ) from None
        paths = []
    except ImportError as error:  # s3fs, gcsfs, adlfs, …: fsspec names the package
        raise UserError(
            f"{where}: {title} needs another package ({error}). Install it with pip."
        ) from None
    except Exception as error:  # each file system has errors of its own
        raise UserError(
            f"{where}: {title} cannot be opened ({first_line(error)}). Check the address and the network."
        ) from None
    if not paths:
        raise UserError(f"{where}: {title}: nothing found there. Correct the address.")
    return fs, {public(fs.unstrip_protocol(item)): item for item in sorted(paths)}


def _is_folder(fs: Any, path: str) -> bool:
    """Return whether a path is a folder; over HTTP by its last slash, as fsspec would fetch it."""
    return (
        path.endswith("/") if "http" in fs.protocol else bool(fs.info(path)["type"] == "directory")
    )


def short(value: str, length: int = 60) -> str:
    """Return the beginning of a text, on one line and quoted."""
    value = " ".join(value.encode("utf-8", "replace").decode().split())
    return repr(value if len(value) <= length else value[: length - 1] + "…")
