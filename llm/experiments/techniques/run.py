"""All techniques, one after the other, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from llm.errors import UserError
from llm.experiments.techniques.rows import Technique, chosen
from llm.params import Finetune
from llm.runtime.io import read_json


def measure_all(settings: Finetune, steps: int) -> dict[str, Any]:
    """Return rows of figures in the order of the table, and why others were not measured.

    Raises:
        UserError: a row failed; its own message is shown above.
    """
    techniques, left_out = chosen(settings)
    rows = []
    for number, technique in enumerate(techniques, 1):
        print(f"techniques: {number} of {len(techniques)}, {technique.label}", flush=True)
        rows.append(measure_one(technique, steps))
    return {"steps": steps, "rows": rows, "left_out": left_out}


def measure_one(technique: Technique, steps: int) -> dict[str, Any]:
    """Return the figures of one technique (`llm.experiments.techniques.measure`)."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")
    }
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "row.json"
        module = ["-m", "llm.experiments.techniques.measure"]
        command = [sys.executable, *module, technique.name, str(steps), str(output)]
        if subprocess.run(command, env=environment, check=False).returncode:
            raise UserError(
                f"techniques: {technique.label} could not be measured; the reason is above."
            )
        row: dict[str, Any] = read_json(output)
        return row
