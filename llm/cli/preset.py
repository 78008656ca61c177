"""Merge presets/NAME.yaml into params.yaml; without a name, list the presets."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="without a name: list them")


def run(arguments: argparse.Namespace) -> None:
    from llm.params.presets import apply_preset, list_presets

    if arguments.name:
        apply_preset(arguments.name)
    else:
        list_presets()
