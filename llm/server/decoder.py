"""This project's own decoder behind the core of OpenAI's interface, for models that no faster runtime can serve.

One request after another, one answer each, exactly as `evaluate` decodes it. A field that is not computed here is
refused by name.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Any

import torch
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm.errors import UserError
from llm.generation.generate import stream
from llm.generation.loaded_models import Named, Shelf
from llm.generation.request import Completion, Request
from llm.parallel import hardware
from llm.params import Decoding
from llm.server.front import BODY_BYTES, RefusedError

Tokens = Annotated[int, Field(ge=1)]


class Asked(BaseModel):
    """A request of either kind, without the fields that are null; `messages` make it a chat."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    model: str
    prompt: str = ""
    messages: list[dict[str, str]] | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0)] | None = None
    stop: str | list[str] = []
    stream: bool = False
    stream_options: dict[str, bool] = {}  # the last event always has the usage

    @property
    def decoding(self) -> Decoding:
        """Return the settings as the decoder takes them."""
        top_p = self.top_p if self.temperature and self.top_p < 1 else None
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        return Decoding(temperature=self.temperature, top_p=top_p, stop_strings=stops)


def serve(
    name: str, directory: str, adapter: str | None, socket: str, length: int, max_tokens: int
) -> None:
    """Serve a model, or an adapter on it, in float32 on a Unix socket until a signal.

    Args:
        name: of the model, in answers.
        length: tokens of prompt and answer. max_tokens: tokens of an answer.
    """
    directories = {"base": Path(directory)} | ({name: Path(adapter)} if adapter else {})
    shelf = Shelf(directories, hardware.device(), torch.float32)
    decoder = Decoder(shelf.get(name if adapter else "base"), length, max_tokens)
    app = web.Application(client_max_size=BODY_BYTES)
    app.router.add_get("/health", decoder.health)
    for kind in ("completions", "chat/completions"):
        app.router.add_post(f"/v1/{kind}", decoder.ask)
    web.run_app(app, path=socket, print=None, access_log=None, handler_cancellation=True)


class Decoder:
    """A model that answers one request at a time."""

    def __init__(self, named: Named, length: int, max_tokens: int) -> None:
        self.named, self.length, self.max_tokens = named, length, max_tokens
        self.free = asyncio.Lock()

    async def health(self, request: web.Request) -> web.Response:
        """Say that the model is loaded."""
        return web.json_response({"status": "ok"})

    async def ask(self, request: web.Request) -> web.StreamResponse:
        """Answer a prompt or a conversation, whole or as a stream of events."""
        body = await request.json()
        try:
            asked = Asked.model_validate({k: v for k, v in body.items() if v is not None})
            wanted = self._request(asked)
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            return RefusedError(400, "; ".join(faults), "invalid_value").response()
        except UserError as error:  # of the chat template, or a prompt that is too long
            return RefusedError(400, str(error), "invalid_value").response()
        named, response = self.named, web.StreamResponse()
        response.content_type = "text/event-stream"
        async with self.free:
            pieces = stream(named.model, wanted, named.stop_ids, named.tokenizer.decode)
            if asked.stream:
                await response.prepare(request)
            text, done = "", None
            while done is None:
                piece, done = await asyncio.to_thread(_next, pieces)
                text += piece
                if asked.stream:
                    event = json.dumps(_body(asked, wanted, piece, done))
                    await response.write(f"data: {event}\n\n".encode())
        if not asked.stream:
            return web.json_response(_body(asked, wanted, text, done))
        await response.write(b"data: [DONE]\n\n")
        return response

    def _request(self, asked: Asked) -> Request:
        tokenizer, decode = self.named.tokenizer, None
        if asked.messages is not None:
            ids = tokenizer.conversation_ids(asked.messages)
        else:
            ids = tokenizer.plain_ids(asked.prompt)
            decode = tokenizer.decode_after(ids)
        if not 0 < len(ids) < self.length:
            raise UserError(f"the prompt has {len(ids)} tokens; expected 1 to {self.length - 1}")
        most = asked.max_completion_tokens or asked.max_tokens or self.max_tokens
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        return Request(ids, min(most, self.length - len(ids)), asked.decoding, seed, decode)


@torch.inference_mode()
def _next(pieces: Generator[str, None, Completion]) -> tuple[str, Completion | None]:
    """Return the next piece of text; after the last one, the completion."""
    try:
        return next(pieces), None
    except StopIteration as end:
        return "", end.value


def _body(asked: Asked, request: Request, text: str, done: Completion | None) -> dict[str, Any]:
    """Return the JSON of a response, or of an event of its stream; `done`: the completion, at its end."""
    chat = asked.messages is not None
    said = {"role": "assistant", "content": text}
    content = {"delta" if asked.stream else "message": said} if chat else {"text": text}
    kind = (
        ("chat.completion.chunk" if asked.stream else "chat.completion")
        if chat
        else "text_completion"
    )
    reason = None if done is None else "stop" if done.reason == "stop" else "length"
    choice = {"index": 0, **content, "logprobs": None, "finish_reason": reason}
    body = {"id": f"cmpl-{id(request):x}", "object": kind, "created": int(time.time())}
    body |= {"model": asked.model, "choices": [choice]}
    if done is not None:
        read, written = len(request.prompt), len(done.ids)
        body["usage"] = dict(
            prompt_tokens=read, completion_tokens=written, total_tokens=read + written
        )
    return body
