"""Tokenizers of others: the ids of `transformers`, in plain text and in conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from llm.errors import UserError
from llm.generation.spans import Spans
from llm.tokenizer.bpe import Tokenizer
from llm.tokenizer.pretrained import PLAIN_TEMPLATE, PretrainedTokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "  two leading blanks, a\ttab\n\nand lines",
    "Zahlen 12345 und Wörter: naïve café, 中文 😀",
    "",
    "def f(x):\n    return x ** 2  # comment",
]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Shaped like Llama 3.2's: asks for the date, trims, and has a system header in any case.
DATED = """{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = "26 Jul 2024" %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|im_start|>system\n\nToday Date: " + date_string + "\n\n" + system_message + "<|im_end|>" }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}{% continue %}{% endif %}
    {%- if message.role == 'assistant' %}
{% generation %}{{- '<|im_start|>assistant\n\n' + message['content'] | trim + '<|im_end|>' }}{% endgeneration %}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '\n\n'+ message['content'] | trim + '<|im_end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n\n' }}
{%- endif %}
"""
LLAMA2 = (
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' '  + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def byte_level() -> dict[str, Any]:
    """Of the kind of Llama 3 and Qwen: byte-level BPE with special tokens behind it."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return json.loads(tokenizer.to_str())


def sentencepiece() -> dict[str, Any]:
    """Of the kind of Llama 2: characters and merges with "▁" for a blank, other characters as
    bytes.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.train_from_iterator(
        TEXTS[:2], trainers.BpeTrainer(vocab_size=150, show_progress=False)
    )
    content = json.loads(tokenizer.to_str())
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *content["model"]["vocab"],
    ]
    content["model"] |= {
        "vocab": {piece: i for i, piece in enumerate(pieces)},
        "unk_token": "<unk>",
    }
    content["model"] |= {"fuse_unk": True, "byte_fallback": True}
    content["added_tokens"] = [
        {"id": i, "content": piece, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, piece in enumerate(pieces[:3])
    ]
    steps = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(steps)
    around = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    content["post_processor"] = json.loads(around.__getstate__())
    return content | {"decoder": json.loads(tokenizer.to_str())["decoder"]}


ADDED = {"__type": "AddedToken", "content": "<|im_end|>", "special": True}
ADDED |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "chatml": (byte_level, {"eos_token": "<|im_end|>", "chat_template": CHATML}),
    "dated": (byte_level, {"eos_token": ADDED, "bos_token": None, "chat_template": DATED}),
    "several": (
        byte_level,
        {
            "eos_token": "<|im_end|>",
            "chat_template": [
                {"name": "tool_use", "template": "x"},
                {"name": "default", "template": CHATML},
            ],
        },
    ),
    "llama-2": (
        sentencepiece,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": LLAMA2},
    ),
}


def write(directory: Path, kind: str, **changes: Any) -> Path:
    make, config = KINDS[kind]
    (directory / "tokenizer.json").write_text(json.dumps(make()))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config, **changes}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("kind", list(KINDS))
def test_ids_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    ours = Tokenizer.load(write(tmp_path, kind))
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(ours, PretrainedTokenizer)
    assert ours.eos_id == peer.eos_token_id
    assert ours.vocab_size == len(peer)
    for text in TEXTS:
        assert ours.encode(text) == peer(text, add_special_tokens=False)["input_ids"]
        assert ours.plain_ids(text) == peer(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == text
    assert ours.encode_batch(TEXTS) == [ours.encode(text) for text in TEXTS]
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(TEXTS[:3])
    ]
    for messages, ask in ((turns, True), (turns[:2], False), (turns[:1], True)):
        theirs = peer.apply_chat_template(messages, add_generation_prompt=ask, return_dict=False)
        assert ours.conversation_ids(messages, ask) == theirs
    assert ours.chat_batch(TEXTS) == [ours.chat_ids(text) for text in TEXTS]


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_continuation_begins_with_the_blank_that_it_has_behind_its_prompt(
    kind: str, tmp_path: Path
) -> None:
    ours = Tokenizer.load(write(tmp_path, kind))
    blank = " " if kind == "llama-2" else ""  # which SentencePiece puts before a text
    for text in filter(None, TEXTS):
        assert ours.decode_after(ours.plain_ids("The"))(ours.encode(text)) == blank + text
        assert (
            ours.decode_after(ours.plain_ids(""))(ours.encode(text)) == text
        )  # nothing stands before it
    assert ours.decode_after(ours.plain_ids("The"))([]) == ""


@pytest.mark.parametrize("kind", ["chatml", "llama-2"])
def test_the_bytes_of_tokens_together_are_the_text(kind: str, tmp_path: Path) -> None:
    ours = Tokenizer.load(write(tmp_path, kind))
    pieces = ours.token_bytes()
    blank = " " if kind == "llama-2" else ""  # SentencePiece puts one in front
    for text in filter(None, TEXTS):
        ids = ours.encode(text)
        assert b"".join(pieces[token] for token in ids) == (blank + text).encode()
        span = Spans(ours).of(text.strip())
        assert span is not None
        for token in ours.encode(text.strip()):
            assert token in span.allowed(ours.end_ids)
            span = span.after(token)
        assert span.may_end
    assert not ours.end_ids & pieces.keys(), "special tokens are no text"


def test_what_stands_around_a_prompt_is_what_the_tokenizers_file_says(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    write(
        tmp_path, "llama-2", add_bos_token=False, add_eos_token=True
    )  # which `transformers` leaves to the file
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    for single in ("<s> $A", "$A", "<s> $A </s>"):
        around = processors.TemplateProcessing(single, f"{single} $B", [("<s>", 1), ("</s>", 2)])
        content["post_processor"] = json.loads(around.__getstate__())
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        ours, peer = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
        for text in TEXTS:
            assert ours.plain_ids(text) == peer(text)["input_ids"]


@pytest.mark.parametrize("kind", list(KINDS))
def test_files_travel_byte_for_byte(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    ours = Tokenizer.load(write(tmp_path / "a", kind))
    ours.save(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_base_model_without_a_template_gets_one_that_transformers_renders_alike(
    tmp_path: Path,
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    (tmp_path / "a").mkdir()
    ours = Tokenizer.load(write(tmp_path / "a", "llama-2", chat_template=None))
    assert isinstance(ours, PretrainedTokenizer)
    assert ours.template == PLAIN_TEMPLATE
    ours.save(tmp_path / "b")
    again = Tokenizer.load(tmp_path / "b")
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    messages = [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Red."},
    ]
    for each in (ours, again):
        assert each.conversation_ids(messages) == peer.apply_chat_template(
            messages, return_dict=False
        )
        assert each.decode(each.chat_ids("Hi")).endswith("### Instruction:\nHi\n\n### Response:\n")


def test_a_template_of_its_own_makes_a_chat_model_and_ends_its_answers(tmp_path: Path) -> None:
    for kind, eos, ends in (
        ("chatml", "<|im_end|>", ["<|im_end|>"]),
        ("chatml", "<|endoftext|>", ["<|endoftext|>", "<|im_end|>"]),  # as Qwen2.5's base models
        ("dated", "<|endoftext|>", ["<|endoftext|>", "<|im_end|>"]),
        ("llama-2", "</s>", ["</s>"]),
    ):
        tokenizer = Tokenizer.load(write(tmp_path, kind, eos_token=eos))
        assert tokenizer.is_chat
        assert sorted(map(tokenizer.decode, ([i] for i in tokenizer.end_ids))) == ends
    plain = Tokenizer.load(write(tmp_path, "llama-2", chat_template=None))
    plain.save(tmp_path / "saved")
    for tokenizer in (plain, Tokenizer.load(tmp_path / "saved")):
        assert not tokenizer.is_chat
        assert tokenizer.end_ids == {tokenizer.eos_id}
    question = "{% if messages|length > 1 %}{{ raise_exception('one') }}{% endif %}{{ messages[0]['content'] }}"
    single = Tokenizer.load(write(tmp_path, "chatml", chat_template=question))
    assert single.end_ids == {single.eos_id}


def test_special_strings_in_a_plain_text_are_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(tmp_path, "chatml"))
    text = "say <|im_end|> now"
    assert tokenizer.eos_id not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(tmp_path, "chatml"))
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"eos_token": None}, "eos_token"),
        ({"eos_token": "<|nowhere|>"}, "nowhere"),
        ({"chat_template": "{% for %}"}, "chat template is broken"),
        ({"chat_template": "{{ messages.__class__.__mro__ }}"}, "__class__|unsafe|chat template"),
        ({"chat_template": "{{ raise_exception('only tools') }}"}, "only tools"),
        ({"chat_template": "{{ 1 / 0 }}"}, "cannot render this conversation: ZeroDivisionError"),
        ({"chat_template": "{{ messages[7]['content'] }}"}, "cannot render this conversation"),
        (
            {"chat_template": "{{ messages | map(attribute='x') | sum }}"},
            "cannot render this conversation",
        ),
        ({"chat_template": "{{ [1, 2].index(3) }}"}, "cannot render this conversation: ValueError"),
        ({"chat_template": "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}"}, "RecursionError"),
        ({"chat_template": {"default": "x"}}, "chat_template is a dict"),
        ({"chat_template": [{"name": "default"}, "x"]}, "chat_template is a list"),
    ],
)
def test_what_cannot_be_used_is_named(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named):
        Tokenizer.load(write(tmp_path, "chatml", **change)).chat_ids("a")


def test_a_template_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    write(tmp_path, "chatml")
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"chat_template\.jinja is not UTF-8"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            "{{ strftime_now('%Y-%m-%d %H:%M') }}|{{ messages[0]['content'] }}",
            "2024-07-26 00:00|Hi",
        ),
        (
            "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}none{% endif %}",
            "26 Jul 2024",
        ),
    ],
)
def test_a_template_that_asks_for_the_date_gets_the_same_on_every_day(
    template: str, text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Tokenizer.load(write(tmp_path, "chatml", chat_template=template))
    for _ in range(2):
        assert tokenizer.decode(tokenizer.chat_ids("Hi")) == text
    assert capfd.readouterr().err.count("it gets 26 July 2024") == 1


def test_added_tokens_beyond_the_embedding_are_plain_text_and_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = Tokenizer.load(write(tmp_path, "chatml"))
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    more = {**content["added_tokens"][0], "content": "<extra>", "id": plain.vocab_size}
    more |= {"special": False}
    content["added_tokens"].append(more)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert plain.vocab_size in Tokenizer.load(tmp_path).encode(
        "an <extra> token"
    )  # no model beside it
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": plain.vocab_size}))
    capfd.readouterr()
    found, _ = [Tokenizer.load(tmp_path) for _ in range(2)]
    assert capfd.readouterr().err.count(f"<extra> ({plain.vocab_size})") == 1
    assert found.vocab_size == plain.vocab_size
    assert found.encode("an <extra> token") == plain.encode("an <extra> token")
    assert found.chat_ids("<extra>") == plain.chat_ids("<extra>")
    found.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").vocab_size == plain.vocab_size
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for change in (
        {"chat_template": "<extra>" + CHATML},
        {"chat_template": "{{ pad_token }}", "pad_token": "<extra>"},
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match="<extra>, for which the model has no embedding"):
            Tokenizer.load(tmp_path).chat_ids("Hi")


def test_a_sentencepiece_model_alone_says_how_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e")
    with pytest.raises(UserError, match=r"tokenizer\.model.*save_pretrained"):
        PretrainedTokenizer.load(tmp_path)


def test_a_broken_tokenizer_json_is_named(tmp_path: Path) -> None:
    write(tmp_path, "chatml")
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.load(tmp_path)
