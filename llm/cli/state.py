"""List training states, or delete old ones."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prune", action="store_true", help="delete all states but the newest of each stage"
    )


def run(arguments: argparse.Namespace) -> None:
    from llm.train.checkpoint.prune import list_states, prune_states

    if arguments.prune:
        prune_states()
    else:
        list_states()
