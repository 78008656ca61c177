"""Byte-level BPE: trained with `tokenizers`, used through `tiktoken` (the same ids, several times
faster).

Ids: the 256 bytes, the merges in order, then the special tokens.
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

# Both expressions mean the same to tiktoken (fancy-regex) and tokenizers (Oniguruma), as `$` and
# `(?i:)` would not; possessive `++` is faster where it cannot matter. GPT-2's own `\s+(?!\S)`
# backtracks over a whole run of blanks and overflows fancy-regex's stack at a million of them;
# {1,65536} cuts such a run and changes no shorter one.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s{1,65536}(?!\S)|\s"
# Ours: GPT-2's, with contractions at a word's end only ('some stays whole), digits in groups of at
# most three, and line
# ends kept with the punctuation or blanks before them; the last two as in GPT-4's: 2 % more text a
# token at 4,096.
PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)(?!\p{L})| ?\p{L}++| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s{0,256}[\r\n]|\s{1,65536}(?!\S)|\s"
)
SPECIAL = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>")
# In a message's text the template puts a mark into what may be a special token, and tokenizer.json
# takes the mark out once special tokens have been looked for: so the text stays text in
# `transformers` as it does here, with the same ids. Noncharacters of Unicode, which no text holds.
MARK = "\ufdd0\ufdd1"
CONTENT = f"message['content'].replace('<|', '<{MARK}|')"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>' + " + CONTENT + " }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>' + " + CONTENT + " }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + "
    + CONTENT
    + " + '<|endoftext|>' }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class Tokenizer:
    """Text to ids and back; special strings that stand in a text are plain text.

    What every tokenizer offers, also that of somebody else's checkpoint
    (llm/tokenizer/pretrained.py): `vocab_size`, `eos_id`, `end_ids`, `is_chat`, `encode`,
    `encode_batch`, `around`, `plain_ids`, `decode`, `decode_after`, `chat_ids`,
    `chat_batch`, `conversation_ids`, `files`, `save`.
    """

    prefix: tuple[int, ...] = ()  # ids before every conversation: a soft prompt's virtual tokens
    around: tuple[tuple[int, ...], tuple[int, ...]] = (
        (),
        (),
    )  # ids before and after a plain prompt, such as <s>

    def __init__(self, ranks: dict[bytes, int], pattern: str = PATTERN) -> None:
        """`ranks`: token bytes to id, without the special tokens, numbered 0 … len-1."""
        self.ranks, self.pattern = ranks, pattern
        self.special = {token: len(ranks) + i for i, token in enumerate(SPECIAL)}
        self.eos_id, self.user_id, self.assistant_id, self.system_id = self.special.values()
        self.vocab_size = len(ranks) + len(SPECIAL)

    @property
    def id_type(self) -> np.dtype:
        """Of the ids in shards: uint16 where it holds the vocabulary, else uint32."""
        import numpy as np

        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    @property
    def is_chat(self) -> bool:
        """Whether it came with a chat template; ours is there for finetuning, which teaches it."""
        return False

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
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
        """Ids of a text. Lone surrogates, which UTF-8 cannot hold, become U+FFFD."""
        return self._encoding.encode_ordinary(text)

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """Ids of a text without lone surrogates, uint32; a list of them would take 20 times the
        memory.
        """
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of several texts, on all cores."""
        return self._encoding.encode_ordinary_batch(texts, num_threads=os.cpu_count() or 1)

    def plain_ids(self, text: str) -> list[int]:
        """Ids of a text that a model is to continue: `encode`, between what goes around a text."""
        before, after = self.around
        return [*before, *self.encode(text), *after]

    def decode_after(self, prompt: Sequence[int]) -> Callable[[Sequence[int]], str]:
        """What decodes the continuation of a plain prompt: its text may begin with a blank."""
        return self.decode

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD."""
        return self._encoding.decode(list(ids))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes of ids."""
        return self._encoding.decode_bytes(list(ids))

    def chat_ids(self, prompt: str) -> list[int]:
        """A prompt as the finetuning examples have it, ready for the answer."""
        return [*self.prefix, self.user_id, *self.encode(prompt), self.assistant_id]

    def chat_batch(self, prompts: list[str]) -> list[list[int]]:
        """`chat_ids` of several prompts, on all cores."""
        return [
            [*self.prefix, self.user_id, *ids, self.assistant_id]
            for ids in self.encode_batch(prompts)
        ]

    def conversation_ids(
        self, messages: Iterable[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> list[int]:
        """A conversation of `{"role": ..., "content": ...}`, as the chat template renders it.

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
            ids += [roles[message["role"]], *self.encode(message["content"])]
            if message["role"] == "assistant":
                ids.append(self.eos_id)
        return [*ids, self.assistant_id] if add_generation_prompt else ids

    # -- making one

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; on bytes as GPT-2) on a
        stream of texts.

        The result has fewer than `vocab_size` tokens where the texts hold too few pairs to merge.
        """
        import tokenizers
        from tokenizers import models, pre_tokenizers, trainers

        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizer(PATTERN)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL),
            min_frequency=2,  # a pair seen once is no pattern
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
        """GPT-2's encoding, with the chat tokens behind its end-of-text token.

        Raises:
            UserError: its files are not on this machine and cannot be fetched.
        """
        return cls(gpt2_files.ranks(), GPT2_PATTERN)

    # -- files

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` (Hugging Face) and `ranks.tiktoken`, with
        stable bytes.
        """
        for name, content in self.files().items():
            write_bytes(Path(directory) / name, content)

    def files(self) -> dict[str, bytes]:
        """What `save` writes, by name."""
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
            "model_input_names": [
                "input_ids",
                "attention_mask",
            ],  # generate() refuses token_type_ids
            "model_max_length": 1_000_000,
            "chat_template": CHAT_TEMPLATE,
        }
        return {
            "ranks.tiktoken": self.ranks_file(),
            # Without indentation, for which Python's json would write token by token: 0.7 s at
            # GPT-2's vocabulary.
            "tokenizer.json": json.dumps(
                tokenizer_json(self.ranks, self.special, self.pattern, MARK), ensure_ascii=False
            ).encode(),
            "tokenizer_config.json": _json(config),
        }

    def ranks_file(self) -> bytes:
        """The content of `ranks.tiktoken`, as tiktoken reads it."""
        by_rank = sorted(self.ranks.items(), key=lambda item: item[1])
        return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in by_rank)

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Read what `save` wrote, or the tokenizer of a Hugging Face model directory.

        Raises:
            UserError: a file is missing or broken.
        """
        from llm.tokenizer.pretrained import PretrainedTokenizer

        path, described = Path(directory) / "ranks.tiktoken", Path(directory) / "tokenizer.json"
        again = "Run `dvc repro -sf tokenize` to write it again."
        if Path(directory).as_posix() != "data/tokenizer":
            again = "Copy the directory again; one that a stage wrote comes back by `dvc repro`."
        content = read_json(described)
        if not path.exists() and not _is_ours(content):
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
    """Ids of the virtual tokens of a model directory's soft prompt (llm/model/soft_prompt.py),
    behind the vocabulary.
    """
    path = directory / "prompt" / "adapter_config.json"
    if not path.exists():
        return ()
    first = int(read_json(directory / "config.json")["vocab_size"])
    return tuple(range(first, first + int(read_json(path)["num_virtual_tokens"])))


def _is_ours(described: Any) -> bool:
    """Whether a `tokenizer.json` has the special tokens of this pipeline's."""
    tokens = described.get("added_tokens") if isinstance(described, dict) else None
    return (
        isinstance(tokens, list)
        and tuple(t.get("content") for t in tokens if isinstance(t, dict)) == SPECIAL
    )


def valid_unicode(text: str) -> str:
    """`text` as tiktoken reads it: surrogate pairs joined, lone surrogates replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
