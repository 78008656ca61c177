"""Let Optuna choose params by running DVC experiments (docs/EXPERIMENTS.md)."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", nargs="?", default="tuning.yaml", help="what to search (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> None:
    from llm.experiments.tune import tune

    tune(Path(arguments.file))
