"""Byte-level BPE: trained with `tokenizers`, used through `tiktoken` (the same ids, several times faster).

Ids: the 256 bytes, the merges in order, then the special tokens.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
import urllib.request
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.errors import UserError
from llm.io import read_json, sha256, write_bytes

if TYPE_CHECKING:
    import numpy as np
    import tiktoken

# Both expressions mean the same to tiktoken (fancy-regex) and tokenizers (Oniguruma), as `$` and `(?i:)` would not;
# possessive `++` is faster where it cannot matter. GPT-2's own `\s+(?!\S)` backtracks over a whole run of blanks and
# overflows fancy-regex's stack at a million of them; {1,65536} cuts such a run and changes no shorter one.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s{1,65536}(?!\S)|\s"
# Ours: GPT-2's, with contractions at a word's end only ('some stays whole), digits in groups of at most three, and line
# ends kept with the punctuation or blanks before them; the last two as in GPT-4's: 2 % more text a token at 4,096.
PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)(?!\p{L})| ?\p{L}++| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s{0,256}[\r\n]|\s{1,65536}(?!\S)|\s"
)
SPECIAL = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>' + message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + '<|endoftext|>' }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class Tokenizer:
    """Text to ids and back; special strings that stand in a text are plain text.

    What every tokenizer offers, also that of somebody else's checkpoint (llm/data/pretrained_tokenizer.py):
    `vocab_size`, `eos_id`, `encode`, `encode_batch`, `decode`, `chat_ids`, `chat_batch`, `conversation_ids`, `files`,
    `save`.
    """

    prefix: tuple[int, ...] = ()  # ids before every conversation: a soft prompt's virtual tokens

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

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        import tiktoken

        return tiktoken.Encoding(
            name="llm", pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens=self.special
        )

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Lone surrogates, which UTF-8 cannot hold, become U+FFFD."""
        return self._encoding.encode_ordinary(text)

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """Ids of a text without lone surrogates, uint32; a list of them would take 20 times the memory."""
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of several texts, on all cores."""
        return self._encoding.encode_ordinary_batch(texts, num_threads=os.cpu_count() or 1)

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
        return [[*self.prefix, self.user_id, *ids, self.assistant_id] for ids in self.encode_batch(prompts)]

    def conversation_ids(self, messages: Iterable[Mapping[str, str]], add_generation_prompt: bool = True) -> list[int]:
        """A conversation of `{"role": ..., "content": ...}`, as the chat template renders it.

        Raises:
            UserError: a role other than system, user and assistant.
        """
        roles = {"system": self.system_id, "user": self.user_id, "assistant": self.assistant_id}
        ids = list(self.prefix)
        for message in messages:
            if message["role"] not in roles:
                raise UserError(f"unknown role {message['role']!r}: expected one of {', '.join(roles)}.")
            ids += [roles[message["role"]], *self.encode(message["content"])]
            if message["role"] == "assistant":
                ids.append(self.eos_id)
        return [*ids, self.assistant_id] if add_generation_prompt else ids

    # -- making one ---------------------------------------------------------------------------------------------------

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; on bytes as GPT-2) on a stream of texts.

        The result has fewer than `vocab_size` tokens where the texts hold too few pairs to merge.
        """
        import tokenizers
        from tokenizers import models, pre_tokenizers, trainers

        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = _pre_tokenizer(PATTERN)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL),
            min_frequency=2,  # a pair seen once is no pattern
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
            special_tokens=[],
        )
        tokenizer.train_from_iterator((valid_unicode(text) for text in texts), trainer)
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        to_byte = {char: byte for byte, char in enumerate(_byte_chars())}
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
        from tiktoken.load import data_gym_to_mergeable_bpe_ranks

        folder = _gpt2_files()
        before = os.environ.get("TIKTOKEN_CACHE_DIR")
        os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)  # read the files that were just checked, and no others
        try:
            vocabulary, encoder = ((_GPT2_BASE + name, digest) for name, digest in _GPT2_SHA256.items())
            ranks = data_gym_to_mergeable_bpe_ranks(vocabulary[0], encoder[0], vocabulary[1], encoder[1])
        finally:
            if before is None:
                del os.environ["TIKTOKEN_CACHE_DIR"]
            else:
                os.environ["TIKTOKEN_CACHE_DIR"] = before
        return cls(ranks, GPT2_PATTERN)

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` (Hugging Face) and `ranks.tiktoken`, with stable bytes."""
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
            "model_input_names": ["input_ids", "attention_mask"],  # generate() refuses token_type_ids
            "model_max_length": 1_000_000,
            "chat_template": CHAT_TEMPLATE,
        }
        return {
            "ranks.tiktoken": self.ranks_file(),
            # Without indentation, for which Python's json would write token by token: 0.7 s at GPT-2's vocabulary.
            "tokenizer.json": json.dumps(self._hugging_face(), ensure_ascii=False).encode(),
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
        from llm.data.pretrained_tokenizer import PretrainedTokenizer

        path, described = Path(directory) / "ranks.tiktoken", Path(directory) / "tokenizer.json"
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
                f"and the special tokens {', '.join(SPECIAL)}. Run `dvc repro -f tokenize` to write it again."
            )
        try:
            ranks = {}
            for line in path.read_bytes().splitlines():
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file. Run `dvc repro tokenize` to make it.") from None
        except ValueError as error:
            raise UserError(f"{path} is broken ({error}). Run `dvc repro -f tokenize` to write it again.") from None
        if sorted(ranks.values()) != list(range(len(ranks))) or len(ranks) < 256:
            raise UserError(
                f"{path} is broken ({len(ranks)} tokens, not numbered one after the other). "
                "Run `dvc repro -f tokenize` to write it again."
            )
        tokenizer = cls(ranks, pattern)
        tokenizer.prefix = soft_prompt_ids(Path(directory))
        return tokenizer

    def _hugging_face(self) -> dict[str, Any]:
        """The content of `tokenizer.json`."""
        chars = dict(enumerate(_byte_chars()))

        text = {token: token.decode("latin-1").translate(chars) for token in self.ranks}
        merges = [[text[left], text[right]] for token in self.ranks for left, right in _splits(token, self.ranks)]
        vocabulary = {text[token]: rank for token, rank in self.ranks.items()}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": number,
                    "content": token,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for token, number in self.special.items()
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": self.pattern}, "behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                ],
            },
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": vocabulary,
                "merges": merges,
            },
        }


_GPT2_BASE = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_GPT2_SHA256 = {  # as in tiktoken_ext.openai_public
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
_GPT2_TIMEOUT = 15.0  # seconds without an answer; tiktoken's own download waits for ever


def gpt2_is_here() -> bool:
    """Whether GPT-2's two files are on this machine; nothing is fetched."""
    return all(path.is_file() for path in _gpt2_paths()[1].values())


def _gpt2_paths() -> tuple[Path, dict[str, Path]]:
    """tiktoken's cache folder, and where in it each of the two files is."""
    given = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = Path(given) if given else Path(tempfile.gettempdir()) / "data-gym-cache"
    names = {name: hashlib.sha1((_GPT2_BASE + name).encode()).hexdigest() for name in _GPT2_SHA256}  # noqa: S324
    return folder, {name: folder / cached for name, cached in names.items()}


def _gpt2_files() -> Path:
    """tiktoken's cache folder, holding GPT-2's two files: checked, and downloaded if they are missing.

    Raises:
        UserError: they cannot be downloaded, or are not the published ones.
    """
    folder, paths = _gpt2_paths()
    remedy = "Copy the two files from a machine with a network:" + "".join(
        f"\n  {_GPT2_BASE}{name}\n    to {path}" for name, path in paths.items()
    )
    remedy += "\n(TIKTOKEN_CACHE_DIR chooses another folder), or set tokenize.tokenizer to bpe."
    for name, path in paths.items():
        if path.is_file():
            if sha256(path) != _GPT2_SHA256[name]:
                raise UserError(f"{path} is not GPT-2's {name}: its SHA-256 is another. {remedy}")
            continue
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            raise UserError(f"GPT-2's {name} is not on this machine, and HF_HUB_OFFLINE is set. {remedy}")
        try:
            with urllib.request.urlopen(_GPT2_BASE + name, timeout=_GPT2_TIMEOUT) as answer:
                content = answer.read()
        except OSError as error:  # urllib's errors and time-outs are OSErrors
            raise UserError(
                f"GPT-2's {name} is not on this machine and cannot be downloaded ({error}). {remedy}"
            ) from None
        if hashlib.sha256(content).hexdigest() != _GPT2_SHA256[name]:
            raise UserError(f"{_GPT2_BASE}{name} answered with other bytes than GPT-2's. {remedy}")
        write_bytes(path, content)
    return folder


def soft_prompt_ids(directory: Path) -> tuple[int, ...]:
    """Ids of the virtual tokens of a model directory's soft prompt (llm/model/prompt.py), behind the vocabulary."""
    path = directory / "prompt" / "adapter_config.json"
    if not path.exists():
        return ()
    first = int(read_json(directory / "config.json")["vocab_size"])
    return tuple(range(first, first + int(read_json(path)["num_virtual_tokens"])))


def _is_ours(described: Any) -> bool:
    """Whether a `tokenizer.json` has the special tokens of this pipeline's."""
    tokens = described.get("added_tokens") if isinstance(described, dict) else None
    return isinstance(tokens, list) and tuple(t.get("content") for t in tokens if isinstance(t, dict)) == SPECIAL


def valid_unicode(text: str) -> str:
    """`text` as tiktoken reads it: surrogate pairs joined, lone surrogates replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _pre_tokenizer(pattern: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _byte_chars() -> list[str]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    chars = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [chars[byte] for byte in range(256)]


def _splits(token: bytes, ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of tokens that makes a token, lowest ranks first.

    tiktoken merges any two neighbours whose union is a token, whichever pair training had merged, so all of them belong
    into `tokenizer.json` (as in transformers' own conversion of tiktoken files) for the ids to be the same.
    """
    pairs = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
    return sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
