"""Show the stages that run now, of the workspace and of temporary and queued experiments."""

from __future__ import annotations

import argparse

from llm.cli.arguments import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.add_argument(
        "--watch", type=at_least(0.1, float), metavar="SECONDS", help="repeat every so many seconds"
    )


def run(arguments: argparse.Namespace) -> None:
    from llm.tracking.status import show_status

    show_status(arguments.json, arguments.watch)
