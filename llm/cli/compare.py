"""Compare the scores of experiments and test the differences; also as a page."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "revisions", nargs="+", help="experiments, git revisions or `workspace`; the first is A"
    )
    parser.add_argument(
        "--models", nargs=2, default=("finetuned", "finetuned"), metavar=("OF_A", "OF_B")
    )
    parser.add_argument(
        "--html", metavar="FILE", help="params, scores, curves and answers as one HTML file"
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="where the figure of two goes (default: compare.svg)"
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(arguments: argparse.Namespace) -> None:
    from llm.experiments.compare import show

    a = arguments
    show(a.revisions, tuple(a.models), a.plot, a.json, a.html)
