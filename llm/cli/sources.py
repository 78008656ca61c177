"""List files of download.*.paths that changed since data/raw was made; check outputs."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take no options."""


def run(arguments: argparse.Namespace) -> None:
    from llm.runtime.outputs import refuse_others
    from llm.sources.changed_files import show

    refuse_others()
    show()
