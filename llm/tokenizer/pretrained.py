"""Tokenizers of other projects' checkpoints: a `tokenizer.json` and its chat template.

Any file that `tokenizers` reads is supported: byte-level BPE (Llama 3, Qwen, SmolLM) as well as
SentencePiece's BPE with byte fallback (Llama 2, Mistral, TinyLlama). A template is untrusted code,
so it runs in Jinja's sandbox. It sees a fixed date, so that the data do not depend on the day.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm.errors import UserError, say_once
from llm.runtime.io import read_json
from llm.tokenizer.bpe import Tokenizer, _json, soft_prompt_ids, valid_unicode
from llm.tokenizer.hf_json import byte_chars

if TYPE_CHECKING:
    import jinja2

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
BYTES = {char: byte for byte, char in enumerate(byte_chars())}  # how byte-level BPE writes them
BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's tokens of single bytes
TODAY = date(2024, 7, 26)  # the date for templates: the default of Llama 3's own templates
# Template for base models, which have none: Alpaca's headings (Taori et al. 2023), in tokens that
# such a model knows.
PLAIN_TEMPLATE = (
    "{% if bos_token is defined %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n### Response:\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + '\n\n' }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
)


class PretrainedTokenizer(Tokenizer):
    """A `tokenizer.json` with the interface of `Tokenizer`.

    Special tokens' strings within a plain text are plain text (`encode`). In a conversation they
    are special tokens, as in `transformers`, because those of the template cannot be distinguished
    from those of a message.
    """

    def __init__(self, files: Mapping[str, bytes], where: str, rows: int | None = None) -> None:
        """Create a tokenizer.

        Args:
            files: contents of the files of FILES that exist, by name.
            where: their directory, for messages.
            rows: rows of the model's embedding, if there is a model. Added tokens with higher ids
                become plain text.

        Raises:
            UserError: a file is broken, or the end-of-text token is missing or not in the
                vocabulary.
        """
        import tokenizers

        self.where, self._files = where, dict(files)
        self.pattern = ""  # no fast encoder supports the pattern of tokenizer.json
        try:
            self.lacking = self._remove_tokens_beyond(rows)
            self._plain = tokenizers.Tokenizer.from_buffer(self._files["tokenizer.json"])
            self._special = tokenizers.Tokenizer.from_buffer(self._files["tokenizer.json"])
        except Exception as error:  # errors from Rust are plain Exceptions
            raise UserError(
                f"{where}/tokenizer.json cannot be read ({error}). Copy it again."
            ) from None
        for tokenizer in (self._plain, self._special):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self._plain.encode_special_tokens = True
        config = _parsed(files, "tokenizer_config.json", where)
        special = {**_parsed(files, "special_tokens_map.json", where), **config}
        self.tokens = {name: _content(special[name]) for name in SPECIAL_NAMES if special.get(name)}
        eos = self.tokens.get("eos_token")
        eos_id = self._plain.token_to_id(eos) if eos else None
        if eos_id is None:
            raise UserError(
                f"{where}/tokenizer_config.json: eos_token is {eos!r}; expected a token of tokenizer.json, since it "
                "ends every text and answer."
            )
        self.eos_id = eos_id
        self.vocab_size = max(self._plain.get_vocab(with_added_tokens=True).values()) + 1
        bare, word = [self._plain.encode("a", add_special_tokens=add).ids for add in (False, True)]
        first = next(i for i in range(len(word)) if word[i : i + len(bare)] == bare)
        self.around = tuple(word[:first]), tuple(word[first + len(bare) :])
        self._word = bare
        self.template = _template(files, config, where)
        if self.template is None:
            self.template = PLAIN_TEMPLATE
            self._files["tokenizer_config.json"] = _json(
                {**config, "chat_template": PLAIN_TEMPLATE}
            )

    @classmethod
    def load(cls, directory: str | Path) -> PretrainedTokenizer:
        """Read a directory's files.

        Raises:
            UserError: as in `__init__`, or there is no `tokenizer.json`.
        """
        directory = Path(directory)
        files = {
            name: (directory / name).read_bytes() for name in FILES if (directory / name).is_file()
        }
        if "tokenizer.json" not in files:
            others = (
                ", ".join(sorted(path.name for path in directory.glob("tokenizer*")))
                or "nothing like it"
            )
            raise UserError(
                f"{directory}/tokenizer.json: no such file (there is {others}). `transformers` writes it: "
                f"AutoTokenizer.from_pretrained(...).save_pretrained({str(directory)!r})."
            )
        model = directory / "config.json"
        rows = read_json(model).get("vocab_size") if model.is_file() else None
        tokenizer = cls(files, str(directory), rows)
        tokenizer.prefix = soft_prompt_ids(directory)
        return tokenizer

    def _remove_tokens_beyond(self, rows: int | None) -> list[str]:
        """Remove added tokens without an embedding from `tokenizer.json` and return them."""
        if rows is None:
            return []
        content = _parsed(self._files, "tokenizer.json", self.where)
        added = content.get("added_tokens") or []
        beyond = [token for token in added if token["id"] >= rows]
        if beyond:
            content["added_tokens"] = [token for token in added if token not in beyond]
            self._files["tokenizer.json"] = json.dumps(content, ensure_ascii=False).encode()
            names = ", ".join(f"{token['content']} ({token['id']})" for token in beyond)
            say_once(
                f"{self.where}/tokenizer.json has tokens beyond the model's embedding of {rows} rows; they are plain "
                f"text here: {names}."
            )
        return [token["content"] for token in beyond]

    def encode(self, text: str) -> list[int]:
        return list(self._plain.encode(valid_unicode(text), add_special_tokens=False).ids)

    def encode_to_numpy(self, text: str) -> np.ndarray:
        return np.array(self.encode(text), dtype=np.uint32)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        encoded = self._plain.encode_batch_fast(
            [valid_unicode(text) for text in texts], add_special_tokens=False
        )
        return [list(encoding.ids) for encoding in encoded]

    def decode_after(self, prompt: Sequence[int]) -> Callable[[Sequence[int]], str]:
        """Return the decoder of a continuation, as in `Tokenizer`.

        On its own, SentencePiece's decoder would drop the first blank of a text.
        """
        if not self._plain.decode(list(prompt), skip_special_tokens=True):
            return self.decode  # there is no text before it
        start = len(self.decode(self._word))
        return lambda ids: self.decode([*self._word, *ids])[start:]

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._plain.decode(list(ids), skip_special_tokens=False))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self.decode(ids).encode()

    def token_bytes(self) -> dict[int, bytes]:
        decoder = json.loads(self._plain.to_str())["decoder"] or {}
        kinds = {part.get("type") for part in (decoder, *decoder.get("decoders", ()))}
        added = self._plain.get_added_tokens_decoder()
        pieces = {}
        for piece, token in self._plain.get_vocab(with_added_tokens=True).items():
            if token in added:
                if not added[token].special:
                    pieces[token] = piece.encode()
            elif "ByteLevel" in kinds and BYTES.keys() >= set(piece):
                pieces[token] = bytes(BYTES[char] for char in piece)
            elif fallback := BYTE_FALLBACK.fullmatch(piece):
                pieces[token] = bytes([int(fallback[1], 16)])
            else:
                pieces[token] = piece.replace("▁", " ").encode()
        return pieces

    def chat_ids(self, prompt: str) -> list[int]:
        return self.conversation_ids([{"role": "user", "content": prompt}])

    def chat_batch(self, prompts: list[str]) -> list[list[int]]:
        texts = [
            valid_unicode(self.render([{"role": "user", "content": prompt}], True))
            for prompt in prompts
        ]
        encoded = self._special.encode_batch_fast(texts, add_special_tokens=False)
        return [[*self.prefix, *encoding.ids] for encoding in encoded]

    def response_ids(self, text: str) -> list[int]:
        return self.encode(text)

    def response_batch(self, texts: list[str]) -> list[list[int]]:
        return self.encode_batch(texts)

    def decode_response(self, ids: Iterable[int]) -> str:
        return self.decode(ids)

    def conversation_ids(
        self, messages: Iterable[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the ids of a conversation, as in `Tokenizer`.

        Raises:
            UserError: the template refuses the conversation or is broken.
        """
        text = valid_unicode(self.render(messages, add_generation_prompt))
        return [*self.prefix, *self._special.encode(text, add_special_tokens=False).ids]

    def render(self, messages: Iterable[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """Return the text of a conversation.

        Raises:
            UserError: the template refuses the conversation or is broken.
        """
        import jinja2

        try:
            return self._compiled.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.tokens,
            )
        except UserError:
            raise
        except Exception as error:  # a template can raise anything
            kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
            raise UserError(
                f"{self.where}: the chat template cannot render this conversation: {kind}{error}"
            ) from None

    @property
    def is_chat(self) -> bool:
        """Tell whether the checkpoint has its own chat template."""
        return self.template != PLAIN_TEMPLATE

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Return the end token and the special token that the template puts after an answer.

        They differ in Qwen2.5's base models, which end a text with one and a turn with the other.
        """
        answer = "the answer"
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        try:
            after = self.render(turns, add_generation_prompt=False).rpartition(answer)[2]
        except UserError:
            # The template refuses answers; `conversation_ids` reports that when it gets one.
            return frozenset({self.eos_id})
        added = self._special.get_added_tokens_decoder()
        ids = self._special.encode(after, add_special_tokens=False).ids
        return frozenset({self.eos_id, *[i for i in ids if i in added and added[i].special][:1]})

    def files(self) -> dict[str, bytes]:
        """Return the files that `save` writes, by name.

        They have the bytes that were read, plus a chat template if there was none.
        """
        return dict(self._files)

    @cached_property
    def _compiled(self) -> jinja2.Template:
        """Return the template in an environment as in `transformers`, but with a fixed date."""
        import jinja2
        import jinja2.ext
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise jinja2.TemplateError(message)

        def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
            return json.dumps(value, ensure_ascii=ensure_ascii, **options)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_generation_tag(), jinja2.ext.loopcontrols],
        )
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = TODAY.strftime
        template = self.template or ""
        if "strftime_now" in template:
            say_once(
                f"{self.where}: the chat template asks for the date; it gets {TODAY:%d %B %Y}, whatever the day."
            )
        names = {content: name for name, content in self.tokens.items()}
        for token in self.lacking:
            if token in template or names.get(token, token) in template:
                raise UserError(
                    f"{self.where}: the chat template uses {token}, for which the model has no embedding: tokenizer "
                    "and config.json are not of the same model."
                )
        try:
            return environment.from_string(template)
        except Exception as error:  # as in `render`
            raise UserError(f"{self.where}: the chat template is broken: {error}") from None


def _generation_tag() -> type[jinja2.ext.Extension]:
    """Return a Jinja extension that renders `{% generation %} … {% endgeneration %}` unchanged.

    The tag marks an assistant's messages.
    """
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    return Generation


def _parsed(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(files.get(name, b"{}"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{where}/{name} is not valid JSON ({error}). Copy it again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}/{name}: expected an object, found {type(content).__name__}.")
    return content


def _content(token: Any) -> str:
    """Return the string of a special token, which the file may store as an object."""
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _template(files: Mapping[str, bytes], config: dict[str, Any], where: str) -> str | None:
    if "chat_template.jinja" in files:
        try:
            return files["chat_template.jinja"].decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}/chat_template.jinja is not UTF-8 ({error}). Copy it again."
            ) from None
    template = config.get("chat_template")
    if isinstance(template, list) and all(
        isinstance(entry, dict) and {"name", "template"} <= set(entry) for entry in template
    ):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if not isinstance(template, str | None):
        raise UserError(
            f"{where}/tokenizer_config.json: chat_template is a {type(template).__name__} that cannot be used; "
            "expected a string, or a list of objects with name and template."
        )
    return template
