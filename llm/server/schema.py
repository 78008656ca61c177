"""What a request may ask: OpenAI's fields, each honoured or refused by name; none is ignored.

A field that is null is one that was left out, wherever it stands: so a client's own objects can be
sent back."""

from __future__ import annotations

import difflib
import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llm.params import Decoding
from llm.server.errors import ApiError

MAX_CHOICES = 16  # of `n`
COMPLETION_TOKENS = 16  # OpenAI's default of /v1/completions; a chat's is all the room that is left

# Fields of OpenAI's that are not computed here, with the values, beside null, that leave an answer
# as it is.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),  # not 0, which asks /v1/completions for the chosen token's
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}

# The same of a message, as the answers of OpenAI and vLLM have them.
NEUTRAL_IN_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning": ("",),
    "reasoning_content": ("",),
    "refusal": ("",),
    "tool_calls": ([],),
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
    top_k: Annotated[int, Field(ge=-1)] | None = None  # 0 and -1: no such filter
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _streams(self) -> Sampling:
        if self.stream_options and not self.stream:
            raise ValueError("stream_options goes with stream = true only")
        return self

    @property
    def decoding(self) -> Decoding:
        """As the decoder takes it. A temperature or top_p of 0 leaves nothing but the likeliest
        token.
        """
        temperature = 1.0 if self.temperature is None else self.temperature
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        drawn: dict[str, Any] = {}
        if temperature and self.top_p != 0:
            top_p = None if self.top_p == 1 else self.top_p
            top_k = None if self.top_k in (0, -1) else self.top_k
            drawn = {
                "temperature": temperature,
                "top_p": top_p,
                "top_k": top_k,
                "min_p": self.min_p or None,
            }
        return Decoding(
            stop_strings=tuple(stops), repetition_penalty=self.repetition_penalty or 1.0, **drawn
        )


class Completion(Sampling):
    """`/v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]


class Part(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1)]
    name: str | None = None  # of who speaks, for templates that read it

    @model_validator(mode="before")
    @classmethod
    def _silent(cls, message: Any) -> Any:
        """An assistant may have said nothing: its content is null where a reply had none."""
        if isinstance(message, dict) and message.get("role") == "assistant":
            return {"content": "", **message}
        return message

    def plain(self) -> dict[str, str]:
        """As a chat template takes it; a `developer` is what OpenAI calls a `system` by now."""
        content = (
            self.content
            if isinstance(self.content, str)
            else "".join(part.text for part in self.content)
        )
        named = {} if self.name is None else {"name": self.name}
        return {
            "role": "system" if self.role == "developer" else self.role,
            "content": content,
            **named,
        }


class Chat(Sampling):
    """`/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None  # the newer name of max_tokens

    @model_validator(mode="after")
    def _one_limit(self) -> Chat:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError(
                "max_tokens and max_completion_tokens are two names of one limit: give one of them"
            )
        return self


def read(kind: type[T], body: bytes) -> T:
    """A request out of its JSON.

    Raises:
        ApiError: 400, which names the field, what was expected and what was found.
    """
    try:
        data = _without_nulls(json.loads(body, parse_constant=_refuse_constant))
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise ApiError(
            400, f"the body must be a JSON object, found {type(data).__name__}", code="invalid_json"
        )
    _drop_neutral(data, NEUTRAL)
    messages = data.get("messages")
    for index, message in enumerate(messages if isinstance(messages, list) else []):
        if isinstance(message, dict):
            _drop_neutral(message, NEUTRAL_IN_MESSAGE, f"messages.{index}.")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _explain(error, kind, data) from None


def _without_nulls(value: Any) -> Any:
    """JSON without the fields of its objects that are null."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _drop_neutral(
    fields: dict[str, Any], neutral: dict[str, tuple[Any, ...]], prefix: str = ""
) -> None:
    """Remove the fields that are not computed here. Raises ApiError where one would change the
    answer.
    """
    for name in [name for name in fields if name in neutral]:
        if not any(_same(fields[name], value) for value in neutral[name]):
            accepted = " or ".join(json.dumps(value) for value in (None, *neutral[name]))
            message = f"{prefix}{name} is not supported here: leave it out (or give {accepted})"
            raise ApiError(400, message, prefix + name, "unsupported_parameter")
        del fields[name]


def _same(a: Any, b: Any) -> bool:
    """Equal in JSON, where `false` is not 0."""
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _explain(error: ValidationError, kind: type[Sampling], data: dict[str, Any]) -> ApiError:
    """The first mistake; where several forms were possible, what is wrong with the one that fits
    best.
    """
    errors: list[dict[str, Any]] = [{**each, "path": _path(each, data)} for each in error.errors()]
    # Of the same field, or the same message: what lies deepest is of the form that the rest fits.
    about = [each for each in errors if each["path"][:2] == errors[0]["path"][:2]]
    deepest = max((each["path"] for each in about), key=len)
    about = [each for each in about if each["path"] == deepest]
    first, where = about[0], ".".join(map(str, deepest))
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(where, [*kind.model_fields], n=1)
        return ApiError(
            400,
            f"unknown field {where}" + (f"; did you mean {close[0]}?" if close else ""),
            where,
            "unknown_parameter",
        )
    if first["type"] == "missing":
        return ApiError(400, f"{where} is missing", where, "missing_required_parameter")
    if first["type"] == "value_error":
        return ApiError(400, str(first["ctx"]["error"]), where or None, "invalid_value")
    said = " or ".join(dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in about))
    found = json.dumps(first["input"], default=str)
    return ApiError(
        400,
        f"{where}: {said}; found {found[:200]}{' …' if len(found) > 200 else ''}",
        where,
        "invalid_value",
    )


def _path(error: Any, data: Any) -> tuple[int | str, ...]:
    """The keys and indices of a mistake's place, without pydantic's names for the forms that it
    tried.
    """
    path: list[int | str] = []
    for part in error["loc"]:
        if (isinstance(data, list) and isinstance(part, int)) or (
            isinstance(data, dict) and part in data
        ):
            data = data[part]
            path.append(part)
    return (*path, error["loc"][-1]) if error["type"] == "missing" else tuple(path)
