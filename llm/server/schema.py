"""What a request may ask: OpenAI's fields, each honoured or refused by name; none is ignored."""

from __future__ import annotations

import difflib
import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llm.params import Decoding
from llm.server.errors import ApiError

MAX_CHOICES = 16  # of `n`
COMPLETION_TOKENS = 16  # OpenAI's default of /v1/completions; a chat's is all the room that is left

# Fields of OpenAI's that are not computed here, with the values that leave an answer as it is.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),  # not 0, which asks /v1/completions for the chosen token's
    "metadata": (None, {}),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True, False),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "verbosity": (None,),
    "web_search_options": (None,),
}

T = TypeVar("T", bound="Sampling")
Text = Annotated[str, Field(min_length=1)]


class Strict(BaseModel):
    """No conversion of types, no unknown fields, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Sampling(Strict):
    """What both kinds of requests share."""

    model: Text
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None  # changes nothing, as with OpenAI
    # vLLM's, in `extra_body` of OpenAI's client.
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _streams(self) -> Sampling:
        if self.stream_options and not self.stream:
            raise ValueError("stream_options goes with stream = true only")
        return self

    @property
    def decoding(self) -> Decoding:
        """As the decoder takes it. A temperature or top_p of 0 leaves nothing but the likeliest token."""
        temperature = 1.0 if self.temperature is None else self.temperature
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        drawn: dict[str, Any] = {}
        if temperature and self.top_p != 0:
            top_p = None if self.top_p == 1 else self.top_p
            drawn = {"temperature": temperature, "top_p": top_p, "top_k": self.top_k, "min_p": self.min_p or None}
        return Decoding(stop_strings=tuple(stops), repetition_penalty=self.repetition_penalty or 1.0, **drawn)


class Completion(Sampling):
    """`/v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]


class Part(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1)]

    def plain(self) -> dict[str, str]:
        """As a chat template takes it; a `developer` is what OpenAI calls a `system` by now."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class Chat(Sampling):
    """`/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None  # the newer name of max_tokens

    @model_validator(mode="after")
    def _one_limit(self) -> Chat:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are two names of one limit: give one of them")
        return self


def read(kind: type[T], body: bytes) -> T:
    """A request out of its JSON.

    Raises:
        ApiError: 400, which names the field, what was expected and what was found.
    """
    try:
        data = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise ApiError(400, f"the body must be a JSON object, found {type(data).__name__}", code="invalid_json")
    for name in NEUTRAL.keys() & data.keys():
        if not any(_same(data[name], neutral) for neutral in NEUTRAL[name]):
            accepted = " or ".join(json.dumps(value) for value in NEUTRAL[name])
            message = f"{name} is not supported here: leave it out (or give {accepted})"
            raise ApiError(400, message, name, "unsupported_parameter")
        del data[name]
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _explain(error, kind) from None


def _same(a: Any, b: Any) -> bool:
    """Equal in JSON, where `false` is not 0."""
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _explain(error: ValidationError, kind: type[Sampling]) -> ApiError:
    """The first mistake; where several forms were possible, what each of them expects."""
    errors = error.errors()
    field = next((str(e["loc"][0]) for e in errors if e["loc"]), None)
    about = [e for e in errors if not e["loc"] or str(e["loc"][0]) == field]
    first = about[0]
    if first["type"] == "extra_forbidden":
        where = ".".join(map(str, first["loc"]))
        close = difflib.get_close_matches(where, [*kind.model_fields], n=1)
        return ApiError(
            400, f"unknown field {where}" + (f"; did you mean {close[0]}?" if close else ""), where, "unknown_parameter"
        )
    if first["type"] == "missing":
        where = ".".join(map(str, first["loc"]))
        return ApiError(400, f"{where} is missing", where, "missing_required_parameter")
    if first["type"] == "value_error":
        return ApiError(400, str(first["ctx"]["error"]), field, "invalid_value")
    said = " or ".join(dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in about))
    found = json.dumps(first["input"], default=str)
    where = ".".join(str(part) for part in first["loc"] if len(about) == 1 or part == field)
    return ApiError(
        400, f"{where}: {said}; found {found[:200]}{' …' if len(found) > 200 else ''}", where, "invalid_value"
    )
