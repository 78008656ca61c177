"""The Hugging Face file of a byte-level BPE, `tokenizer.json`."""

from __future__ import annotations

from typing import Any


def tokenizer_json(
    ranks: dict[bytes, int], special: dict[str, int], pattern: str, mark: str
) -> dict[str, Any]:
    """Return the content of `tokenizer.json`.

    Args:
        ranks: token bytes to id.
        special: special tokens to id.
        pattern: the expression that splits a text before pairs are merged.
        mark: the string that is removed from a text after the search for special tokens.
    """
    chars = dict(enumerate(byte_chars()))
    text = {token: token.decode("latin-1").translate(chars) for token in ranks}
    merges = [[text[left], text[right]] for token in ranks for left, right in splits(token, ranks)]
    vocabulary = {text[token]: rank for token, rank in ranks.items()}
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
            for token, number in special.items()
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": mark}, "content": ""},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": pattern},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": False,
                },
            ],
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
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


def pre_tokenizer(pattern: str) -> Any:
    """Return the `tokenizers` object that splits a text before pairs are merged."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def byte_chars() -> list[str]:
    """Return GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    chars = {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + i) for i, byte in enumerate(others)
    }
    return [chars[byte] for byte in range(256)]


def splits(token: bytes, ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return every pair of tokens whose concatenation is this token, lowest ranks first.

    tiktoken merges any two neighbours that form a token, not only the pair that training merged. So
    `tokenizer.json` must list all pairs to give the same ids, as in transformers' own conversion of
    tiktoken files.
    """
    pairs = [
        (token[:i], token[i:])
        for i in range(1, len(token))
        if token[:i] in ranks and token[i:] in ranks
    ]
    return sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
