"""Make `dvc plots` draw without a network (`make` does it once)."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take no options."""


def run(arguments: argparse.Namespace) -> None:
    from llm.experiments.dvc_plots import use_offline_page

    use_offline_page()
