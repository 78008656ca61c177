"""Put token shards on a remote file system, where other machines read them (docs/SCALE.md)."""

from __future__ import annotations

import argparse
from pathlib import Path

TOKENS = Path("data/tokens")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", choices=["push"], help="copy data/tokens to the address; what is there stays"
    )
    parser.add_argument(
        "url", help="s3://bucket/folder, gs://…, file://…: what LLM_TOKENS_URL will say"
    )


def run(arguments: argparse.Namespace) -> None:
    from llm.data.push_shards import push

    push(TOKENS, arguments.url)
