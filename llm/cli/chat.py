"""Talk to the models in the terminal."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from llm.cli.arguments import add_models, at_least, shelf
from llm.errors import UserError

if TYPE_CHECKING:
    from llm.generation.loaded_models import Named, Shelf

HELP = """/model NAME     answer with another model, or with an adapter's or a model's directory; keeps the conversation
/system TEXT    what stands above the conversation; without a text: nothing
/reset          forget the conversation
/help           this
/quit           end (or Ctrl-D); Ctrl-C stops an answer"""

Message = dict[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    add_models(parser)
    parser.add_argument("--model", help="who answers first (default: finetuned, else base)")
    parser.add_argument("--system", default="", help="what stands above the conversation")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, help="of an answer (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 (default): the likeliest token"
    )
    parser.add_argument(
        "--top-p", type=float, help="draw among the likeliest tokens of this probability together"
    )
    parser.add_argument(
        "--seed", type=at_least(0), help="of the draws (default: another one each time)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Read lines and answer them until /quit or the input's end.

    Raises:
        UserError: the first model or an option cannot be used; later mistakes are said and the
            conversation goes on.
    """
    if arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is {arguments.max_new_tokens}; expected at least 1.")
    models = shelf(arguments)
    first = arguments.model or ("finetuned" if "finetuned" in models.directories else "base")
    talk = Talk(models, first, arguments)
    if sys.stdin.isatty():
        import readline  # noqa: F401 - input() then edits lines and remembers them

        print(
            f"{talk.named.name} answers; there are {', '.join(models.directories)}. /help says what else."
        )
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line.strip() == "/quit":
            return
        try:
            talk.take(line)
        except UserError as error:
            print(f"error: {error}", flush=True)


class Talk:
    """A conversation and who answers."""

    def __init__(self, models: Shelf, first: str, arguments: argparse.Namespace) -> None:
        from llm.cli.generate import decoding

        self.models, self.named = models, models.get(first)
        self.decoding, self.most = decoding(arguments), arguments.max_new_tokens
        self.seed: int | None = arguments.seed
        self.system, self.history = arguments.system, list[Message]()

    def take(self, line: str) -> None:
        """Do what a line asks: a command, or a message to answer. Raises UserError where it cannot."""
        command, _, rest = line.strip().partition(" ")
        if not command:
            return
        match command:
            case "/model":
                self.named = self.models.get(rest.strip()) if rest.strip() else self.named
                print(f"{self.named.name} answers")
            case "/system":
                self.system = rest.strip()
            case "/reset":
                self.history = []
            case "/help":
                print(HELP)
            case _ if command.startswith("/") and command[1:].isalpha():
                raise UserError(f"there is no command {command}; /help lists them.")
            case _:
                self.answer(line)

    def answer(self, line: str) -> None:
        """Answer a message; what did not fit the context any more is cut from the history, and
        said.
        """
        system = [{"role": "system", "content": self.system}] if self.system else []
        asked = [*self.history, {"role": "user", "content": line}]
        kept, ids, room = fit(self.named, system, asked, self.most)
        if len(kept) < len(asked):
            print(
                f"(the conversation outgrew the context: the first {len(asked) - len(kept)} messages are forgotten)"
            )
        text = self._stream(ids, room)
        self.history = [*kept, {"role": "assistant", "content": text}]

    def _stream(self, ids: list[int], room: int) -> str:
        """Print the answer as it is written; Ctrl-C ends it."""
        from llm.generation.generate import stream
        from llm.generation.request import Request

        seed = random.SystemRandom().getrandbits(63) if self.seed is None else self.seed
        request, text = Request(ids, room, self.decoding, seed), ""
        try:
            for piece in stream(
                self.named.model, request, self.named.stop_ids, self.named.tokenizer.decode
            ):
                text += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(" …", end="")
        print(flush=True)
        return text


def fit(
    named: Named, system: list[Message], messages: list[Message], most: int
) -> tuple[list[Message], list[int], int]:
    """The messages that fit the context, their ids, and the tokens that are left for the answer.

    The rule: an answer gets room for `most` tokens, or for half of the context where that is less.
        Until the rest fits,
    the oldest message goes, and the answer to it. The system prompt and the last message always
    stay.

    Raises:
        UserError: these two alone are too long.
    """
    context = named.model.config.max_position_embeddings
    room = min(most, context // 2)
    render: Callable[[list[Message]], list[int]] = named.tokenizer.conversation_ids
    while True:
        ids = render(system + messages)
        if len(ids) + room <= context:
            return messages, ids, room
        if len(messages) == 1:
            raise UserError(
                f"that is too long: {len(ids)} tokens with the system prompt; {named.name} reads at most "
                f"{context - room}."
            )
        messages = messages[2:]
