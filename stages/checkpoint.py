"""Fetch a Hugging Face model by id and pinned commit: models/checkpoints/NAME."""

from __future__ import annotations

import sys
from pathlib import Path

from llm import params
from llm.errors import UserError
from llm.runtime.stage import run_stage
from llm.runtime.timing import stage_timing
from llm.sources.hub_models import fetch

CHECKPOINTS = Path("models/checkpoints")


def main() -> None:
    wanted = params.load().checkpoints
    if len(sys.argv) != 2 or sys.argv[1] not in wanted:
        raise UserError(
            f"usage: python -m stages.checkpoint NAME, one of params.yaml's: {', '.join(wanted) or 'none'}."
        )
    name = sys.argv[1]
    with stage_timing(f"checkpoint-{name}"):
        size = fetch(wanted[name].id, wanted[name].revision, CHECKPOINTS / name)
    print(f"checkpoint: {wanted[name].id} · {size / 1e6:,.0f} MB → {CHECKPOINTS / name}")


if __name__ == "__main__":
    run_stage(main)
