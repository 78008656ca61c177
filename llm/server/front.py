"""The proxy in front of the runtimes: it refuses foreign hosts and pages, limits requests, and finds the model.

Other requests and all answers pass unchanged; the runtime implements OpenAI's interface.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector, web

from llm.server.runtimes import Served, Settings

BODY_BYTES = 1_000_000  # most bytes of a request; far more text than a context holds
HOSTS = ("127.0.0.1", "localhost")  # any other host is DNS rebinding by a foreign page
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "frame-ancestors 'none'"
)
LIMITED = ("max_tokens", "max_completion_tokens", "n_predict")  # OpenAI's names and llama.cpp's
KINDS = {403: "permission_error", 429: "rate_limit_error"}  # OpenAI's names of errors
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RefusedError(Exception):
    """A request that is not passed on. code: a name for programs. param: the field in question."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def response(self) -> web.Response:
        """Return the response in the form that OpenAI's clients know."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error: dict[str, str | None] = {"message": self.message, "code": self.code}
        error |= {"type": KINDS.get(self.status, kind), "param": self.param}
        headers = {"Retry-After": "1"} if self.status == 429 else None
        return web.json_response({"error": error}, status=self.status, headers=headers)


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what a page of another site sends, although browsers let it; answer errors in one form."""
    try:
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
            raise RefusedError(400, f"the host {host!r} is not served here", "other_host")
        if origin not in (None, f"http://{host}"):
            raise RefusedError(
                403, f"requests from pages of {origin} are not answered", "other_origin"
            )
        return await handler(request)
    except RefusedError as error:
        return error.response()
    except web.HTTPRequestEntityTooLarge:
        message = f"the request is larger than {BODY_BYTES:,} bytes"
        return RefusedError(413, message, "request_too_large").response()
    except web.HTTPException as error:
        message = f"{error.reason}: {request.method} {request.path}"
        return RefusedError(error.status, message, "not_found").response()


class Front:
    """The handlers. `running` counts the answers under way or waiting, by model."""

    def __init__(self, models: Sequence[Served], settings: Settings) -> None:
        self.models, self.settings = {model.name: model for model in models}, settings
        self.running = dict.fromkeys(self.models, 0)
        self.started = int(time.time())

    def application(self) -> web.Application:
        """Return the routes."""
        app = web.Application(middlewares=[guard], client_max_size=BODY_BYTES)
        app.router.add_get("/", self.page)
        app.router.add_get("/health", self.health)
        app.router.add_get("/v1/models", self.list_models)
        app.router.add_get("/v1/models/{name:.+}", self.one_model)
        app.router.add_post("/v1/completions", self.ask)
        app.router.add_post("/v1/chat/completions", self.ask)
        return app

    async def page(self, request: web.Request) -> web.Response:
        """Return the page, one file; its policy allows connections to this server only."""
        text = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
        headers = {"Content-Security-Policy": POLICY}
        return web.Response(text=text, content_type="text/html", headers=headers)

    async def health(self, request: web.Request) -> web.Response:
        """Return the running and waiting answers, by model."""
        counts = {
            name: {"running": min(n, self.settings.rows), "waiting": max(0, n - self.settings.rows)}
            for name, n in self.running.items()
        }
        return web.json_response({"status": "ok", "models": counts})

    async def list_models(self, request: web.Request) -> web.Response:
        """Return the list of models."""
        data = [self._about(model) for model in self.models.values()]
        return web.json_response({"object": "list", "data": data})

    async def one_model(self, request: web.Request) -> web.Response:
        """Return one model."""
        return web.json_response(self._about(self._known(request.match_info["name"])))

    async def ask(self, request: web.Request) -> web.StreamResponse:
        """Pass a request to its model's runtime, and the answer back as it comes."""
        body = await request.read()
        asked = _object(body)
        model = self._known(asked.get("model"))
        self._check_length(asked)
        url = f"http://{model.runtime}{request.path}"
        headers = {"Content-Type": "application/json"}
        with self._places(model.name, _answers(asked)):
            try:
                async with (
                    connection(model) as session,
                    session.post(url, data=body, headers=headers) as answer,
                ):
                    response = web.StreamResponse(status=answer.status)
                    response.content_type = answer.content_type
                    response.content_length = answer.content_length
                    response.headers["Cache-Control"] = "no-store"
                    await response.prepare(request)
                    async for piece in answer.content.iter_any():
                        await response.write(piece)
                    await response.write_eof()
                    return response
            except ClientError as error:
                message = f"{model.runtime} does not answer ({error}); see the server's terminal"
                raise RefusedError(502, message, "runtime_down") from None

    def _about(self, model: Served) -> dict[str, Any]:
        return {
            "id": model.name,
            "object": "model",
            "created": self.started,
            "owned_by": model.runtime,
            "max_model_len": model.length,
        }

    def _known(self, name: Any) -> Served:
        known = ", ".join(self.models)
        if not isinstance(name, str):
            raise RefusedError(400, f"model: expected one of {known}", "invalid_value", "model")
        if name not in self.models:
            raise RefusedError(
                404, f"no model {name!r}; there are {known}", "model_not_found", "model"
            )
        return self.models[name]

    def _check_length(self, asked: dict[str, Any]) -> None:
        most = self.settings.max_tokens
        for field in LIMITED:
            value = asked.get(field)
            if isinstance(value, int | float) and value > most:
                raise RefusedError(
                    400, f"{field} is {value}; at most {most}", "invalid_value", field
                )

    @contextmanager
    def _places(self, name: str, answers: int) -> Iterator[None]:
        """Hold places among the model's rows and its queue."""
        rows, queue = self.settings.rows, self.settings.queue
        if answers > rows + queue:
            message = f"{answers} answers in one request; this server takes at most {rows + queue}"
            raise RefusedError(400, message, "too_many_choices", "n")
        if self.running[name] + answers > rows + queue:
            message = f"{name} answers {rows} requests at a time and lets {queue} wait; the queue is full. Try again"
            raise RefusedError(429, message, "queue_full")
        self.running[name] += answers
        try:
            yield
        finally:
            self.running[name] -= answers


def connection(model: Served) -> ClientSession:
    """Return a client of a model's runtime; an answer may take as long as it takes."""
    return ClientSession(
        connector=UnixConnector(str(model.socket)), timeout=ClientTimeout(total=None)
    )


def _object(body: bytes) -> dict[str, Any]:
    """Return a request's fields."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body is not valid JSON: {error}", "invalid_json") from None
    if not isinstance(asked, dict):
        found = type(asked).__name__
        raise RefusedError(400, f"the body must be a JSON object, found {found}", "invalid_json")
    return asked


def _answers(asked: dict[str, Any]) -> int:
    """Return how many answers a request wants: `n` for each prompt."""
    prompt, n = asked.get("prompt"), asked.get("n")
    prompts = 1
    if isinstance(prompt, list) and not all(isinstance(part, int) for part in prompt):
        prompts = len(prompt)
    return prompts * (n if isinstance(n, int) and n > 0 else 1)
