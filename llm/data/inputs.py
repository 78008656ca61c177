"""Where files are and what is in them: paths and globs to inputs, and inputs to bytes without their compression."""

from __future__ import annotations

import fnmatch
import glob
import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

from llm.errors import UserError

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
# What is taken from a directory; a file named by itself or by a glob may have any name.
SUFFIXES = {".txt", ".text", ".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv"}
CHUNK = 1 << 18
MAX_RECORD = 64 << 20  # characters or bytes of one line, JSON value, CSV field or document: what a reader may hold


class Row(NamedTuple):
    """A record and the line, or row, it begins at (from 1); or the reason why it is none."""

    line: int
    record: dict[str, Any] | None
    reason: str = ""  # short, the same for all such rows: counted
    detail: str = ""  # what was found


@dataclass(frozen=True)
class Input:
    """One file to read."""

    shown: str  # as the params give it: for messages and the manifest
    label: str = ""  # short, unique among the inputs, free of the checkout's place: for ids
    fs: Any = field(default=None, compare=False, repr=False)  # fsspec file system; None: local

    @property
    def suffix(self) -> str:
        """Lower-case extension below the compression's."""
        path = PurePosixPath(self.shown)
        return PurePosixPath(path.stem if path.suffix.lower() in COMPRESSED else path.name).suffix.lower()

    def open(self) -> BinaryIO:
        """The stored bytes, still compressed."""
        if self.fs is not None:
            return cast(BinaryIO, self.fs.open(self.shown.split("://", 1)[1], "rb"))
        return open(self.shown, "rb")

    def size(self) -> int:
        """Stored bytes."""
        return int(self.fs.size(self.shown.split("://", 1)[1]) if self.fs is not None else os.path.getsize(self.shown))

    def changed(self) -> str:
        """When a local file was last written; "" where that is not known."""
        return "" if self.fs is not None else str(os.stat(self.shown).st_mtime_ns)

    def sha256(self) -> str:
        with reading(self), self.open() as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()


@contextmanager
def reading(source: Input) -> Iterator[None]:
    """Errors of the file system and of decompression become a UserError that names the file."""
    import zstandard

    broken = "it is damaged or incomplete: copy or download it again"
    try:
        yield
    except EOFError:
        raise UserError(f"{source.shown}: ends in the middle of its gzip data; {broken}.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{source.shown}: corrupt gzip ({error}); {broken}.") from None
    except zstandard.ZstdError as error:
        raise UserError(f"{source.shown}: corrupt zstd ({error}); {broken}.") from None
    except OSError as error:
        raise UserError(f"{source.shown}: cannot be read ({error.strerror or error}). Check path and rights.") from None


# -- finding ---------------------------------------------------------------------------------------------------------


def find(patterns: list[str], where: str) -> list[Input]:
    """The files of paths, directories and globs: in the order given, sorted within each, every file once.

    Args:
        patterns: local paths and globs, relative to the repository or absolute, or fsspec URLs.
        where: the param that holds them, for messages.

    Raises:
        UserError: nothing there, a directory without data files, a glob without a match, a broken link.
    """
    found: dict[str, tuple[str, Any]] = {}
    for pattern in patterns:
        if "://" in pattern:
            fs, shown = _remote(pattern, where)
            matches = {url: fs for url in shown}
        else:
            matches = {PurePosixPath(path).as_posix(): None for path in _local(pattern, where)}
        for path, system in matches.items():
            found.setdefault(path if system else os.path.realpath(path), (path, system))
    parents = [str(PurePosixPath(key).parent) for key in found]
    try:
        top = os.path.commonpath(parents)
    except ValueError:  # URLs beside local paths
        top = ""
    return [
        Input(shown, PurePosixPath(os.path.relpath(key, top)).as_posix() if top else shown, system)
        for key, (shown, system) in found.items()
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
    if os.path.exists(path):
        return [path]
    if os.path.islink(path):
        raise UserError(f"{where}: {pattern} is a link that leads nowhere ({os.readlink(path)}). Mend or remove it.")
    if not glob.has_magic(path):
        near = sorted(os.listdir(os.path.dirname(path) or ".")) if os.path.isdir(os.path.dirname(path) or ".") else []
        here = f" Its directory holds {', '.join(near[:5])}{', …' if len(near) > 5 else ''}." if near else ""
        raise UserError(f"{where}: {pattern}: no such file or directory.{here} Correct the path; it is relative to "
                        f"{'the root' if os.path.isabs(path) else 'the repository'}.")  # fmt: skip
    if "**" in path:
        files = _deep(path)
    else:
        files = sorted(file for file in glob.glob(path) if os.path.isfile(file))
    if not files:
        raise UserError(f"{where}: the glob {pattern} matches no file. Correct it; `ls {pattern}` shows what it finds.")
    return files


def _deep(pattern: str) -> list[str]:
    """`a/**/b*.txt`; `glob` would follow a link loop until the system refuses the path."""
    base, rest = pattern.split("**", 1)
    rest = rest.lstrip("/") or "*"
    files = _walk(base.rstrip("/") or ("/" if base.startswith("/") else "."))
    return [file.removeprefix("./") if not base else file for file in files if _matches(PurePosixPath(file), rest)]


def _matches(path: PurePosixPath, rest: str) -> bool:
    parts = rest.split("/")
    if "**" in rest:
        return fnmatch.fnmatchcase(path.as_posix(), "*" + rest.replace("**/", "*"))
    return len(path.parts) >= len(parts) and all(
        fnmatch.fnmatchcase(part, want) for part, want in zip(path.parts[-len(parts) :], parts, strict=True)
    )


def _walk(top: str) -> list[str]:
    """Files below a directory, hidden ones left out; links are followed, a directory is entered once."""
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
    return sorted(files)


def _remote(pattern: str, where: str) -> tuple[Any, list[str]]:
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(pattern)
        if glob.has_magic(path):
            paths = [item for item in fs.glob(path) if fs.isfile(item)]
        elif fs.isdir(path):
            paths = [item for item in fs.find(path) if Input(item).suffix in SUFFIXES]
        else:
            paths = [path] if fs.exists(path) else []
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{where}: {pattern} cannot be opened ({error}). Check the address and the network.") from None
    if not paths:
        raise UserError(f"{where}: {pattern}: nothing found there. Correct the address.")
    scheme = pattern.split("://", 1)[0]
    return fs, [f"{scheme}://{item}" for item in sorted(paths)]


# -- opening ---------------------------------------------------------------------------------------------------------


class Counting(io.RawIOBase):
    """Counts the bytes that were read, for progress; keeps the position of seekable files."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.count = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.file.seekable()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


class _Zstd(io.RawIOBase):
    """Decompressed zstd frames. `zstandard`'s own stream reader takes a truncated file for a complete one."""

    def __init__(self, file: io.BufferedReader, shown: str) -> None:
        import zstandard

        self.file, self.shown = file, shown
        self.decompressor = zstandard.ZstdDecompressor()
        self.frame = self.decompressor.decompressobj()
        self.inside = False  # a frame
        self.ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            chunk = self.frame.unused_data if self.frame.eof else b""
            if self.frame.eof:
                self.frame, self.inside = self.decompressor.decompressobj(), False
            chunk = chunk or self.file.read(CHUNK)
            if not chunk:
                if self.inside:
                    raise UserError(
                        f"{self.shown}: ends in the middle of its zstd data; it is incomplete: copy it again."
                    )
                return 0
            self.inside = True
            self.ready = self.frame.decompress(chunk)
            self.inside = not self.frame.eof
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size


def decompress(file: io.BufferedReader[Any], source: Input) -> io.BufferedReader[Any]:
    """A buffered stream of the file's content; compression is found by content, and must fit the name.

    Raises:
        UserError: the name says compressed and the content does not; the content is damaged (while reading).
    """
    head = file.peek(4)[:4]
    codec = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    named = COMPRESSED.get(PurePosixPath(source.shown).suffix.lower())
    if named and codec != named and not (named == "zstd" and head[1:4] == b"\x2a\x4d\x18"):  # skippable frame
        raise UserError(
            f"{source.shown}: is not {named} data, though its name says so (it begins with {head!r}). "
            "Copy or download it again, or rename it."
        )
    if codec == "gzip":
        return io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file)), CHUNK)
    if codec == "zstd" or named == "zstd":
        return io.BufferedReader(_Zstd(file, source.shown), CHUNK)
    return file


def short(value: str, length: int = 60) -> str:
    """The beginning of a text, on one line, quoted."""
    value = " ".join(value.encode("utf-8", "replace").decode().split())
    return repr(value if len(value) <= length else value[: length - 1] + "…")
