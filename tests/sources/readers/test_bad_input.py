"""Bad input gets one message that names the place, what was expected and what to do; and nothing is
lost silently.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from llm import params
from llm.errors import UserError
from llm.sources.download import write_raw
from llm.sources.raw import read

WORDS = random.Random(0)
LINES = b"".join(b'{"text": "%s"}\n' % WORDS.randbytes(40).hex().encode() for _ in range(3000))


def load(path: Path, kind: str = "pretrain", **options: Any) -> dict[str, Any]:
    source = params.FilesSource(source="files", paths=[str(path)], **options)
    return write_raw("mine", kind, source, path.parent / "out.d")


def fails(path: Path, match: str, kind: str = "pretrain", **options: Any) -> str:
    """The message; it names the file and is no traceback of a library."""
    with pytest.raises(UserError, match=match) as caught:
        load(path, kind, **options)
    message = str(caught.value)
    assert path.name in message
    return message


def put(tmp_path: Path, name: str, data: bytes | str) -> Path:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def flipped(data: bytes) -> bytes:
    """One damaged byte in the middle."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("empty.txt", b"", "the file is empty"),
        ("empty.jsonl", b"", "the file is empty"),
        ("empty.txt.gz", gzip.compress(b"", mtime=0), "nothing is left after decompression"),
        ("blank.txt", b" \n\n ", "only white space"),
        ("nul.txt", b"\0" * 5000, "only NUL bytes"),
        ("nul.jsonl", b"\0" * 5000, "only NUL bytes"),
        (
            "unmarked.txt",
            "some text".encode("utf-16-le"),
            "looks like utf-16-le without a .*encoding: utf-16-le",
        ),
        ("unmarked.jsonl", '{"text": "some"}'.encode("utf-16-be"), "looks like utf-16-be"),
        ("wide.csv", "text,label".encode("utf-32-le"), "looks like utf-32-le"),
        (
            "cut16.txt",
            "some text".encode("utf-16")[:-1],
            "is not utf-16 after byte.*truncated data",
        ),
        (
            "cut.jsonl.gz",
            gzip.compress(LINES, mtime=0)[:-30000],
            "ends in the middle of its gzip data.*again",
        ),
        ("flipped.jsonl.gz", flipped(gzip.compress(LINES, mtime=0)), "corrupt gzip"),
        ("crc.jsonl.gz", gzip.compress(LINES, mtime=0)[:-8] + b"\1" * 8, "corrupt gzip.*CRC"),
        ("page.jsonl.gz", b"<html>404</html>", "is not gzip data, though its name says so"),
        (
            "cut.jsonl.zst",
            zstandard.compress(LINES)[:-30000],
            "ends in the middle of its zstd data",
        ),
        (
            "cut-by-one.jsonl.zst",
            zstandard.compress(LINES)[:-1],
            "ends in the middle of its zstd data",
        ),
        (
            "sum.jsonl.zst",
            flipped(zstandard.ZstdCompressor(write_checksum=True).compress(LINES)),
            "corrupt zstd",
        ),
        ("page.jsonl.zst", b"<html>404</html>", "is not zstd data"),
        ("page.parquet", b"<html>404</html>", "is not parquet"),
        ("stub.parquet", b"PAR1", "truncated or damaged parquet"),
        ("object.json", b'{"!": 0, "b": 1}', "text"),
        (
            "object2.json",
            b'{"version": "1",\n "articles": [1]}',
            r"keys 'version', 'articles'; expected a list of records",
        ),
        ("cut.json", b'[{"text": "a"},\n {"text": "b"', r"cut.json:2: not valid JSON.*line 2"),
        (
            "cut2.json",
            b'[{"text": "a"},\n {"text": "b"}',
            r"cut2.json:2: expected , or \].*end of the file",
        ),
        ("comma.json", b'[{"text": "a"}\n {"text": "b"}]', r"comma.json:2: expected , or \]"),
        ("more.json", b'[{"text": "a"}]\n[]', r"more.json:2: text after the end"),
        ("scalar.json", b'"text"', "expected a JSON list or object"),
        ("deep.json", b"[" * 200000, "nested too deeply"),
        ("quote.csv", b'text\n"a"\n"b\nc\nd\n', r"quote.csv:3: broken CSV.*quotes that are closed"),
        ("stray.csv", b'text\n"a"b\n', r"stray.csv:2: broken CSV"),
        (
            "header.csv",
            b"body,url\na,b\n",
            r"no column 'text'.*'body', 'url'.*columns: \{text: THEIRS\}",
        ),
    ],
)
def test_a_broken_file_is_named_with_its_damage_and_the_remedy(
    tmp_path: Path, name: str, data: bytes, match: str
) -> None:
    fails(put(tmp_path, name, data), match)


def test_truncated_and_damaged_parquet_files_are_named(tmp_path: Path) -> None:
    rows = [{"text": json.loads(line)["text"]} for line in LINES.splitlines()]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, use_dictionary=False)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fails(path, "truncated or damaged parquet")
    path.write_bytes(whole[:2000] + b"\0" * 20000 + whole[22000:])
    fails(path, "truncated or damaged parquet")


def test_missing_places_are_named_with_what_is_there(tmp_path: Path) -> None:
    put(tmp_path, "there.txt", "x")
    message = fails(tmp_path / "their.txt", "no such file or directory")
    assert "there.txt" in message
    (tmp_path / "folder").mkdir()
    fails(
        tmp_path / "folder",
        r"the directory .* has no documents; expected files ending in .*\.parquet",
    )
    put(tmp_path, "folder/README.md", "x")
    fails(tmp_path / "folder", "has no documents")
    fails(tmp_path / "*.jsonl", "the glob .* matches no file")
    fails(tmp_path / "**/*.jsonl", "the glob .* matches no file")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    fails(tmp_path / "gone.txt", "is a broken link")
    (tmp_path / "self.txt").symlink_to(tmp_path / "self.txt")
    fails(tmp_path / "self.txt", "is a broken link")


# name, kind, the bad record as stored, what the reason says
BAD = [
    ("a.jsonl", "pretrain", b"[1, 2]", "not a JSON object: found a list"),
    ("a.jsonl", "pretrain", b'"text"', "not a JSON object: found a string"),
    ("a.jsonl", "pretrain", b"null", "not a JSON object: found null"),
    ("a.jsonl", "pretrain", b'{"text": "cut', "not valid JSON: .*at column 14: '{"),
    ("a.jsonl", "pretrain", b'{"text": ""}', "empty text"),
    ("a.jsonl", "pretrain", b'{"text": " \\n"}', "empty text"),
    ("a.jsonl", "pretrain", b'{"text": null}', "no text"),
    ("a.jsonl", "pretrain", b'{"text": 7}', "text is not a string: found int"),
    ("a.jsonl", "pretrain", b'{"body": "x"}', "missing column: no column 'text'"),
    ("a.jsonl", "pretrain", b'{"text": "caf\xe9"}', "not UTF-8: byte 0xe9 at character 3"),
    ("a.jsonl", "pretrain", b'{"text": "a\\ud800"}', "half of a surrogate pair: U\\+D800"),
    ("a.jsonl", "pretrain", b'{"text": "a\\u0000b"}', "NUL characters"),
    ("a.jsonl", "pretrain", b"[" * 100000, "not valid JSON: .*recursion"),
    ("a.tsv", "classification", b"text", "wrong number of fields: 1 fields, expected 2"),
    ("a.tsv", "classification", b"a\tb\tc", "wrong number of fields: 3 fields, expected 2"),
    ("a.tsv", "classification", b"a\t", "no label"),
    ("a.tsv", "classification", b"a\t-1", "no label: -1 stands for an unlabelled"),
    ("a.tsv", "classification", b"a\t2", "unknown label: '2'; the 2 labels are 0 to 1"),
    ("a.tsv", "classification", b"caf\xe9\t1", "not UTF-8"),
]


@pytest.mark.parametrize(("name", "kind", "bad", "match"), BAD)
def test_a_record_of_the_wrong_shape_is_set_aside_with_file_line_and_reason(
    tmp_path: Path, name: str, kind: str, bad: bytes, match: str
) -> None:
    tsv = kind == "classification"
    good = [b"text %d\t1" % i if tsv else b'{"text": "text %d"}' % i for i in range(40)]
    head = [b"text\tlabel"] if tsv else []
    path = put(tmp_path, name, b"\n".join([*head, *good[:10], bad, *good[10:]]) + b"\n")
    manifest = load(path, kind, labels=["no", "yes"] if tsv else None)
    assert [r["text"] for r in read(tmp_path / "out.d")] == [f"text {i}" for i in range(40)]
    rejected = manifest["rejected"]
    assert rejected["count"] == 1 == sum(rejected["by_reason"].values())
    assert (rejected["examples"][0]["file"], rejected["examples"][0]["line"]) == (
        str(path),
        11 + tsv,
    )
    assert re.match(match, rejected["examples"][0]["reason"])


def test_past_the_stated_fraction_the_stage_fails_and_names_the_first_examples(
    tmp_path: Path,
) -> None:
    path = put(tmp_path, "a.jsonl", '{"text": "good"}\n' * 90 + '["bad"]\n' * 10)
    message = fails(path, r"download.mine: 10 of 100 records have the wrong shape")
    assert f"{path}:91: not a JSON object: found a list" in message
    assert "and 5 more" in message
    assert "download.mine.max_rejected_fraction" in message
    assert load(path, max_rejected_fraction=0.1)["rejected"]["count"] == 10


def test_a_text_document_that_is_not_utf8_is_set_aside_by_its_line(tmp_path: Path) -> None:
    documents = [b"line\ndocument"] * 30
    documents[20] = b"Latin-1: caf\xe9"
    path = put(tmp_path, "a.txt", b"\n<|endoftext|>\n".join(documents))
    rejected = load(path)["rejected"]
    assert rejected["by_reason"] == {"not UTF-8": 1}
    assert rejected["examples"][0]["line"] == 61
    fails(
        put(tmp_path, "b.txt", "caf\u00e9 ".encode("latin-1") * 9),
        r"b.txt:1: not UTF-8: byte 0xe9.*convert",
    )


def squad(context: str, *answers: dict[str, Any], **question: Any) -> dict[str, Any]:
    qa = {"id": "q1", "question": "Which?", "answers": list(answers), **question}
    return {"title": "T", "paragraphs": [{"context": context, "qas": [qa]}]}


@pytest.mark.parametrize(
    ("article", "match"),
    [
        (squad("a cat, a dog", {"text": "dog", "answer_start": 2}),
         "'dog' is not at answer_start 2 .there: 'cat'.; it is in the context once, at 9"),
        (squad("a cat, a cat", {"text": "cat", "answer_start": 0}), "in the context 2 times"),
        (squad("a cat", {"text": "cow", "answer_start": 2}), "nowhere in the context"),
        (squad("a cat", {"text": "cat", "answer_start": -3}), "not at answer_start -3"),
        (squad("a cat", {"text": "cat", "answer_start": 99}), "not at answer_start 99"),
        (squad("a cat", {"text": "cat"}), "answer without an offset: answer_start of 'cat' is 'missing'"),
        (squad("a cat", {"text": "cat", "answer_start": "2"}), "answer without an offset"),
        (squad("a cat", {"text": "", "answer_start": 0}), "empty answer"),
        (squad("", {"text": "cat", "answer_start": 0}), "empty context"),
        (squad("a cat", question=None), "no question"),
        ({"title": "T", "paragraphs": 3}, "`paragraphs` of 'T' is not a list"),
        ({"title": "T", "paragraphs": [{"qas": []}]}, "paragraph 0 of article 'T' lacks `context`"),
        ({"title": "T", "paragraphs": [{"context": "c", "qas": ["q"]}]}, "a question in paragraph 0"),
        ({"title": "T"}, "no `paragraphs`; found the keys 'title'"),
        (7, "found a number"),
    ],
)  # fmt: skip
def test_a_squad_record_of_the_wrong_shape_is_set_aside_and_says_where(
    tmp_path: Path, article: Any, match: str
) -> None:
    good = squad("an apple", {"text": "apple", "answer_start": 3})
    path = put(tmp_path, "dev.json", json.dumps({"version": "1.1", "data": [good, article]}))
    fails(path, match, "question_answering", format="squad")
    manifest = load(path, "question_answering", format="squad", max_rejected_fraction=0.6)
    assert (manifest["rows"], manifest["rejected"]["count"]) == (1, 1)


def test_columns_and_labels_that_cannot_be_are_refused_by_name(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl", '{"text": "a"}\n')
    with pytest.raises(
        UserError,
        match=r"download.mine.columns.txt: pretrain has no such column; expected id, text",
    ):
        load(path, columns={"txt": "text"})
    with pytest.raises(UserError, match=r"download.mine.labels: pretrain has no classes"):
        load(path, labels=["a"])
    with pytest.raises(
        UserError, match=r"download.mine: kind 'poetry' is unknown; expected summarization"
    ):
        load(path, "poetry")
    fails(
        path, r"(?s)no column 'label'.*columns: \{text: THEIRS, label: THEIRS\}", "classification"
    )
    fails(
        put(tmp_path, "b.txt", "plain"),
        "is plain text; summarization needs records with columns",
        "summarization",
    )
    with pytest.raises(UserError, match=r"in paths and in test_paths"):
        load(path, "instructions", test_paths=[str(path)])


def test_a_line_longer_than_any_record_is_set_aside_or_stops_the_reader_but_never_fills_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm.sources.readers import json as json_files
    from llm.sources.readers import tables
    from llm.sources.readers import text as text_files

    for module in (json_files, tables, text_files):
        monkeypatch.setattr(module, "MAX_RECORD", 1 << 20)
    long = b"x" * (3 << 20)
    fails(
        put(tmp_path, "a.jsonl", b'{"text": "' + long + b'"}'),
        r"a.jsonl:1: a line of more than 1 MB",
    )
    fails(
        put(tmp_path, "a.json", b'[{"text": "' + long + b'"}]'),
        r"a.json:1: .*no record may be longer than 1 MB",
    )
    fails(
        put(tmp_path, "a.txt", b"a<|endoftext|>" + long), r"a.txt:1: a document of more than 1 MB"
    )
    fails(put(tmp_path, "a.csv", b"text\n" + long), r"a.csv:2: a record of more than 1 MB")
    fails(put(tmp_path, "a.tsv", b"text\n" + long), r"a.tsv:2: a record of more than 1 MB")
    quoted = b"text,b\n" + b'"x\n",' * 300_000
    fails(put(tmp_path, "b.csv", quoted), r"b.csv:\d+: a record of more than 1 MB.*quote left open")
    pq.write_table(pa.table({"text": ["a", long.decode()]}), tmp_path / "a.parquet")
    fails(tmp_path / "a.parquet", r"a.parquet:2: a text of more than 1 MB")


def test_the_records_around_one_that_is_too_long_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm.sources.readers import json as json_files
    from llm.sources.readers import tables
    from llm.sources.readers import text as text_files

    for module in (json_files, tables, text_files):
        monkeypatch.setattr(module, "MAX_RECORD", 1 << 20)
    monkeypatch.setattr(json_files, "CHUNK", 1 << 16)
    long = b"long\n" * 500_000
    documents = [b"one\nof two lines", long, b"two", long[:-1] + b"<|endof", b"three"]
    for name, data, lines in (
        ("a.txt", b"<|endoftext|>".join(documents), [2, 500_002]),
        (
            "a.jsonl",
            b"\n".join(json.dumps({"text": d.decode()}).encode() for d in documents),
            [2, 4],
        ),
    ):
        manifest = load(put(tmp_path, name, data), max_rejected_fraction=0.5)
        assert [r["text"] for r in read(tmp_path / "out.d")] == [
            "one\nof two lines",
            "two",
            "three",
        ]
        assert [
            (e["line"], "more than 1 MB" in e["reason"]) for e in manifest["rejected"]["examples"]
        ] == [(line, True) for line in lines]
