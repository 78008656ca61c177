"""The content of a file: decompressed, converted to UTF-8, and limited in size.

All streams read through small buffers, so the file is never in memory as a whole.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from llm.errors import UserError
from llm.sources.readers.paths import COMPRESSED, Input

CHUNK = 1 << 18
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
# Text is compressed to a third or a tenth, a log perhaps to a hundredth. Data that unpacks to more
# than this ratio is not text. The ratio applies above BOMB_BYTES unpacked bytes.
BOMB_RATIO, BOMB_BYTES = 200, 256 << 20
# The longest come first, because UTF-32's little-endian mark begins with UTF-16's.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


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


class _Filter(io.RawIOBase):
    """A stream derived from another: `next` returns its next bytes, b"" at the end."""

    def __init__(self) -> None:
        self.ready, self.at = b"", 0

    def readable(self) -> bool:
        return True

    def next(self) -> bytes:
        raise NotImplementedError

    def readinto(self, buffer: Any) -> int:
        if self.at >= len(self.ready):
            self.ready, self.at = self.next(), 0
        # A view, so that the rest, which may be 128 MiB, is not copied.
        piece = memoryview(self.ready)[self.at : self.at + len(buffer)]
        buffer[: len(piece)] = piece
        self.at += len(piece)
        return len(piece)


class _Zstd(_Filter):
    """Decompressed zstd frames; `zstandard`'s own stream reader accepts truncated files."""

    def __init__(self, file: io.BufferedReader[Any], title: str) -> None:
        import zstandard

        super().__init__()
        self.file, self.title = file, title
        self.decompressor = zstandard.ZstdDecompressor()
        self.frame = self.decompressor.decompressobj()
        self.inside = False  # inside a frame

    def next(self) -> bytes:
        while True:
            chunk = self.frame.unused_data if self.frame.eof else b""
            if self.frame.eof:
                self.frame, self.inside = self.decompressor.decompressobj(), False
            # Few bytes at a time: four bytes may unpack to 128 KiB, 4096 to 128 MiB.
            chunk = chunk or self.file.read(1 << 12)
            if not chunk:
                if self.inside:
                    raise UserError(
                        f"{self.title}: ends in the middle of its zstd data; it is incomplete: copy it again."
                    )
                return b""
            self.inside = True
            data: bytes = self.frame.decompress(chunk)
            self.inside = not self.frame.eof
            if data:
                return data


class _Xz(_Filter):
    """Decompressed xz streams with dictionaries of at most 256 MiB; LZMAFile has no limit."""

    def __init__(self, file: io.BufferedReader[Any]) -> None:
        super().__init__()
        self.file, self.decompressor = file, self._new()

    def _new(self) -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=256 << 20)

    def next(self) -> bytes:
        while True:
            chunk = b""
            if self.decompressor.eof:  # another stream may follow after zero padding
                chunk = self.decompressor.unused_data.lstrip(b"\0")
                while not chunk:
                    if not (more := self.file.read(CHUNK)):
                        return b""
                    chunk = more.lstrip(b"\0")
                self.decompressor = self._new()
            elif self.decompressor.needs_input and not (chunk := self.file.read(CHUNK)):
                raise EOFError
            if data := self.decompressor.decompress(chunk, CHUNK):
                return data


class _Believable(_Filter):
    """Refuses content that unpacks to far more than text does (a "gzip bomb")."""

    def __init__(self, content: BinaryIO, stored: Counting, title: str) -> None:
        super().__init__()
        self.content, self.stored, self.title, self.count = content, stored, title, 0

    def next(self) -> bytes:
        data = self.content.read(CHUNK)
        self.count += len(data)
        if self.count > BOMB_BYTES and self.count > BOMB_RATIO * self.stored.count:
            raise UserError(
                f"{self.title}: {self.stored.count:,} stored bytes unpack to more than {self.count:,}, over "
                f"{BOMB_RATIO} times as much; that is no text. Take it out of the paths, or unpack it first if it is."
            )
        return data


class _Transcoded(_Filter):
    """Text converted to UTF-8; bytes outside the encoding are kept, and rejected later."""

    def __init__(self, content: BinaryIO, encoding: str, title: str) -> None:
        super().__init__()
        self.content, self.encoding, self.title, self.at = content, encoding, title, 0
        errors = "strict" if encoding.startswith("utf") else "surrogateescape"
        self.decoder = codecs.getincrementaldecoder(encoding)(errors)
        self.ended = False

    def next(self) -> bytes:
        while not self.ended:
            data = self.content.read(CHUNK)
            self.ended = not data
            try:
                text = self.decoder.decode(data, self.ended)
            except UnicodeError as error:
                raise UserError(
                    f"{self.title}: is not {self.encoding} after byte {self.at:,} ({error.__class__.__name__}: "
                    f"{getattr(error, 'reason', error)}). Copy it again, or say its encoding: download.<name>.encoding."
                ) from None
            self.at += len(data)
            if text:
                return text.encode("utf-8", "surrogateescape")
        return b""


def decompress(
    file: io.BufferedReader[Any], stored: Counting, source: Input
) -> io.BufferedReader[Any]:
    """Return a stream of the decompressed content; the compression must fit the file's name.

    Args:
        file: the stored bytes, read through `stored`.
        stored: counter of the stored bytes.
        source: the file, for its name.

    Raises:
        UserError: the name says compressed and the content does not; the content is damaged, or
            unpacks to far more than text does (while reading).
    """
    head = file.peek(8)[:8]
    codec = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    named = COMPRESSED.get(PurePosixPath(source.name).suffix.lower())
    skippable_frame = named == "zstd" and head[1:4] == b"\x2a\x4d\x18"
    if named and codec != named and not skippable_frame:
        raise UserError(
            f"{source.title}: is not {named} data, though its name says so (it begins with {head!r}). "
            "Copy or download it again, or rename it."
        )
    content: Any
    if codec == "gzip":
        content = gzip.GzipFile(fileobj=file)
    elif codec == "zstd" or named == "zstd":
        content = io.BufferedReader(_Zstd(file, source.title), CHUNK)
    # "BZh" alone may be text, so the mark of the first block is checked too.
    elif codec == "bzip2" and (named or head[4:8] == b"1AY&"):
        content = bz2.BZ2File(file)
    elif codec == "xz":
        content = io.BufferedReader(_Xz(file), CHUNK)
    else:
        return file
    return io.BufferedReader(_Believable(cast(BinaryIO, content), stored, source.title), CHUNK)


class _Prepended(_Filter):
    """Bytes that were read from a stream already, followed by the rest of it."""

    def __init__(self, read: bytes, content: BinaryIO) -> None:
        super().__init__()
        self.ready, self.content = read, content

    def next(self) -> bytes:
        return self.content.read(CHUNK)


def prepend(read: bytes, content: io.BufferedReader[Any]) -> io.BufferedReader[Any]:
    """Return a stream that starts with the bytes that were already read from it."""
    return io.BufferedReader(_Prepended(read, cast(BinaryIO, content)), CHUNK)


def in_utf8(content: io.BufferedReader[Any], encoding: str, title: str) -> io.BufferedReader[Any]:
    """Return the stream converted to UTF-8.

    Args:
        encoding: one of Python's names, or auto: UTF-16 and UTF-32 are recognised by their byte
            order mark, everything else is UTF-8.
    """
    if encoding == "auto":
        head = content.peek(4)[:4]
        detected = next((name for mark, name in MARKS.items() if head.startswith(mark)), None)
        if detected is None:
            return content
        encoding = detected
    if codecs.lookup(encoding).name == "utf-8":
        return content
    return io.BufferedReader(_Transcoded(cast(BinaryIO, content), encoding, title), CHUNK)


def looks_like(sample: bytes) -> str:
    """Return the probable encoding of bytes that are not UTF-8, or "" if it is unknown."""
    from charset_normalizer import from_bytes

    best = from_bytes(sample[: 1 << 16]).best()
    if best is None or best.encoding in ("utf_8", "ascii"):
        return ""
    # cp1252 is the most usual one of several candidates.
    return "cp1252" if "cp1252" in best.could_be_from_charset else best.encoding
