"""Files at an address (s3://bucket/folder, gs://…, file://…): opened by fsspec, and asked again
where they fail.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from llm.addresses import opened, public, without_credentials
from llm.errors import UserError

T = TypeVar("T")
PATIENCE = 300.0  # seconds for which a remote that does not answer is asked again
PAUSE = 1.0  # before it is asked the first time, then twice as long, at most MOST
MOST = 20.0
# to one S3 server at a time; botocore's own ten would make the threads of a process wait in line
CONNECTIONS = 32


class Address:
    """A folder on some file system. Threads may use it together."""

    def __init__(self, url: str, variable: str) -> None:
        """
        Args:
            variable: the environment variable, or the argument, that the address comes from, for
                messages.

        Raises:
            UserError: no installed package knows the address.
        """
        import fsspec

        settings = fsspec.config.conf.setdefault("s3", {}).setdefault("config_kwargs", {})
        settings.setdefault(
            "max_pool_connections", CONNECTIONS
        )  # unless fsspec's own configuration says otherwise
        try:
            fs, root = opened(url)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{variable}={public(url)}: {error}. s3:// needs `pip install -c constraints.txt s3fs`, gs:// gcsfs."
            ) from None
        self.fs: Any = fs
        self.root: str = root
        self.url, self.variable = public(url), variable
        self._told, self._lock = False, threading.Lock()

    def patiently(self, action: Callable[[], T], patience: float | None = None) -> T:
        """Do it again where it fails, until PATIENCE is over; an action may be done twice.

        That there is no such file, or no permission, is an answer, and raised at once; a UserError
        as well.

        Args:
            patience: seconds, where PATIENCE is too long.

        Raises:
            Exception: the last one of the file system's own package.
        """
        deadline, pause = time.monotonic() + (PATIENCE if patience is None else patience), PAUSE
        while True:
            try:
                result = action()
            except (UserError, FileNotFoundError, PermissionError):
                raise
            except (
                Exception
            ) as error:  # packages translate a lost connection into errors of many kinds
                if time.monotonic() + pause > deadline:
                    raise
                self._tell(error)
            else:
                self._told = False
                return result
            time.sleep(pause)
            pause = min(2 * pause, MOST)

    def failed(self, error: Exception) -> str:
        """The address and what is wrong with it, for messages."""
        return without_credentials(f"{self.url}: {error}")

    def _tell(self, error: Exception) -> None:
        """Warn once, until something has been read again."""
        with self._lock:
            told, self._told = self._told, True
        if not told:
            print(f"warning: {self.failed(error)}; trying again", file=sys.stderr, flush=True)
