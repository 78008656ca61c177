"""Continue or answer prompts: one, or a file of them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llm.cli.arguments import add_precision, at_least, decoding
from llm.errors import UserError

if TYPE_CHECKING:
    from llm.generation.loaded_models import Named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="a prompt; or give --input")
    parser.add_argument(
        "--input", help="a file of prompts: .txt, one a line, or .jsonl with `prompt` or `messages`"
    )
    parser.add_argument("--output", help="where the answers to --input go, as JSON lines")
    parser.add_argument(
        "--prefix",
        default="",
        help="in front of the columns that are written: model, answer, finish_reason",
    )
    parser.add_argument(
        "--model", default="models/finetuned", help="model directory (default: %(default)s)"
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        help="a PEFT directory to put on the model; several: each answers",
    )
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument(
        "--chat", action="store_true", help="wrap each prompt as the finetuning examples are"
    )
    parser.add_argument(
        "--spans-of",
        metavar="TEXT",
        help="each answer is a span of this text; with --input, of the field of that name in each record",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 (default): the likeliest token"
    )
    parser.add_argument(
        "--top-p", type=float, help="draw among the likeliest tokens of this probability together"
    )
    parser.add_argument("--num-beams", type=int, default=1, help="beam search")
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of the draws; prompt i of a file has this + i"
    )
    add_precision(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print the answer, or write the answers of a file.

    Raises:
        UserError: a model, an option or a line of the file cannot be used; nothing is written then.
    """
    if (arguments.prompt is None) == (arguments.input is None):
        raise UserError("give a prompt, or a file of them with --input.")
    if (arguments.input is None) != (arguments.output is None):
        raise UserError("--input and --output go together: the answers to a file go to a file.")
    if arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is {arguments.max_new_tokens}; expected at least 1.")
    from llm.generation.prompt_files import answer, check_output, columns, read, span_texts

    added = columns(arguments.prefix)
    if arguments.input is None:
        records = [{"prompt": arguments.prompt}]
    else:
        check_output(Path(arguments.output), Path(arguments.input))
        records = read(Path(arguments.input), added)
    texts = None
    if arguments.spans_of is not None:
        texts = span_texts(records, arguments.spans_of, arguments.input)
    settings = decoding(arguments)
    rows = []
    for named in _answerers(arguments):
        name = arguments.model if named.name == "base" else named.name
        answers = answer(
            named,
            records,
            settings,
            arguments.max_new_tokens,
            arguments.seed,
            arguments.chat,
            texts,
        )
        for record, reply in zip(records, answers, strict=True):
            rows.append(record | dict(zip(added, (name, reply.text, reply.reason), strict=True)))
    if arguments.output:
        from llm.runtime.io import utf8, write_where_told

        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_where_told(arguments.output, utf8(lines))
        print(
            f"generate: {len(rows)} answers → {arguments.output}", file=sys.stderr
        )  # stdout may be the output
        return
    model, text, _ = columns(arguments.prefix)
    for row in rows:
        if len(rows) > 1:
            print(f"== {row[model]}")
        print(row[text] if arguments.chat else row["prompt"] + row[text])


def _answerers(arguments: argparse.Namespace) -> list[Named]:
    """Return the model, or each of the adapters on it."""
    from llm.generation.loaded_models import Shelf
    from llm.parallel import hardware

    device = hardware.device()
    shelf = Shelf(
        {"base": Path(arguments.model)}, device, hardware.precision(arguments.precision, device)
    )
    for directory in arguments.adapter:
        if not (Path(directory) / "adapter_config.json").is_file():
            raise UserError(
                f"{directory}/adapter_config.json: no such file; --adapter takes a PEFT directory."
            )
    return [shelf.get(directory) for directory in arguments.adapter] or [shelf.get("base")]
