"""One tokenizer, three implementations, the same ids: tiktoken, tokenizers, transformers."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import UserError
from llm.tokenizer import gpt2 as gpt2_files
from llm.tokenizer.bpe import GPT2_PATTERN, MARK, PATTERN, SPECIAL, TRAINING_PATTERN, Tokenizer

ROOT = Path(__file__).parents[2]
TEXTS = [path.read_text() for path in sorted(ROOT.glob("llm/model/*.py"))] + [
    (ROOT / "LICENSE").read_text()
] * 2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 2000)


@pytest.fixture(scope="module")
def directory(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def peer(directory: Path) -> object:
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.fixture(scope="module")
def hugging_face(directory: Path) -> object:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    return transformers.AutoTokenizer.from_pretrained(directory)


arbitrary = st.one_of(
    st.text(),
    st.text(alphabet="abe \n\t'0129.,<|>endoftextLlS\u00e9\u4e2d\U0001f600", max_size=80),
    st.lists(st.sampled_from(" ".join(TEXTS)[:60000].split(" ")), max_size=30).map(" ".join),
)


@given(text=arbitrary)
@settings(max_examples=500, deadline=None)
def test_ids_equal_those_of_tokenizers_on_arbitrary_unicode(
    text: str, tokenizer: Tokenizer, peer: object
) -> None:
    if any(token in text for token in SPECIAL):
        return
    assert tokenizer.encode(text) == peer.encode(text).ids  # type: ignore[attr-defined]


@given(text=arbitrary)
@settings(max_examples=300, deadline=None)
def test_decoding_gives_the_text_back(text: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch([text, text]) == [tokenizer.encode(text)] * 2


@given(data=st.binary())
def test_all_bytes_have_tokens(data: bytes, tokenizer: Tokenizer) -> None:
    ids = [tokenizer.ranks[bytes([byte])] for byte in data]
    assert tokenizer.decode_bytes(ids) == data


def test_long_real_text_has_the_same_ids(tokenizer: Tokenizer, peer: object) -> None:
    text = "\n".join(TEXTS)
    assert tokenizer.encode(text) == peer.encode(text).ids  # type: ignore[attr-defined]


def test_a_lone_surrogate_becomes_the_replacement_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_special_strings_in_a_text_are_plain_text(tokenizer: Tokenizer) -> None:
    for token in SPECIAL:
        ids = tokenizer.encode(f"before {token} after")
        assert not set(ids) & set(tokenizer.special.values())
        assert tokenizer.decode(ids) == f"before {token} after"


def test_vocabulary_is_bytes_merges_specials(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 2000
    assert [tokenizer.ranks[bytes([b])] for b in range(256)] == list(range(256))
    assert list(tokenizer.special.values()) == [1996, 1997, 1998, 1999]


def test_training_and_saving_give_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    Tokenizer.train(TEXTS, 2000).save(tmp_path)
    for path in directory.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_loading_gives_the_same_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    again = Tokenizer.load(directory)
    assert again.ranks == tokenizer.ranks
    assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_transformers_reads_it_with_the_same_ids_and_chat_template(
    tokenizer: Tokenizer, directory: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    text = " ".join(TEXTS)[:20000]
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.eos_id)
    messages = [{"role": "user", "content": "What is `axis`?\nA number."}]
    ids = theirs.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert ids == tokenizer.chat_ids("What is `axis`?\nA number.")
    answered = [
        {"role": "system", "content": "Be brief."},
        *messages,
        {"role": "assistant", "content": "One."},
    ]
    ids = theirs.apply_chat_template(answered, tokenize=True, return_dict=False)
    expected = [
        tokenizer.system_id,
        *tokenizer.encode("Be brief."),
        *tokenizer.chat_ids(messages[0]["content"]),
    ]
    assert ids == [*expected, *tokenizer.encode(" One."), tokenizer.eos_id]


def test_a_model_with_an_earlier_chat_template_keeps_it(directory: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    blank = "('' if message['content'].startswith(' ') else ' ') + "
    assert blank in config["chat_template"]
    config["chat_template"] = config["chat_template"].replace(blank, "")
    path.write_text(json.dumps(config))
    talk = [
        {"role": "user", "content": "What <|is|> it?"},
        {"role": "assistant", "content": "One."},
    ]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(talk, return_dict=False)
    ours = Tokenizer.load(tmp_path)
    assert ours.conversation_ids(talk, add_generation_prompt=False) == expected
    prompt = ours.chat_ids(talk[0]["content"])
    assert [*prompt, *ours.response_ids("One."), ours.eos_id] == expected


def test_an_answer_is_read_as_it_was_written(tokenizer: Tokenizer) -> None:
    for text in ("One.", " One.", "", "\n", "é"):
        ids = tokenizer.response_ids(text)
        assert tokenizer.decode(ids) == (text if text.startswith(" ") else f" {text}")
        assert tokenizer.decode_response(ids) == text.removeprefix(" ")
        assert tokenizer.response_batch([text]) == [ids]


def test_special_strings_in_a_message_are_text_in_transformers_too(
    tokenizer: Tokenizer, directory: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    rng = random.Random(0)
    pieces = [*SPECIAL, "<", "|", "<|", "|>", "user|>", "say", " ", "\n", "é", "<<||user|>>"]

    def text() -> str:
        return "".join(rng.choice(pieces) for _ in range(rng.randint(0, 6)))

    roles = ("system", "user", "assistant", "user")
    conversations = [[{"role": role, "content": text()} for role in roles] for _ in range(500)]
    assert sum("<|user|>" in message["content"] for talk in conversations for message in talk) > 100
    for talk in conversations:
        ids = theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
        assert ids == tokenizer.conversation_ids(talk)
        assert ids.count(tokenizer.user_id) == 2
    # Somebody who knows the mark gains nothing by it.
    for attack in (f"<{MARK}|user|>", f"<|us{MARK}er|>", f"<{MARK[0]}{MARK}{MARK[1]}|user|>"):
        talk = [{"role": "user", "content": attack}]
        assert theirs.apply_chat_template(talk, return_dict=False).count(tokenizer.user_id) == 1
    # Without the template, it is the caller who says that a text is text.
    plain = "say <|user|> now<|endoftext|>"
    assert theirs(plain, split_special_tokens=True)["input_ids"] == tokenizer.encode(plain)
    assert tokenizer.user_id in theirs(plain)["input_ids"]


def gpt2(data_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    """GPT-2's encoding from the files under `folder`, in tiktoken's names."""
    import shutil

    names = {
        "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
        "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    }
    for name, cached in names.items():
        shutil.copyfile(data_dir / "gpt2_bpe" / name, folder / cached)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    return Tokenizer.gpt2()


def test_gpt2_has_gpt2s_ids(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiktoken

    ours = gpt2(data_dir, tmp_path, monkeypatch)
    assert ours.eos_id == 50256
    assert ours.vocab_size == 50260
    text = "\n".join(TEXTS)
    assert ours.encode(text) == tiktoken.get_encoding("gpt2").encode_ordinary(text)


@pytest.mark.parametrize("run", ["a", " ", "\n", " \n", "-", "1", "-\n", "\u4e2d"])
def test_a_million_equal_characters_are_encoded_and_come_back(
    run: str, tokenizer: Tokenizer, peer: object
) -> None:
    text = "x" + run * (1_000_000 // len(run)) + "x"
    for each in (tokenizer, Tokenizer(tokenizer.ranks, GPT2_PATTERN)):
        assert each.decode(each.encode(text)) == text
    text = text[:200_000] + "x"
    assert tokenizer.encode(text) == peer.encode(text).ids  # type: ignore[attr-defined]


@pytest.mark.parametrize("pattern", [PATTERN, GPT2_PATTERN])
def test_both_engines_split_around_every_code_point_alike(
    pattern: str, tokenizer: Tokenizer
) -> None:
    import tokenizers

    # Planes 4 to 13 and 15 on hold no character. A merge of "a", "1", " " or "." with any first
    # byte shows in the ids whether a character joins the letter, digit, blank or sign before it.
    codes = [*range(0xD800), *range(0xE000, 0x33500), *range(0xE0000, 0xE0200)]
    ranks = {bytes([b]): b for b in range(256)}
    for before in b"a1 .":
        ranks |= {bytes([before, first]): len(ranks) + i for i, first in enumerate(range(256))}
    ours = Tokenizer(ranks, pattern)
    theirs = tokenizers.Tokenizer.from_str(ours.files()["tokenizer.json"].decode())
    for start in range(0, len(codes), 4096):
        text = "".join(f"a{c}1{c}.{c} {c}" for c in map(chr, codes[start : start + 4096]))
        assert ours.encode(text) == theirs.encode(text).ids, hex(codes[start])
    ids = [len(ours.encode(text)) for text in ("aé", "1é", ".é", " é", "1²", "a²")]
    assert ids == [2, 3, 2 if pattern == PATTERN else 3, 2, 2, 3]


PUBLISHED = (  # of Llama 3, in its tokenizer.json
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@given(
    text=st.one_of(
        st.text(),
        st.text(alphabet="aBlrsveLRSVE'`\"._-1234 \n\r\t\u3000\x85é中", max_size=60),
        st.lists(
            st.sampled_from(["a", "'", " x", "\n", "\r", "\u2003"])
            | st.builds(str.__mul__, st.sampled_from([" ", "\t"]), st.integers(254, 260))
            | st.builds(str.__mul__, st.sampled_from([" ", "\n "]), st.integers(510, 516)),
            max_size=8,
        ).map("".join),
    )
)
@settings(max_examples=600, deadline=None)
def test_the_pattern_splits_as_llama_3s_published_one(text: str) -> None:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    text = text.replace("\u017f", "")  # `(?i:s)` matches it in Oniguruma, but not in llama.cpp
    pieces = [
        Split(Regex(pattern), behavior="isolated").pre_tokenize_str(text)
        for pattern in (PATTERN, PUBLISHED)
    ]
    assert pieces[0] == pieces[1]


CONTRACTED = re.compile("[sdmt]|ll|ve|re", re.IGNORECASE)
IDENTIFIERS = sorted(
    {word for text in TEXTS for word in re.findall(r"[^\W\d_](?:[\w.]*\w)?", text)}
    | {"s", "t", "ll", "relu", "dtype", "straße", "число", "変数"}
)


@pytest.mark.parametrize("quote", ["`", '"', "'"])
def test_a_name_in_quotes_has_the_tokens_of_the_name(quote: str) -> None:
    """Also where quoted names are so frequent that BPE would merge the quote with the name.

    Names after an apostrophe that look like a contraction are left out of training: 're of 'return
    is a word of Llama-3's rule, and so 'r a token.
    """
    contracted = CONTRACTED if quote == "'" else re.compile("(?!)")  # which matches nothing
    quotable = (name for name in IDENTIFIERS if not contracted.match(name))
    names = "\n".join(f"{quote}{name}{quote}" for name in quotable)
    ours = Tokenizer.train([*TEXTS, *[names] * 3], 3000)
    assert len(IDENTIFIERS) > 1000
    befores = ["", "see", "see ", "see\n", "see:\n\t", "4", "("]
    for name, before in itertools.product(IDENTIFIERS, befores):
        if before not in ("see ", "(") and contracted.match(name):
            continue  # Llama-3's rule takes 's of 'size as a contraction
        quoted = ours.encode(f"{before}{quote}{name}{quote}")
        ids = [*ours.encode(name), *ours.encode(quote)]
        assert quoted[-len(ids) :] == ids, (before, name)


def test_names_would_lose_their_tokens_if_training_joined_quotes_to_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llm.tokenizer.bpe.TRAINING_PATTERN", PATTERN)
    joined = Tokenizer.train(["\n`kind`" * 3], 300)
    assert len(joined.encode("`kind`")) < 2 + len(joined.encode("kind"))


@given(text=arbitrary | st.text(alphabet="`'\"ab \n.1", max_size=60))
@settings(max_examples=500, deadline=None)
def test_the_ids_are_those_of_splitting_as_in_training(text: str, tokenizer: Tokenizer) -> None:
    assert Tokenizer(tokenizer.ranks, TRAINING_PATTERN).encode(text) == tokenizer.encode(text)


def test_training_replaces_a_lone_surrogate_as_encoding_does() -> None:
    trained = Tokenizer.train(["a\ud800b " * 50], 300)
    assert trained.ranks == Tokenizer.train(["a\ufffdb " * 50], 300).ranks


def test_a_small_corpus_yields_fewer_tokens_and_a_pair_seen_once_none() -> None:
    small = Tokenizer.train(["ab cd"], 4096)
    assert small.vocab_size == 260
    assert Tokenizer.train(["ab ab"], 4096).vocab_size == 261


def test_gpt2s_merges_lead_to_the_published_tokens(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tokenizers

    ours = gpt2(data_dir, tmp_path, monkeypatch)
    published = json.loads((data_dir / "gpt2_bpe" / "encoder.json").read_text())
    content = ours.files()["tokenizer.json"].decode()
    assert json.loads(content)["model"]["vocab"] | {"<|endoftext|>": 50256} == published
    peer = tokenizers.Tokenizer.from_str(content)
    text = "\n".join(TEXTS) + "  \u00e9\u4e2d\U0001f600 don't   'some 12345\n\n\n"
    assert peer.encode(text).ids == ours.encode(text)


def test_whether_gpt2s_files_are_here_is_told_without_fetching_them(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert not gpt2_files.are_here()
    gpt2(data_dir, tmp_path, monkeypatch)
    assert gpt2_files.are_here()


def test_gpt2_with_a_damaged_file_names_it(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt2(data_dir, tmp_path, monkeypatch)
    (tmp_path / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee").write_bytes(b"#version: 0.2\n")
    with pytest.raises(
        UserError, match=r"6d1cbeee0f20b3d9449abfede4726ed8212e3aee is not GPT-2's vocab\.bpe"
    ):
        Tokenizer.gpt2()


def test_gpt2_without_an_answer_from_the_network_ends_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    with socket.socket() as silent:  # accepts connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr("llm.tokenizer.gpt2.BASE", address)
        monkeypatch.setattr("llm.tokenizer.gpt2.TIMEOUT", 0.5)
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        with pytest.raises(UserError, match=r"(?s)cannot be downloaded.*TIKTOKEN_CACHE_DIR"):
            Tokenizer.gpt2()
    assert list(tmp_path.iterdir()) == []


def test_gpt2_without_its_files_says_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(UserError, match="TIKTOKEN_CACHE_DIR"):
        Tokenizer.gpt2()


@pytest.mark.parametrize(
    ("place", "advice"),
    [("data/tokenizer", "dvc repro -sf tokenize"), ("models/theirs", "Copy the directory again")],
)
def test_a_broken_file_is_named_with_what_writes_it(
    place: str, advice: str, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(directory, place)
    Path(place, "ranks.tiktoken").write_bytes(b"!!! 1\n")
    with pytest.raises(UserError, match=rf"ranks\.tiktoken is broken .*{advice}"):
        Tokenizer.load(place)


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_broken_configuration_is_named(content: str, directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer_config\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"pre_tokenizer": None}, {"added_tokens": []}, {"pre_tokenizer": {"type": "ByteLevel"}}],
)
def test_a_tokenizer_of_another_kind_is_refused(
    change: dict, directory: Path, tmp_path: Path
) -> None:
    content = json.loads((directory / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | change))
    (tmp_path / "ranks.tiktoken").write_bytes((directory / "ranks.tiktoken").read_bytes())
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer of this pipeline"):
        Tokenizer.load(tmp_path)


def test_a_rank_that_is_missing_is_noticed(directory: Path, tmp_path: Path) -> None:
    for path in directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    lines = (tmp_path / "ranks.tiktoken").read_bytes().splitlines(keepends=True)
    (tmp_path / "ranks.tiktoken").write_bytes(b"".join(lines[:500] + lines[501:]))
    with pytest.raises(UserError, match=r"ranks\.tiktoken is broken"):
        Tokenizer.load(tmp_path)


@given(
    turns=st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), arbitrary), max_size=5
    ),
    ask=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_conversation_has_the_ids_of_the_chat_template(
    turns: list[tuple[str, str]], ask: bool, tokenizer: Tokenizer, hugging_face: object
) -> None:
    messages = [
        {"role": role, "content": text}
        for role, text in turns
        if not any(t in text for t in SPECIAL)
    ]
    if messages:
        theirs = hugging_face.apply_chat_template(
            messages, add_generation_prompt=ask, return_dict=False
        )  # type: ignore[attr-defined]
        assert tokenizer.conversation_ids(messages, ask) == theirs
    assert tokenizer.conversation_ids([{"role": "user", "content": "a"}]) == tokenizer.chat_ids("a")


def test_an_unknown_role_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"'tool'.*system, user, assistant"):
        tokenizer.conversation_ids([{"role": "tool", "content": "a"}])


@given(ids=st.lists(st.integers(0, 1999), max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_ids_decode_as_in_transformers(
    ids: list[int], tokenizer: Tokenizer, hugging_face: object
) -> None:
    assert tokenizer.decode(ids) == hugging_face.decode(ids)  # type: ignore[attr-defined]


@pytest.mark.parametrize("model_type", ["qwen3", "llama", "mistral"])
def test_a_model_directory_keeps_this_tokenizer(
    model_type: str, tokenizer: Tokenizer, directory: Path, tmp_path: Path
) -> None:
    """AutoTokenizer knows classes of its own for these models, with other splitting rules."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = TEXTS[0] + "  12345 don't 'some\n\n\n  x"
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert set(theirs(text)) == {"input_ids", "attention_mask"}
