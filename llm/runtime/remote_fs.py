"""Remote files (s3://bucket/folder, gs://…, file://…), by fsspec, with retries."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from llm.addresses import opened, public, without_credentials
from llm.errors import UserError

T = TypeVar("T")
PATIENCE = 300.0  # seconds for which a failed action is retried
PAUSE = 1.0  # seconds before the first retry; doubled each time, up to LONGEST_PAUSE
LONGEST_PAUSE = 20.0
# Connections to one S3 server; threads would have to wait for the ten of botocore's default.
CONNECTIONS = 32


class Address:
    """A folder on some file system. Threads may use it together."""

    def __init__(self, url: str, variable: str) -> None:
        """Open the file system of an address.

        Args:
            url: the address of a folder.
            variable: name of the environment variable or argument that gave it, for messages.

        Raises:
            UserError: no installed package knows the address.
        """
        import fsspec

        settings = fsspec.config.conf.setdefault("s3", {}).setdefault("config_kwargs", {})
        # Unless fsspec's own configuration says otherwise.
        settings.setdefault("max_pool_connections", CONNECTIONS)
        try:
            fs, root = opened(url)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{variable}={public(url)}: {error}. s3:// needs `pip install -c constraints.txt s3fs`, gs:// gcsfs."
            ) from None
        self.fs: Any = fs
        self.root: str = root
        self.url, self.variable = public(url), variable
        self._warned, self._lock = False, threading.Lock()

    def patiently(self, action: Callable[[], T], patience: float | None = None) -> T:
        """Return the result of an action; retry for PATIENCE seconds. It may be done twice.

        A missing file, a missing permission and a UserError are raised at once.

        Args:
            action: the call of the file system.
            patience: seconds, in place of PATIENCE.

        Raises:
            Exception: the last error of the file system's own package.
        """
        deadline, pause = time.monotonic() + (PATIENCE if patience is None else patience), PAUSE
        while True:
            try:
                result = action()
            except (UserError, FileNotFoundError, PermissionError):
                raise
            except Exception as error:  # a lost connection becomes an error of many kinds
                if time.monotonic() + pause > deadline:
                    raise
                self._warn(error)
            else:
                self._warned = False
                return result
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def require(self, action: Callable[[], T], failure: str, remedy: str) -> T:
        """Return the result of an action as `patiently`, or end with a message.

        Args:
            failure: what the address does not do, as the sentence's predicate.
            remedy: what to do about it, as a sentence.

        Raises:
            UserError: the action's own, or the last error of the file system's package.
        """
        try:
            return self.patiently(action)
        except UserError:
            raise
        except Exception as error:  # each package has errors of its own
            raise UserError(
                f"{self.variable}={self.url} {failure} ({type(error).__name__}: {error}). {remedy}"
            ) from None

    def failed(self, error: Exception) -> str:
        """Return the address and its error, for messages."""
        return without_credentials(f"{self.url}: {error}")

    def _warn(self, error: Exception) -> None:
        """Warn once until an action succeeds again."""
        with self._lock:
            warned, self._warned = self._warned, True
        if not warned:
            print(f"warning: {self.failed(error)}; trying again", file=sys.stderr, flush=True)
