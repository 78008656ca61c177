"""Open MLflow's pages on the runs of this repository."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take no options."""


def run(arguments: argparse.Namespace) -> None:
    from llm.tracking.ui import start

    start()
