"""Unfinished work of a stage that does not train: kept outside DVC's outputs, so that a killed
stage continues it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm.runtime.io import write_bytes
from llm.runtime.locks import held


@contextmanager
def unfinished(stage: str, inputs: dict[str, Any]) -> Iterator[Path]:
    """`$DVC_ROOT/.state/<stage>/<fingerprint of inputs>/`, held by one process at a time.

    It holds what an earlier, killed process left there, and is removed when the block ends without
    an error.

    Args:
        inputs: JSON values by name: all that the work depends on.
    """
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    directory = Path(os.environ.get("DVC_ROOT", ".")) / ".state" / stage / name
    with held(directory / "lock", stage, "does the same work"):
        write_bytes(
            directory / "inputs.json", json.dumps(inputs, indent=2, sort_keys=True).encode()
        )
        for stale in directory.parent.glob(
            f".{name}.*"
        ):  # its owner was killed while removing it, or removes it now
            shutil.rmtree(stale, ignore_errors=True)
        yield directory
        done = tempfile.mkdtemp(prefix=f".{name}.", dir=directory.parent)
        os.replace(directory, done)  # at once: who waits for the lock makes the folder anew
        shutil.rmtree(done, ignore_errors=True)
