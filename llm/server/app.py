"""The HTTP interface: OpenAI's routes, and a page to talk to two models side by side."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llm.generation.request import Completion
from llm.generation.request import Request as DecodingRequest
from llm.generation.text_stream import TextStream
from llm.server import schema, work
from llm.server.engine import BusyError, ClosedError, Engine, Ticket
from llm.server.errors import ApiError

BODY_BYTES = 1_000_000  # most bytes of a request; far more text than a context holds
HOSTS = [
    "127.0.0.1",
    "localhost",
]  # any other host is DNS rebinding by a foreign page
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"

Event = tuple[int, list[int] | Completion | Exception]  # a choice and its tokens so far, or its end


def application(engine: Engine, max_tokens: int, choices: int) -> Starlette:
    """Return the server's routes on an engine, which they close at shutdown.

    Args:
        max_tokens: most tokens of an answer.
        choices: most answers of one request.
    """
    api = Api(engine, max_tokens, choices)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    async def on_error(request: Request, error: Exception) -> Response:
        if isinstance(error, ClientDisconnect):
            return Response(status_code=499)  # nobody reads it; nginx's number for the log
        if isinstance(error, HTTPException):
            error = ApiError(
                error.status_code, f"{error.detail}: {request.method} {request.url.path}"
            )
        if not isinstance(error, ApiError):
            error = ApiError(500, "internal server error; see the server's terminal")
        return error.response()

    return Starlette(
        routes=[
            Route("/", page),
            Route("/health", api.health),
            Route("/v1/models", api.models),
            Route("/v1/models/{name:path}", api.model),
            Route("/v1/completions", partial(api.create, kind=schema.Completion), methods=["POST"]),
            Route("/v1/chat/completions", partial(api.create, kind=schema.Chat), methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
        exception_handlers=dict.fromkeys(
            (ApiError, ClientDisconnect, HTTPException, Exception), on_error
        ),
        lifespan=lifespan,
    )


async def page(request: Request) -> Response:
    """Return the page, one file; its policy allows connections to this server only."""
    text = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    return HTMLResponse(text, headers={"Content-Security-Policy": POLICY})


class Api:
    """The handlers."""

    def __init__(self, engine: Engine, max_tokens: int, choices: int) -> None:
        self.engine, self.max_tokens, self.choices = engine, max_tokens, choices
        self.started = int(time.time())

    async def health(self, request: Request) -> Response:
        """Return the running and waiting answers, by model."""
        return JSONResponse({"status": "ok", "models": self.engine.load()})

    async def models(self, request: Request) -> Response:
        """The list of models."""
        return JSONResponse(
            {"object": "list", "data": [self._about(name) for name in self.engine.lanes]}
        )

    async def model(self, request: Request) -> Response:
        """One model."""
        return JSONResponse(self._about(self._known(request.path_params["name"])))

    def _about(self, name: str) -> dict[str, object]:
        length = self.engine.lanes[name].slots
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "llm",
            "max_model_len": length,
        }

    def _known(self, name: str) -> str:
        if name not in self.engine.lanes:
            known = ", ".join(self.engine.lanes)
            raise ApiError(404, f"no model {name!r}; there are {known}", "model", "model_not_found")
        return name

    async def create(self, request: Request, kind: type[schema.Sampling]) -> Response:
        """Answer a prompt or a conversation, whole or as a stream of events."""
        _refuse_other_sites(request)
        body = schema.read(kind, await _body(request))
        lane = self.engine.lanes[self._known(body.model)]
        limits = work.Limits(lane.slots, min(self.max_tokens, lane.slots), self.choices)
        requests = await asyncio.to_thread(work.requests, body, lane.named, limits)
        events: asyncio.Queue[Event] = asyncio.Queue()
        tickets = self._submit(body, requests, events)
        shape = work.Shape(
            chat=isinstance(body, schema.Chat),
            id=f"{'chatcmpl' if isinstance(body, schema.Chat) else 'cmpl'}-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=body.model,
        )
        close = partial(self.engine.cancel, tickets)
        if body.stream:
            decode = lane.named.tokenizer.decode
            streams = [TextStream(r.decode or decode, r.decoding.stop_strings) for r in requests]
            return EventStream(_pieces(body, requests, events, shape, streams), close)
        try:
            answers = await _while_connected(request, _all(events, len(tickets)))
        finally:
            close()
        return JSONResponse(shape.whole(answers, work.usage(requests, body.n or 1, answers)))

    def _submit(
        self,
        body: schema.Sampling,
        requests: Sequence[DecodingRequest],
        events: asyncio.Queue[Event],
    ) -> list[Ticket]:
        """Hand requests to the engine, whose thread reports to `events`."""
        loop = asyncio.get_running_loop()

        def report(index: int, what: list[int] | Completion | Exception) -> None:
            loop.call_soon_threadsafe(events.put_nowait, (index, what))

        tickets = [
            Ticket(request, partial(report, i), partial(report, i) if body.stream else None)
            for i, request in enumerate(requests)
        ]
        try:
            self.engine.submit(body.model, tickets)
        except BusyError:
            message = (
                f"{body.model} answers {self.engine.rows} requests at a time and lets {self.engine.queue} wait; the "
                "queue is full. Try again"
            )
            raise ApiError(429, message, code="queue_full", headers={"Retry-After": "1"}) from None
        except ClosedError:
            raise ApiError(503, "the server is shutting down", code="shutting_down") from None
        return tickets


class EventStream(StreamingResponse):
    """Server-sent events; `close` is called whatever ends them, also a client that goes away."""

    def __init__(self, content: AsyncIterator[str], close: Callable[[], None]) -> None:
        super().__init__(
            content, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )
        self.close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.close()


async def _all(events: asyncio.Queue[Event], count: int) -> list[Completion]:
    """The completions of all choices, in their order."""
    done: dict[int, Completion] = {}
    while len(done) < count:
        index, what = await events.get()
        done[index] = _completion(what)
    return [done[i] for i in range(count)]


def _completion(what: list[int] | Completion | Exception) -> Completion:
    if isinstance(what, ClosedError):
        raise ApiError(503, "the server is shutting down", code="shutting_down")
    if isinstance(what, Exception):
        raise ApiError(
            500, f"decoding failed ({type(what).__name__}); the server's terminal shows where"
        )
    assert isinstance(what, Completion)
    work.finish_reason(what)  # raises where it has none
    return what


async def _pieces(
    body: schema.Sampling,
    requests: list[DecodingRequest],
    events: asyncio.Queue[Event],
    shape: work.Shape,
    streams: Sequence[TextStream],
) -> AsyncIterator[str]:
    """The events of a stream; an error in its middle is an event, for its status is sent already."""
    counts = body.stream_options is not None and body.stream_options.include_usage
    nothing = {"usage": None} if counts else {}  # in all events but the last, as OpenAI has it
    done: list[Completion] = []
    for piece in shape.opening(len(requests)):
        yield _event(piece | nothing)
    while len(done) < len(requests):
        index, what = await events.get()
        if isinstance(what, list):
            text, reason = streams[index].more(what), None
        else:
            try:
                completion = _completion(what)
            except ApiError as error:
                yield _event(error.body())
                return
            done.append(completion)
            text, reason = streams[index].rest(completion), work.finish_reason(completion)
        if text or reason:
            for piece in shape.text(index, text, reason):
                yield _event(piece | nothing)
    if counts:
        yield _event(shape.counted(work.usage(requests, body.n or 1, done)))
    yield "data: [DONE]\n\n"


def _event(data: dict[str, object]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


async def _body(request: Request) -> bytes:
    """The body. Raises ApiError where it is larger than any context."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise ApiError(
                413, f"the request is larger than {BODY_BYTES:,} bytes", code="request_too_large"
            )
    return body


def _refuse_other_sites(request: Request) -> None:
    """Raise ApiError if another site's page sent the request; browsers let any site post here."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise ApiError(
            403, f"requests from pages of {origin} are not answered", code="other_origin"
        )


async def _while_connected(request: Request, work: Awaitable[list[Completion]]) -> list[Completion]:
    """Return the result of `work`. Raises ClientDisconnect if the client disconnects first."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(
        request.receive()
    )  # after the body nothing comes but the disconnection
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
