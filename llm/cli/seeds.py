"""Print mean, spread and best baseline of the scores over experiments that differ in seeds only."""

from __future__ import annotations

import argparse

from llm.cli.arguments import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "revisions",
        nargs="*",
        help="experiments or git revisions (default: the workspace and its like)",
    )
    parser.add_argument(
        "--run", type=at_least(1), metavar="N", help="first run experiments until there are N seeds"
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(arguments: argparse.Namespace) -> None:
    from llm.experiments.seeds import run_seeds, show_seeds

    if arguments.run:
        run_seeds(arguments.run)
    show_seeds(arguments.revisions, arguments.json)
