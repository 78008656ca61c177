"""Standard streams that a process can always print to."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Heedless(io.FileIO):
    """A file whose writes never fail: after a closed pipe or on a full disk they are dropped."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write bytes and return how many were written or dropped."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def prepare(heedless: bool) -> None:
    """Make standard streams safe to print to; call it first.

    A stream that was closed becomes /dev/null; a character that the stream's encoding lacks is
    written as `\\uXXXX`.

    Args:
        heedless: ignore streams that cannot be written, for a process whose result is files.
    """
    for number in range(
        3
    ):  # else the next file that is opened takes the number, and gets what others print
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115 - open as long as the process
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        own = stream is getattr(sys, f"__{name}__")  # and not of a test that looks at it
        if heedless and own and isinstance(stream, io.TextIOWrapper):
            buffer = io.BufferedWriter(Heedless(stream.fileno(), "w", closefd=False))
            by_line = stream.line_buffering or stream.write_through
            stream = io.TextIOWrapper(buffer, stream.encoding, line_buffering=by_line)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)
