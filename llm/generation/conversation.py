"""A conversation in the terminal: commands, history, and the cut to the model's context."""

from __future__ import annotations

import random
from collections.abc import Callable

from llm.errors import UserError
from llm.generation.generate import stream
from llm.generation.loaded_models import Named, Shelf
from llm.generation.request import Request
from llm.params import Decoding

HELP = """/model NAME     answer with another model, or with an adapter's or a model's directory; keeps the conversation
/system TEXT    set the system prompt; without a text: remove it
/reset          forget the conversation
/help           print this list
/quit           end (or Ctrl-D); Ctrl-C stops an answer"""

Message = dict[str, str]


class Conversation:
    """Messages, and the model that answers them."""

    def __init__(
        self,
        models: Shelf,
        model: str,
        decoding: Decoding,
        max_new_tokens: int,
        system: str = "",
        seed: int | None = None,
    ) -> None:
        """Begin a conversation.

        Args:
            models: the models that may answer.
            model: name of the model that answers first.
            decoding: how tokens are chosen.
            max_new_tokens: the most tokens of an answer.
            system: the system prompt; empty for none.
            seed: seed of each answer; None for a new one each time.
        """
        self.models, self.named = models, models.get(model)
        self.decoding, self.max_new_tokens, self.seed = decoding, max_new_tokens, seed
        self.system, self.history = system, list[Message]()

    def take(self, line: str) -> None:
        """Run the command in a line, or answer the line as a message.

        Raises:
            UserError: the command, or the model that it names, is unknown; the message is too long.
        """
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
        """Answer a message; drop the oldest messages if the context is too short."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*self.history, {"role": "user", "content": line}]
        recent, ids, room = fit(self.named, system, messages, self.max_new_tokens)
        if forgotten := len(messages) - len(recent):
            print(
                f"(the conversation outgrew the context: the first {forgotten} messages are forgotten)"
            )
        text = self._stream(ids, room)
        self.history = [*recent, {"role": "assistant", "content": text}]

    def _stream(self, ids: list[int], room: int) -> str:
        """Print the answer token by token; Ctrl-C ends it."""
        seed = random.SystemRandom().getrandbits(63) if self.seed is None else self.seed
        request, text = Request(ids, room, self.decoding, seed), ""
        try:
            for piece in stream(
                self.named.model, request, self.named.stop_ids, self.named.tokenizer.decode_response
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
    """Cut a conversation to the model's context.

    An answer gets room for `most` tokens, or for half of the context if that is less. The oldest
    message and its answer are dropped until the rest fits. The system prompt and the last message
    always stay.

    Args:
        named: the model that answers.
        system: the system prompt as a message, or nothing.
        messages: user and assistant in turn; the last one is to be answered.
        most: maximal number of tokens of the answer.

    Returns:
        The messages that fit, their token ids, and the tokens that are left for the answer.

    Raises:
        UserError: the system prompt and the last message alone are too long.
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
