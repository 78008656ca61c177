"""`python -m llm generate`: one prompt, or a file of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.commands.arguments import add_precision, at_least
from llm.errors import UserError

if TYPE_CHECKING:
    from llm.models import Named
    from llm.params import Decoding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    parser.add_argument("prompt", nargs="?", help="a prompt; or give --input")
    parser.add_argument("--input", help="a file of prompts: .txt, one a line, or .jsonl with `prompt` or `messages`")
    parser.add_argument("--output", help="where the answers to --input go, as JSON lines")
    parser.add_argument("--model", default="models/finetuned", help="model directory (default: %(default)s)")
    parser.add_argument(
        "--adapter", action="append", default=[], help="a PEFT directory to put on the model; several: each answers"
    )
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--chat", action="store_true", help="wrap each prompt as the finetuning examples are")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default): the likeliest token")
    parser.add_argument("--top-p", type=float, help="draw among the likeliest tokens of this probability together")
    parser.add_argument("--num-beams", type=int, default=1, help="beam search")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the draws; prompt i of a file has this + i")
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
    records = [{"prompt": arguments.prompt}] if arguments.input is None else read(Path(arguments.input))
    settings = decoding(arguments)
    rows = [row for named in _answerers(arguments) for row in answer(named, records, settings, arguments)]
    if arguments.output:
        from llm.io import utf8, write_bytes

        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_bytes(arguments.output, utf8(lines))
        print(f"generate: {len(rows)} answers → {arguments.output}")
        return
    for row in rows:
        if len(rows) > 1:
            print(f"== {row['model']}")
        print(row["answer"] if arguments.chat else row["prompt"] + row["answer"])


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file of prompts: `prompt` or `messages`, and what else stands on a JSON line.

    Raises:
        UserError: the file or one of its lines cannot be read; file and line are named.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError(f"{path}: expected a .txt file with a prompt on each line, or a .jsonl file.")
    try:
        # Not splitlines(), which takes a form feed or U+2028 within a prompt, or a JSON string, for a line's end.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected UTF-8 text.") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UserError(f"{path} holds no prompts.")
    if path.suffix == ".txt":
        return [{"prompt": line} for _, line in numbered]
    return [_record(line, f"{path}, line {number}") for number, line in numbered]


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {error}.") from None
    if not isinstance(record, dict) or ("prompt" in record) == ("messages" in record):
        raise UserError(f"{where}: expected an object with either `prompt` or `messages`.")
    if "prompt" in record and not isinstance(record["prompt"], str):
        raise UserError(f"{where}: prompt is {type(record['prompt']).__name__}; expected a string.")
    messages = record.get("messages", [])
    if "messages" in record and not (isinstance(messages, list) and messages and all(map(_is_message, messages))):
        raise UserError(f'{where}: messages must be a list of {{"role": "user", "content": "…"}}, not empty.')
    return record


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def decoding(a: argparse.Namespace) -> Decoding:
    """How the options say tokens are chosen. Raises UserError where they do not go together."""
    from pydantic import ValidationError

    from llm.params import Decoding

    try:
        return Decoding(temperature=a.temperature, top_p=a.top_p, num_beams=getattr(a, "num_beams", 1))
    except ValidationError as error:
        raise UserError(
            "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        ) from None


def _answerers(arguments: argparse.Namespace) -> list[Named]:
    """The model, or each of the adapters on it."""
    from llm.models import Shelf
    from llm.train import hardware

    device = hardware.device()
    shelf = Shelf({"base": Path(arguments.model)}, device, hardware.precision(arguments.precision, device))
    for directory in arguments.adapter:
        if not (Path(directory) / "adapter_config.json").is_file():
            raise UserError(f"{directory}/adapter_config.json: no such file; --adapter takes a PEFT directory.")
    return [shelf.get(directory) for directory in arguments.adapter] or [shelf.get("base")]


def answer(
    named: Named, records: list[dict[str, Any]], settings: Decoding, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """The records with `model`, `answer` and `finish_reason`, decoded together."""
    from llm.decoding.request import Request
    from llm.generate import complete
    from llm.progress import Progress

    context = named.model.config.max_position_embeddings
    requests = []
    for i, record in enumerate(records):
        ids = prompt_ids(named, record, arguments.chat)
        if len(ids) > context:
            raise UserError(
                f"prompt {i + 1} has {len(ids)} tokens; the context of {named.name} holds {context}. Shorten it."
            )
        requests.append(Request(ids, arguments.max_new_tokens, settings, arguments.seed + i))
    with Progress("generate", len(requests), "answers", quiet=len(requests) == 1) as bar:
        found = complete(
            named.model, requests, named.stop_ids, named.tokenizer.decode, on_progress=lambda n: bar.update(n)
        )
    name = arguments.model if named.name == "base" else named.name
    return [
        {**record, "model": name, "answer": completion.text, "finish_reason": completion.reason}
        for record, completion in zip(records, found, strict=True)
    ]


def prompt_ids(named: Named, record: dict[str, Any], chat: bool) -> list[int]:
    """Ids of a record's prompt, never empty."""
    tokenizer = named.tokenizer
    if "messages" in record:
        return tokenizer.conversation_ids(record["messages"])
    ids = tokenizer.chat_ids(record["prompt"]) if chat else tokenizer.encode(record["prompt"])
    return ids or [tokenizer.eos_id]
