"""Byte-level BPE: trained with `tokenizers`, applied with `tiktoken`.

Both give the same ids, but `tiktoken` is several times faster. The ids are those of the 256 bytes,
the merges in order, and the special tokens.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.errors import UserError
from llm.runtime.io import read_json, write_bytes
from llm.tokenizer import gpt2 as gpt2_files
from llm.tokenizer.hf_json import byte_chars, pre_tokenizer, tokenizer_json

if TYPE_CHECKING:
    import numpy as np
    import tiktoken

# The splitting patterns. They have the same meaning in tiktoken (fancy-regex) and tokenizers
# (Oniguruma); `$` and `(?i:)` would not. Possessive `++` is used for speed where it does not change
# the matches.
#
# `\s+(?!\S)` of the published patterns backtracks over a whole run of blanks, and overflows
# fancy-regex's stack at a million of them. GPT2_PATTERN splits such a run with {1,65536} and
# changes no shorter one. BLANKS matches what `\s+(?!\S)` does in a run of any length: it takes 256
# blanks at a time while at least two follow.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s{1,65536}(?!\S)|\s"
CONTRACTIONS = r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"
BLANKS = r"(?:\s{256}(?=\s\s))*+\s{1,257}(?!\S)"
OTHERS = rf"\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*+|\s*[\r\n]|{BLANKS}|\s"
# Llama-3's rule, which llama.cpp has compiled in under the name `llama-bpe`. It knows no others than
# those compiled in, so a rule of our own would give other ids there.
PATTERN = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}++|{OTHERS}"
# Llama-3's rule joins a letter to any character before it, also to a quote: `kind` at a line's
# beginning would have other tokens than kind, and a question about `kind` would not match a line
# that begins with it. Training splits there, so no token contains a quote and the letter after it
# (except contractions), and applying PATTERN gives the ids that splitting there would give.
TRAINING_PATTERN = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}`'\"]?+\p{{L}}++|{OTHERS}"
SPECIAL = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>")
# In a message's text the template inserts a mark into what may be a special token. tokenizer.json
# removes the mark after the search for special tokens, so that `transformers` treats it as text and
# gives the same ids as this class. The mark is made of Unicode noncharacters, which no text holds.
MARK = "\ufdd0\ufdd1"
CONTENT = f"message['content'].replace('<|', '<{MARK}|')"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>' + " + CONTENT + " }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>' + " + CONTENT + " }}"
    # A blank comes before an answer, so that its first word has the tokens that it has in the middle
    # of a text: a model that copies an answer from its prompt then copies tokens, and does not have
    # to learn for each word how it is written without the blank.
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>'"
    " + ('' if message['content'].startswith(' ') else ' ') + " + CONTENT + " + '<|endoftext|>' }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class Tokenizer:
    """Conversion of text to ids and back; special tokens' strings within a text are plain text.

    Every tokenizer has these members, also one of another project's checkpoint
    (llm/tokenizer/pretrained.py): `vocab_size`, `eos_id`, `end_ids`, `is_chat`, `encode`,
    `encode_batch`, `around`, `plain_ids`, `decode`, `decode_after`, `token_bytes`, `chat_ids`,
    `chat_batch`, `conversation_ids`, `response_batch`, `decode_response`, `files`, `save`.
    """

    prefix: tuple[int, ...] = ()  # ids before every conversation: a soft prompt's virtual tokens
    # Ids before and after a plain prompt, such as <s>.
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def __init__(self, ranks: dict[bytes, int], pattern: str = PATTERN) -> None:
        """Create a tokenizer.

        Args:
            ranks: token bytes to id, without the special tokens, numbered 0 … len-1.
            pattern: the expression that splits a text before pairs are merged.
        """
        self.ranks, self.pattern = ranks, pattern
        self.special = {token: len(ranks) + i for i, token in enumerate(SPECIAL)}
        self.eos_id, self.user_id, self.assistant_id, self.system_id = self.special.values()
        self.vocab_size = len(ranks) + len(SPECIAL)

    @property
    def id_type(self) -> np.dtype:
        """Return the type of ids in shards: uint16 if it fits the vocabulary, else uint32."""
        import numpy as np

        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    @property
    def is_chat(self) -> bool:
        """Tell whether a model with this tokenizer knows its chat template before finetuning."""
        return False

    @property
    def end_ids(self) -> frozenset[int]:
        """Return the tokens that end an answer."""
        return frozenset({self.eos_id})

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        import tiktoken

        return tiktoken.Encoding(
            name="llm",
            pat_str=self.pattern,
            mergeable_ranks=self.ranks,
            special_tokens=self.special,
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Lone surrogates, which UTF-8 cannot encode, become U+FFFD."""
        return self._encoding.encode_ordinary(text)

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """Return the ids (n,), uint32, of a text without lone surrogates.

        A list of Python integers would need 20 times the memory.
        """
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of several texts, computed on all cores."""
        return self._encoding.encode_ordinary_batch(texts, num_threads=os.cpu_count() or 1)

    def plain_ids(self, text: str) -> list[int]:
        """Return the ids of a text that a model is to continue, with `around` on both sides."""
        before, after = self.around
        return [*before, *self.encode(text), *after]

    def decode_after(self, prompt: Sequence[int]) -> Callable[[Sequence[int]], str]:
        """Return the decoder for a plain prompt's continuation, which may begin with a blank."""
        return self.decode

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; bytes that are invalid UTF-8 become U+FFFD."""
        return self._encoding.decode(list(ids))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of ids."""
        return self._encoding.decode_bytes(list(ids))

    def token_bytes(self) -> dict[int, bytes]:
        """Return the bytes of each token that is no special token, by id."""
        return {token: piece for piece, token in self.ranks.items()}

    def chat_ids(self, prompt: str) -> list[int]:
        """Return the ids of a prompt in the format of the finetuning examples, up to the answer."""
        return [*self.prefix, self.user_id, *self.encode(prompt), self.assistant_id]

    def chat_batch(self, prompts: list[str]) -> list[list[int]]:
        """Return `chat_ids` of several prompts, computed on all cores."""
        return [
            [*self.prefix, self.user_id, *ids, self.assistant_id]
            for ids in self.encode_batch(prompts)
        ]

    def response_ids(self, text: str) -> list[int]:
        """Return the ids of an answer after `chat_ids`, without the end token."""
        return self.encode(_with_blank(text))

    def response_batch(self, texts: list[str]) -> list[list[int]]:
        """Return `response_ids` of several answers, computed on all cores."""
        return self.encode_batch([_with_blank(text) for text in texts])

    def decode_response(self, ids: Iterable[int]) -> str:
        """Return the text of an answer's ids, without the template's blank."""
        return self.decode(ids).removeprefix(" ")

    def conversation_ids(
        self, messages: Iterable[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the ids of a conversation, as the chat template renders it.

        Args:
            messages: `{"role": ..., "content": ...}` each.
            add_generation_prompt: end with the beginning of an assistant's message.

        Raises:
            UserError: a role other than system, user and assistant.
        """
        roles = {"system": self.system_id, "user": self.user_id, "assistant": self.assistant_id}
        ids = list(self.prefix)
        for message in messages:
            if message["role"] not in roles:
                raise UserError(
                    f"unknown role {message['role']!r}: expected one of {', '.join(roles)}."
                )
            ids.append(roles[message["role"]])
            if message["role"] == "assistant":
                ids += [*self.response_ids(message["content"]), self.eos_id]
            else:
                ids += self.encode(message["content"])
        return [*ids, self.assistant_id] if add_generation_prompt else ids

    # -- training

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train BPE (Sennrich et al. 2016, arXiv:1508.07909) on the bytes of a stream of texts.

        The result has fewer than `vocab_size` tokens if the texts hold too few pairs to merge.
        """
        import tokenizers
        from tokenizers import models, pre_tokenizers, trainers

        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizer(TRAINING_PATTERN)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL),
            min_frequency=2,  # a pair that occurs once is not worth a token
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
            special_tokens=[],
        )
        tokenizer.train_from_iterator((valid_unicode(text) for text in texts), trainer)
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        to_byte = {char: byte for byte, char in enumerate(byte_chars())}
        ranks = {bytes([byte]): byte for byte in range(256)}
        for left, right in merges:
            token = bytes(to_byte[char] for char in left + right)
            ranks.setdefault(token, len(ranks))
        return cls(ranks)

    @classmethod
    def gpt2(cls) -> Tokenizer:
        """Return GPT-2's tokenizer, with the chat tokens after its end-of-text token.

        Raises:
            UserError: its files are not on this machine and cannot be downloaded.
        """
        return cls(gpt2_files.ranks(), GPT2_PATTERN)

    # -- files

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer's files; equal tokenizers give the same bytes."""
        for name, content in self.files().items():
            write_bytes(Path(directory) / name, content)

    def files(self) -> dict[str, bytes]:
        """Return the files that `save` writes, by name."""
        return self._files

    @cached_property
    def _files(self) -> dict[str, bytes]:
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL[0],
            "eos_token": SPECIAL[0],
            "pad_token": SPECIAL[0],
            "additional_special_tokens": list(SPECIAL[1:]),
            "clean_up_tokenization_spaces": False,
            # Without token_type_ids, which generate() refuses.
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 1_000_000,
            "chat_template": CHAT_TEMPLATE,
        }
        return {
            "ranks.tiktoken": self.ranks_file(),
            # Without indentation, because with it Python's json takes 0.7 s for GPT-2's vocabulary.
            "tokenizer.json": json.dumps(
                tokenizer_json(self.ranks, self.special, self.pattern, MARK), ensure_ascii=False
            ).encode(),
            "tokenizer_config.json": _json(config),
        }

    def ranks_file(self) -> bytes:
        """Return the content of `ranks.tiktoken`, in tiktoken's format."""
        by_rank = sorted(self.ranks.items(), key=lambda item: item[1])
        return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in by_rank)

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Read a tokenizer that `save` wrote, or that of a Hugging Face model directory.

        Raises:
            UserError: a file is missing or broken.
        """
        from llm.tokenizer.pretrained import PretrainedTokenizer

        path, described = Path(directory) / "ranks.tiktoken", Path(directory) / "tokenizer.json"
        again = "Run `dvc repro -sf tokenize` to write it again."
        if Path(directory).as_posix() != "data/tokenizer":
            again = "Copy the directory again; one that a stage wrote comes back by `dvc repro`."
        content = read_json(described)
        ours = _has_our_template(directory) and (path.exists() or _is_ours(content))
        if not ours:
            return PretrainedTokenizer.load(directory)
        try:
            pattern = content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
            special = tuple(token["content"] for token in content["added_tokens"])
        except (KeyError, IndexError, TypeError):
            pattern, special = None, ()
        if pattern is None or special != SPECIAL:
            raise UserError(
                f"{described} is not a tokenizer of this pipeline: expected byte-level BPE with one splitting pattern "
                f"and the special tokens {', '.join(SPECIAL)}. {again}"
            )
        try:
            ranks = {}
            for line in path.read_bytes().splitlines():
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file. {again}") from None
        except ValueError as error:
            raise UserError(f"{path} is broken ({error}). {again}") from None
        if sorted(ranks.values()) != list(range(len(ranks))) or len(ranks) < 256:
            raise UserError(
                f"{path} is broken ({len(ranks)} tokens, not numbered one after the other). {again}"
            )
        tokenizer = cls(ranks, pattern)
        tokenizer.prefix = soft_prompt_ids(Path(directory))
        return tokenizer


def soft_prompt_ids(directory: Path) -> tuple[int, ...]:
    """Return the ids of the virtual tokens of a model directory's soft prompt.

    They follow the vocabulary (llm/model/soft_prompt.py).
    """
    path = directory / "prompt" / "adapter_config.json"
    if not path.exists():
        return ()
    first = int(read_json(directory / "config.json")["vocab_size"])
    return tuple(range(first, first + int(read_json(path)["num_virtual_tokens"])))


def _with_blank(text: str) -> str:
    """Return an answer as `CHAT_TEMPLATE` writes it."""
    return text if text.startswith(" ") else f" {text}"


def _has_our_template(directory: str | Path) -> bool:
    """Tell whether the chat template of a directory, where it has one, is `CHAT_TEMPLATE`.

    A model of an earlier version has another, and was trained with it.
    """
    path = Path(directory) / "tokenizer_config.json"
    config = read_json(path) if path.exists() else {}
    return isinstance(config, dict) and config.get("chat_template", CHAT_TEMPLATE) == CHAT_TEMPLATE


def _is_ours(described: Any) -> bool:
    """Tell whether a `tokenizer.json` has the special tokens of this pipeline."""
    tokens = described.get("added_tokens") if isinstance(described, dict) else None
    return (
        isinstance(tokens, list)
        and tuple(t.get("content") for t in tokens if isinstance(t, dict)) == SPECIAL
    )


def valid_unicode(text: str) -> str:
    """Return a text with surrogate pairs joined and lone surrogates replaced, as tiktoken does."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
