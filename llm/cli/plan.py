"""Print size, steps, FLOPs, time, memory and disk of the run that params.yaml describes."""

from __future__ import annotations

import argparse

from llm.cli.arguments import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", nargs="?", help="as if presets/PRESET.yaml were on params.yaml")
    parser.add_argument(
        "--gpu", help="for this kind of GPU, which need not be here, e.g. a100-40gb, h100"
    )
    parser.add_argument(
        "--gpus", type=at_least(1), default=1, help="how many of them (default: %(default)s)"
    )
    parser.add_argument(
        "--price", type=at_least(0, float), help="of a GPU for an hour: prints what the run costs"
    )
    parser.add_argument(
        "--json", action="store_true", help="the same as JSON, in bytes and seconds"
    )


def run(arguments: argparse.Namespace) -> None:
    from llm.plan.show import show_plan

    a = arguments
    show_plan(a.json, a.preset, a.gpu, a.gpus, a.price)
