"""Write the model for other tools, with a model card."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", required=True, choices=["hf", "gguf", "pt"])
    parser.add_argument(
        "--model", default="models/finetuned", help="model directory (default: %(default)s)"
    )
    parser.add_argument("--adapter", help="a PEFT directory to merge into the model")
    parser.add_argument(
        "--dtype",
        default="f16",
        choices=["f32", "f16", "q8_0"],
        help="of gguf (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        help="directory (default: exports/<the model's name>-<form>, of gguf with its type)",
    )


def run(arguments: argparse.Namespace) -> None:
    from llm.export import commands, default_directory, export

    a = arguments
    model, adapter = Path(a.model), Path(a.adapter) if a.adapter else None
    out = Path(a.out) if a.out else default_directory(a.to, model, a.dtype, adapter)
    print(f"export: {export(a.to, model, out, a.dtype, adapter)}")
    for command in commands(a.to, out):
        print(f"  {command}")
