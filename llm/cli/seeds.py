"""Print mean and spread of the scores over experiments that differ in seeds only."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "revisions",
        nargs="*",
        help="experiments or git revisions (default: the workspace and its like)",
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(arguments: argparse.Namespace) -> None:
    from llm.experiments.seeds import show_seeds

    show_seeds(arguments.revisions, arguments.json)
