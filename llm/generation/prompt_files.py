"""Files of prompts, and their answers."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm.errors import UserError
from llm.generation.generate import complete
from llm.generation.loaded_models import Named
from llm.generation.request import Completion, Request
from llm.generation.spans import Spans
from llm.params import Decoding
from llm.runtime.progress import Progress

ADDED = ("model", "answer", "finish_reason")


def columns(prefix: str) -> list[str]:
    """Return the names of the columns that a record gets: model, answer, why it ended."""
    return [prefix + name for name in ADDED]


def check_output(output: Path, source: Path) -> None:
    """Check before anything is decoded that the answers can be written.

    Args:
        output: the file of the answers.
        source: the file of the prompts.

    Raises:
        UserError: `output` is a directory, the file of the prompts, or in a folder that this user
            may not write.
    """
    if output.is_dir():
        raise UserError(f"--output {output} is a directory; expected a file.")
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"--output {output} is the file of --input; name another one.")
    folder = output.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise UserError(
            f"--output {output}: this user may not write in {folder}. Name another folder."
        )


def read(path: Path, added: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the records of a file of prompts, each with `prompt` or `messages`.

    Other keys of a JSON line are kept.

    Args:
        path: a .txt file with a prompt on each line, or a .jsonl file.
        added: columns that the answers get, which no record may have already.

    Raises:
        UserError: the file or one of its lines cannot be read, or a record has such a column.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError(
            f"{path}: expected a .txt file with a prompt on each line, or a .jsonl file."
        )
    try:
        # splitlines() would also split at a form feed or U+2028 within a prompt.
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
        if duplicate := next((name for name in added if name in record), None):
            raise UserError(
                f"{path}, line {number} has a column {duplicate!r} already, which generate writes; name ours apart "
                "with --prefix (--prefix generated_: generated_answer, …), or rename yours."
            )
    return records


def span_texts(records: list[dict[str, Any]], spans_of: str, path: str | None) -> list[str]:
    """Return for each record the text that its answer must be a span of.

    Args:
        records: as `read` returns them, or one prompt.
        spans_of: the text of one prompt; or for a file the name of the field that holds it.
        path: the file of the records, if there is one.

    Raises:
        UserError: a record has no such field, or a text has no words.
    """
    texts = []
    for number, record in enumerate(records, 1):
        text = record.get(spans_of) if path else spans_of
        if not isinstance(text, str) or not text.strip():
            what = f"{path}, record {number}: {spans_of!r} is {text!r}" if path else "it is empty"
            raise UserError(
                f"--spans-of: {what}; expected a text with words, whose spans are the answers."
            )
        texts.append(text)
    return texts


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
    """Return a message with text: OpenAI's replies may have null as an assistant's content."""
    if message.get("role") == "assistant" and message.get("content") is None:
        return {**message, "content": ""}
    return message


def answer(
    named: Named,
    records: list[dict[str, Any]],
    decoding: Decoding,
    max_new_tokens: int,
    seed: int,
    chat: bool,
    spans_of: Sequence[str] | None = None,
) -> list[Completion]:
    """Answer the prompts of all records together.

    Args:
        named: the model that answers.
        records: as `read` returns them.
        decoding: how tokens are chosen.
        max_new_tokens: the most tokens of an answer.
        seed: seed of the first record; record i has `seed` + i.
        chat: wrap each prompt as the finetuning examples are.
        spans_of: a text for each record, of which its answer is a span; None for any answers.

    Returns:
        An answer for each record.

    Raises:
        UserError: a prompt is longer than the model's context, or the tokenizer can write no span.
    """
    context = named.model.config.max_position_embeddings
    spans = Spans(named.tokenizer) if spans_of else None
    requests = []
    for i, record in enumerate(records):
        ids = prompt_ids(named, record, chat)
        if len(ids) > context:
            raise UserError(
                f"prompt {i + 1} has {len(ids)} tokens; the context of {named.name} holds {context}. Shorten it."
            )
        plain = "prompt" in record and not chat
        decode = named.tokenizer.decode_after(ids) if plain else None
        span = None
        if spans and spans_of:
            blank = plain and not record["prompt"][-1:].isspace()
            span = spans.of(spans_of[i], (), decoding.stop_strings, blank)
            if span is None:
                raise UserError(
                    f"prompt {i + 1}: the tokenizer of {named.name} cannot write the text of --spans-of."
                )
        requests.append(Request(ids, max_new_tokens, decoding, seed + i, decode, span))
    with Progress("generate", len(requests), "answers", quiet=len(requests) == 1) as bar:
        return complete(
            named.model,
            requests,
            named.stop_ids,
            named.tokenizer.decode_response,
            on_progress=lambda n: bar.update(n),
        )


def prompt_ids(named: Named, record: dict[str, Any], chat: bool) -> list[int]:
    """Return the token ids of a record's prompt, at least one."""
    tokenizer = named.tokenizer
    if "messages" in record:
        return tokenizer.conversation_ids([_plain(message) for message in record["messages"]])
    ids = tokenizer.chat_ids(record["prompt"]) if chat else tokenizer.plain_ids(record["prompt"])
    return ids or [tokenizer.eos_id]
