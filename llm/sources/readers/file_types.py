"""Unsupported file formats, recognised by their first bytes, with advice on converting them."""

from __future__ import annotations

import tarfile

from llm.errors import UserError

HEAD = 1 << 10  # bytes needed to recognise a format
UNPACK = "Unpack it ({command}), and name the unpacked files or their folder in the paths"
CONVERT = "Convert it to .jsonl, .parquet or .csv"
FORMATS = (
    (
        b"PK\x03\x04",
        "a zip archive (or .xlsx, .docx, .npz)",
        UNPACK.format(command="unzip FILE -d FOLDER"),
    ),
    (b"PK\x05\x06", "an empty zip archive", "Download it again"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK.format(command="7z x FILE -oFOLDER")),
    (b"Rar!\x1a\x07", "a rar archive", UNPACK.format(command="unrar x FILE FOLDER/")),
    (b"\x1f\x8b\x08", "compressed twice", "Decompress it once"),
    (b"\x28\xb5\x2f\xfd", "compressed twice", "Decompress it once"),
    (b"\xfd7zXZ\x00", "compressed twice", "Decompress it once"),
    (
        b"\x04\x22\x4d\x18",
        "lz4 data",
        "Decompress it (unlz4 FILE), or compress it with gzip or zstd",
    ),
    (
        b"\x1f\x9d",
        "data of `compress`",
        "Decompress it (uncompress FILE), or compress it with gzip or zstd",
    ),
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, not the data",
        "Fetch it (git lfs pull)",
    ),
    (b"/annex/objects/", "a git-annex pointer, not the data", "Fetch it (git annex get FILE)"),
    (b"%PDF-", "a PDF document", "Extract its text (pdftotext FILE)"),
    (b"SQLite format 3\x00", "an SQLite database", CONVERT),
    (b"ARROW1\x00\x00", "an Arrow file", CONVERT),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", CONVERT),
    (b"\x93NUMPY", "a NumPy array", CONVERT),
    (b"Obj\x01", "an Avro file", CONVERT),
)


def refuse_foreign(head: bytes, title: str, packed: bool) -> None:
    """Refuse an archive, a pointer or another unsupported file.

    Args:
        head: the first bytes, decompressed.
        packed: the file was compressed.

    Raises:
        UserError: the format is unsupported; the message says how to convert it.
    """
    for magic, what, remedy in FORMATS:
        if head.startswith(magic) and (packed or what != "compressed twice"):
            raise UserError(f"{title}: is {what}. {remedy}.")
    if first := _first_member(head):
        remedy = UNPACK.format(command="mkdir FOLDER; tar -xf FILE -C FOLDER")
        raise UserError(f"{title}: is a tar archive (its first member: {first!r}). {remedy}.")


def _first_member(head: bytes) -> str:
    """Return the first name in a tar archive, or "" if the header's checksum is wrong."""
    try:
        return tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape").name
    except tarfile.HeaderError:
        return ""
