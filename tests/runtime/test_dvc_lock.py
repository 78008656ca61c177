"""The file of DVC's locks is never left half written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llm.runtime import dvc_lock


def test_a_kill_while_the_locks_are_written_leaves_those_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    dvc_lock.hold(os.getpid())
    write = Path.write_text

    def half(self: Path, text: str, **options: Any) -> None:
        write(self, text[: len(text) // 2], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(KeyboardInterrupt):
        dvc_lock.release()
    monkeypatch.undo()
    locks = json.loads((tmp_path / ".dvc" / "tmp" / "exps" / "rwlock").read_text())
    assert locks["write"][dvc_lock.REFERENCES]["pid"] == os.getpid()
