"""The same ids and the same greedy answers in the runtimes that people take a model to: tiktoken
(ours), tokenizers, transformers, llama.cpp.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.export import export
from llm.generation.generate import generate
from llm.model.hf_files import load_model, save_model
from llm.tokenizer.bpe import SPECIAL, Tokenizer
from tests.export.llama_cpp import LlamaCpp, llama_cpp
from tests.model.conftest import random_model

pytest.importorskip("xllamacpp", reason="needs the extra `peers`")
pytest.importorskip("gguf", reason="needs the extra `export`")
transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")

ROOT = Path(__file__).parents[2]
TEXTS = [path.read_text() for path in sorted(ROOT.glob("llm/model/*.py"))] + [
    (ROOT / "LICENSE").read_text(),
    *(path.read_text() for path in sorted(ROOT.glob("docs/*.md"))),
]
CONTEXT = 256


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train(TEXTS, 3000)
    model = random_model(0, vocab_size=3000, max_position_embeddings=CONTEXT, qk_norm=True)
    save_model(model, path, path, tokenizer.eos_id)
    tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.load(directory)


@pytest.fixture(scope="module")
def hugging_face(directory: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def peer(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    out = export("gguf", directory, tmp_path_factory.mktemp("gguf") / "model", "f32")
    with llama_cpp(next(out.glob("*.gguf")), CONTEXT) as server:
        yield server


BLANKS = [
    *" \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2003\u200b\u2028\u2029\u202f\u205f\u3000",
    "\r\n",
    "  ",
    "\n\n",
    " \n",
    "\ufeff",
]
MARKS = [*"'`\"_.,:;()[]{}<>|/\\#@$%^&*+-=~!?\x00\x7f", "“", "”", "’", "…", "—", "¿", "€"]
PIECES = [
    *"abcXYZ019",
    *BLANKS,
    *MARKS,
    *SPECIAL,
    *("'s", "'S", "'ll", "'LL", "'Ll", "'ve", "'RE", "'d", "'ſ", "K", "ſ", "don't", "DON'T"),
    *("²", "½", "٣", "१२", "𝟘", "Ⅷ", "12345", "3.14e-10", "0x1F"),
    *("é", "e\u0301", "a\u0300\u0323\u20dd", "ß", "İ", "Ω", "ж", "ǆ", "中文", "日本語", "한국어"),
    *("שלום", "مرحبا", "\u202eabc\u202c", "नमस्ते", "ไทย", "\u200d", "\u200c", "\ufe0f"),
    *("😀", "👩\u200d👩\u200d👧", "🏳️\u200d🌈", "👍🏽", "🇩🇪", "1\ufe0f\u20e3"),
    *("\ufffd", "\uffff", "\ue000", "\u0378", "\U0001fbff", "\U000e0041", "\U0010ffff"),
    *("def f(x):\n    return x", "self.kind", "`kind`", "kind: a", "\n\t`kind", "// a\r\n", "-->"),
]


def hostile(count: int) -> list[str]:
    """Return `count` texts of all kinds; the same ones each time."""
    rng = random.Random(0)
    words = " ".join(TEXTS).split(" ")

    def character() -> str:
        while True:
            code = rng.choice(
                [rng.randrange(0x300), rng.randrange(0x10000), rng.randrange(0x110000)]
            )
            # Code points that one library's Unicode has as letters and another's does not, are left
            # out: those below the fourth plane that Python's does not know.
            young = code < 0x40000 and unicodedata.category(chr(code)) == "Cn"
            if not 0xD800 <= code < 0xE000 and not young:
                return chr(code)

    def text() -> str:
        kind = rng.randrange(5)
        if kind == 0:
            return " ".join(rng.choices(words, k=rng.randint(1, 40)))
        if kind == 1:
            return "".join(character() for _ in range(rng.randint(1, 60)))
        if kind == 2:
            runs = [
                rng.choice(PIECES) * rng.choice([1, 2, 3, 7, 255, 256, 257, 600]) for _ in "abc"
            ]
            return "".join(f"{run}{rng.choice(PIECES)}" for run in runs)
        pieces = [
            rng.choice([rng.choice(PIECES), rng.choice(words), character()]) for _ in range(40)
        ]
        return "".join(pieces[: rng.randint(1, 40)])

    return [text() for _ in range(count)]


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_hostile_texts_have_the_same_ids(
    count: int, tokenizer: Tokenizer, hugging_face: Any, directory: Path, peer: LlamaCpp
) -> None:
    import tokenizers

    rust = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    rust.encode_special_tokens = True  # special tokens' strings in a text are text
    texts = hostile(count)
    expected = tokenizer.encode_batch(texts)
    assert [each.ids for each in rust.encode_batch(texts)] == expected
    assert hugging_face(texts, split_special_tokens=True)["input_ids"] == expected
    special = set(tokenizer.special.values())
    for text, ids in zip(texts, expected, strict=True):
        assert peer.ids(text) == ids, repr(text)
        assert not special & set(ids)


@pytest.mark.parametrize("run", ["a", " ", "\n", " \n", "\u3000", "-", "1", "-\n", "中", "\r\n\t"])
def test_long_runs_have_the_same_ids(run: str, tokenizer: Tokenizer, peer: LlamaCpp) -> None:
    for text in (f"x{run * 30_000}x", run * 30_000):
        assert peer.ids(text) == tokenizer.encode(text)


@pytest.mark.slow
def test_every_code_point_has_the_same_ids(tokenizer: Tokenizer, peer: LlamaCpp) -> None:
    """Also letters younger than llama.cpp's Unicode tables, which are signs there: no token of
    this vocabulary joins one to what is before it.
    """
    codes = [*range(0xD800), *range(0xE000, 0x33500), *range(0xE0000, 0xE0200)]
    for start in range(0, len(codes), 256):
        text = "".join(
            f"a{c}1{c}.{c} {c}\n{c}'{c}s{c}{c} b" for c in map(chr, codes[start : start + 256])
        )
        assert peer.ids(text) == tokenizer.encode(text), hex(codes[start])


def test_conversations_have_the_same_ids(tokenizer: Tokenizer, peer: LlamaCpp) -> None:
    texts = [text for text in hostile(400) if not any(token in text for token in SPECIAL)]
    roles = ("system", "user", "assistant", "user")
    for start in range(0, 200, 4):
        turns = [
            {"role": role, "content": text}
            for role, text in zip(roles, texts[start : start + 4], strict=True)
        ]
        assert peer.chat_ids(turns) == tokenizer.conversation_ids(turns)


def test_special_tokens_typed_in_a_message_are_text(tokenizer: Tokenizer, peer: LlamaCpp) -> None:
    """llama.cpp keeps the marks that the template puts into them, so the text differs there."""
    special = set(tokenizer.special.values())
    for token in SPECIAL:
        turns = [{"role": "user", "content": f"say {token}{token} now"}]
        ids = [i for i in peer.chat_ids(turns) if i in special]
        assert ids == [tokenizer.user_id, tokenizer.assistant_id]
        assert [i for i in tokenizer.conversation_ids(turns) if i in special] == ids


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_greedy_answers_are_the_same(
    count: int, directory: Path, tokenizer: Tokenizer, peer: LlamaCpp
) -> None:
    rng = random.Random(1)
    text = " ".join(TEXTS)
    prompts = []
    for _ in range(count):
        start = rng.randrange(len(text) - 1000)
        prompts.append(tokenizer.chat_ids(text[start : start + rng.randint(1, 500)])[-200:])
    ours = generate(load_model(directory), prompts, 24, tokenizer.eos_id)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    for prompt, ids in zip(prompts, ours, strict=True):
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
        answer = theirs[0, len(prompt) :].tolist()
        assert (answer[:-1] if answer[-1] == tokenizer.eos_id else answer) == ids
        _, answer = peer.greedy(prompt, 24)
        assert (answer[:-1] if answer[-1] == tokenizer.eos_id else answer) == ids
