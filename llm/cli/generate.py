"""Continue or answer prompts: one, or a file of them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.cli.arguments import add_precision, at_least
from llm.errors import UserError

if TYPE_CHECKING:
    from llm.generation.loaded_models import Named
    from llm.params import Decoding


ADDED = ("model", "answer", "finish_reason")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
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
    if arguments.input is None:
        records = [{"prompt": arguments.prompt}]
    else:
        check_output(Path(arguments.output), Path(arguments.input))
        records = read(Path(arguments.input), columns(arguments.prefix))
    settings = decoding(arguments)
    rows = [
        row
        for named in _answerers(arguments)
        for row in answer(named, records, settings, arguments)
    ]
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


def columns(prefix: str) -> list[str]:
    """The names under which the model, the answer and why it ended are added to a record."""
    return [prefix + name for name in ADDED]


def check_output(output: Path, source: Path) -> None:
    """Find out before anything is decoded that the answers can be written.

    Raises:
        UserError: `output` is a directory, or the file of the prompts itself, or in a place of
            others.
    """
    if output.is_dir():
        raise UserError(f"--output {output} is a directory; expected a file.")
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"--output {output} is the file of --input; name another one.")
    folder = output.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise UserError(
            f"--output {output}: this user may not write in {folder}. Name another place."
        )


def read(path: Path, added: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The records of a file of prompts: `prompt` or `messages`, and what else stands on a JSON
    line.

    Args:
        added: columns that the answers get, which no record may have already.

    Raises:
        UserError: the file or one of its lines cannot be read, or has such a column; file and line
            are named.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError(
            f"{path}: expected a .txt file with a prompt on each line, or a .jsonl file."
        )
    try:
        # Not splitlines(), which takes a form feed or U+2028 within a prompt, or a JSON string, for
        # a line's end.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected UTF-8 text.") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UserError(f"{path} holds no prompts.")
    if path.suffix == ".txt":
        return [{"prompt": line} for _, line in numbered]
    records = [_record(line, f"{path}, line {number}") for number, line in numbered]
    for (number, _), record in zip(numbered, records, strict=True):
        if taken := next((name for name in added if name in record), None):
            raise UserError(
                f"{path}, line {number} has a column {taken!r} already, which generate writes; name ours apart with "
                "--prefix (--prefix generated_: generated_answer, …), or rename yours."
            )
    return records


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {error}.") from None
    if not isinstance(record, dict) or ("prompt" in record) == ("messages" in record):
        raise UserError(f"{where}: expected an object with either `prompt` or `messages`.")
    if "prompt" in record and not isinstance(record["prompt"], str):
        raise UserError(f"{where}: prompt is {type(record['prompt']).__name__}; expected a string.")
    messages = record.get("messages", [{}])
    if not isinstance(messages, list) or not messages:
        raise UserError(
            f'{where}: messages must be a list of {{"role": "user", "content": "…"}}, not empty.'
        )
    for index, message in enumerate(messages if "messages" in record else []):
        if not isinstance(message, dict):
            raise UserError(
                f'{where}: messages.{index} must be {{"role": "user", "content": "…"}}; found {message!r}.'
            )
        for key in ("role", "content"):
            if not isinstance(_plain(message).get(key), str):
                raise UserError(
                    f"{where}: messages.{index}.{key} is {message.get(key)!r}; expected a string."
                )
    return record


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message as a template takes it: the content of an assistant's may be null, as in OpenAI's
    replies.
    """
    if message.get("role") == "assistant" and message.get("content") is None:
        return {**message, "content": ""}
    return message


def decoding(a: argparse.Namespace) -> Decoding:
    """How the options say tokens are chosen. Raises UserError where they do not go together."""
    from pydantic import ValidationError

    from llm.params import Decoding

    try:
        return Decoding(
            temperature=a.temperature, top_p=a.top_p, num_beams=getattr(a, "num_beams", 1)
        )
    except ValidationError as error:
        raise UserError(
            "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        ) from None


def _answerers(arguments: argparse.Namespace) -> list[Named]:
    """The model, or each of the adapters on it."""
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


def answer(
    named: Named, records: list[dict[str, Any]], settings: Decoding, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """The records with the columns of ADDED, decoded together."""
    from llm.generation.generate import complete
    from llm.generation.request import Request
    from llm.runtime.progress import Progress

    context = named.model.config.max_position_embeddings
    requests = []
    for i, record in enumerate(records):
        ids = prompt_ids(named, record, arguments.chat)
        if len(ids) > context:
            raise UserError(
                f"prompt {i + 1} has {len(ids)} tokens; the context of {named.name} holds {context}. Shorten it."
            )
        plain = "prompt" in record and not arguments.chat
        decode = named.tokenizer.decode_after(ids) if plain else None
        requests.append(
            Request(ids, arguments.max_new_tokens, settings, arguments.seed + i, decode)
        )
    with Progress("generate", len(requests), "answers", quiet=len(requests) == 1) as bar:
        found = complete(
            named.model,
            requests,
            named.stop_ids,
            named.tokenizer.decode,
            on_progress=lambda n: bar.update(n),
        )
    name = arguments.model if named.name == "base" else named.name
    added = columns(arguments.prefix)
    return [
        record | dict(zip(added, (name, completion.text, completion.reason), strict=True))
        for record, completion in zip(records, found, strict=True)
    ]


def prompt_ids(named: Named, record: dict[str, Any], chat: bool) -> list[int]:
    """Ids of a record's prompt, never empty."""
    tokenizer = named.tokenizer
    if "messages" in record:
        return tokenizer.conversation_ids([_plain(message) for message in record["messages"]])
    ids = tokenizer.chat_ids(record["prompt"]) if chat else tokenizer.plain_ids(record["prompt"])
    return ids or [tokenizer.eos_id]
