"""What passes for data and is none, or means another thing than it seems: refused by name, or read
as it was meant.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import sqlite3
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm import params
from llm.errors import UserError
from llm.sources.download import write_raw
from llm.sources.raw import read

LINES = b'{"text": "one"}\n{"text": "two"}\n'


def load(
    path: Path, kind: str = "pretrain", **options: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    source = params.FilesSource.model_validate({"source": "files", "paths": [str(path)], **options})
    out = path.parent / "out.d"
    manifest = write_raw("mine", kind, source, out)
    return list(read(out)), manifest


def put(folder: Path, name: str, data: bytes | str) -> Path:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder / name


# -- archives, pointers, other formats


def tar(mode: str = "w") -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode=mode) as archive:  # type: ignore[call-overload]
        member = tarfile.TarInfo("c4-0.jsonl")
        member.size = len(LINES)
        archive.addfile(member, io.BytesIO(LINES))
    return whole.getvalue()


def zipped() -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("a.jsonl", LINES)
    return whole.getvalue()


def database(folder: Path) -> bytes:
    with sqlite3.connect(folder / "a.db") as connection:
        connection.execute("create table a (b)")
    connection.close()
    return (folder / "a.db").read_bytes()


def arrow() -> bytes:
    whole = io.BytesIO()
    with pa.ipc.new_file(whole, pa.schema([("text", pa.string())])):
        pass
    return whole.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.tsv", "a"])
def test_what_holds_no_records_is_refused_whatever_its_name(tmp_path: Path, name: str) -> None:
    for data, wanted in (
        (tar(), r"is a tar archive \(its first member: 'c4-0.jsonl'\)\. Unpack it \(.*tar -xf"),
        (tar("w:gz"), r"is a tar archive"),
        (tar("w:bz2"), r"is a tar archive"),
        (zipped(), r"is a zip archive .*unzip"),
        (LFS, r"is a Git LFS pointer, not the data\. Fetch it \(git lfs pull\)"),
        (b"/annex/objects/SHA256E-s5--abc.txt\n", r"git annex get"),
        (gzip.compress(gzip.compress(LINES)), r"is compressed twice"),
        (database(tmp_path), r"is an SQLite database\. Convert it"),
        (arrow(), r"is an Arrow file"),
        (b"%PDF-1.7\n", r"is a PDF document"),
    ):
        with pytest.raises(UserError, match=wanted):
            load(
                put(tmp_path, name, data),
                "pretrain" if name in ("a.txt", "a") else "classification",
            )


def test_a_compressed_archive_is_known_by_its_usual_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"c4\.tar\.gz: is a tar archive"):
        load(put(tmp_path, "c4.tar.gz", tar("w:gz")))


def test_a_text_about_such_formats_is_a_text(tmp_path: Path) -> None:
    text = (
        "PKZIP was a program. version https://git-lfs.github.com/spec/v1 begins a pointer. "
        + "x" * 600
    )
    assert load(put(tmp_path, "a.txt", text))[0][0]["text"] == text


# -- tables

TEXTS = [
    'he said "hi" to me',
    "two\nlines",
    "a\ttab",
    "plain",
    '"',
    'ends with "quotes"',
    "'single'",
    "last",
]


@pytest.mark.parametrize("quoting", [0, 1, 2])  # minimal, all, all that are no numbers
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("count", [1, 2, 3, len(TEXTS)])
def test_a_tsv_of_pandas_is_read_as_pandas_reads_it(
    tmp_path: Path, quoting: int, end: str, count: int
) -> None:
    frame = pd.DataFrame({"text": TEXTS[:count], "label": list("xyzxyzxy")[:count]})
    frame.to_csv(tmp_path / "a.tsv", sep="\t", index=False, quoting=quoting, lineterminator=end)
    records, manifest = load(tmp_path / "a.tsv", "classification")
    assert [record["text"] for record in records] == TEXTS[:count]
    assert (
        "quotes around fields are read as CSV's; format: tsv would keep them as text"
        in manifest["notes"]
    )


GLUE = 'sentence\tlabel\n"Hello," he said.\t1\nHe said "hello".\t0\n"Whole."\t1\n"\t0\n'


def test_quotes_of_glue_are_text(tmp_path: Path) -> None:
    records, manifest = load(put(tmp_path, "a.tsv", GLUE), "classification")
    assert [r["text"] for r in records] == [
        '"Hello," he said.',
        'He said "hello".',
        '"Whole."',
        '"',
    ]
    assert "quotes" not in manifest["notes"]
    whole = "sentence\tlabel\n" + '"Whole."\t1\n' * 3
    assert load(put(tmp_path, "b.tsv", whole), "classification")[0][0]["text"] == '"Whole."'


def test_where_quotes_come_late_the_params_must_say_what_they_are(tmp_path: Path) -> None:
    path = put(
        tmp_path, "a.tsv", "text\tlabel\n" + "plain text\tx\n" * 90_000 + '"a ""word"""\ty\n'
    )
    with pytest.raises(UserError, match=r"a\.tsv:90002: a field in quotes.*format: csv"):
        load(path, "classification")
    assert load(path, "classification", format="csv")[0][-1]["text"] == 'a "word"'
    assert load(path, "classification", format="tsv")[0][-1]["text"] == '"a ""word"""'


def test_two_columns_of_one_name_are_refused_where_they_are_needed(tmp_path: Path) -> None:
    table = pa.table(
        [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "text", "label"]
    )
    pq.write_table(table, tmp_path / "a.parquet")
    put(tmp_path, "a.csv", "text,text,label\na,b,c\n")
    for name in ("a.parquet", "a.csv"):
        with pytest.raises(UserError, match=rf"{name}: 2 columns are called 'text'\. Rename"):
            load(tmp_path / name, "classification")
    assert (
        load(put(tmp_path, "b.csv", "text,more,more,label\na,1,2,c\n"), "classification")[0][0][
            "text"
        ]
        == "a"
    )


def test_a_key_that_stands_twice_with_other_values_is_set_aside(tmp_path: Path) -> None:
    twice = '{"text": "a", "text": "b"}'
    path = put(tmp_path, "a.jsonl", f'{twice}\n{{"text": "c"}}\n{{"text": "d", "text": "d"}}\n')
    records, manifest = load(path, max_rejected_fraction=0.5)
    assert [record["text"] for record in records] == ["c", "d"]
    assert "the key 'text' stands twice" in manifest["rejected"]["examples"][0]["reason"]
    with pytest.raises(UserError, match=r"a\.json:1: the key 'text' stands twice"):
        load(put(tmp_path, "a.json", f"[{twice}]"))


# -- answers


@pytest.mark.parametrize(
    "printed",
    [
        "{'text': array(['cat'], dtype=object), 'answer_start': array([4])}",
        "{'text': ['cat'], 'answer_start': [4]}",
        '{"answer_start": [4], "text": ["cat"]}',
        "[{'text': 'cat', 'answer_start': 4}]",
        "['cat']",
        "[]",
        "array(['cat'], dtype=object)",
    ],
)
def test_answers_that_were_printed_are_no_answers(tmp_path: Path, printed: str) -> None:
    frame = pd.DataFrame(
        {"context": ["the cat sat"] * 2, "question": ["who?"] * 2, "answers": ["cat", printed]}
    )
    frame.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(
        UserError, match=r"a\.csv:3: answers printed as text: .*\.jsonl or \.parquet"
    ):
        load(tmp_path / "a.csv", "question_answering")


def test_an_answer_that_looks_like_code_and_is_in_the_context_is_one(tmp_path: Path) -> None:
    record = {"context": "it returns ['cat'] or []", "question": "what?", "answers": ["['cat']"]}
    put(
        tmp_path,
        "a.jsonl",
        json.dumps(record) + "\n" + json.dumps({**record, "answers": "[]"}) + "\n",
    )
    assert [r["answers"] for r in load(tmp_path / "a.jsonl", "question_answering")[0]] == [
        ["['cat']"],
        ["[]"],
    ]


# -- files without a header

COLA = 'gj04\t1\t\tOur friends won\'t buy "this".\ngj04\t0\t*\tOne more pseudo.\n'
AG_NEWS = '"3","Wall St. Bears Claw Back","Reuters - Short ""sellers"", again."\n"1","War and peace","AP - They met."\n'


def test_data_sets_that_are_published_without_a_header_are_known(tmp_path: Path) -> None:
    records, manifest = load(put(tmp_path, "in_domain_train.tsv", COLA), "classification")
    assert [(r["text"], r["label"]) for r in records] == [
        ('Our friends won\'t buy "this".', "1"),
        ("One more pseudo.", "0"),
    ]
    assert (
        "has no header; its columns are read as source_code, label, annotation, sentence"
        in manifest["notes"]
    )
    names = {"1": "World", "3": "Business"}
    records, _ = load(put(tmp_path, "train.csv", AG_NEWS), "classification", labels=names)
    assert [(r["text"], r["text_pair"], r["label"]) for r in records] == [
        ("Wall St. Bears Claw Back", 'Reuters - Short "sellers", again.', "Business"),
        ("War and peace", "AP - They met.", "World"),
    ]
    headed = put(tmp_path, "headed.csv", "Class Index,Title,Description\n" + AG_NEWS)
    assert load(headed, "classification", labels=names)[0] == records


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.tsv", "the first one\t1\nthe second\t0\n"),
        ("a.csv", '"the first one",1\n"the second",0\n'),
    ],
)
def test_advice_for_a_file_without_a_header_loses_no_row(
    tmp_path: Path, name: str, data: str
) -> None:
    path = put(tmp_path, name, data)
    with pytest.raises(UserError, match=r"header: false.*columns: \{text: 0, label: 1\}"):
        load(path, "classification")
    records, _ = load(path, "classification", header=False, columns={"text": 0, "label": 1})
    assert [(r["text"], r["label"]) for r in records] == [
        ("the first one", "1"),
        ("the second", "0"),
    ]
    with pytest.raises(
        UserError, match=r"its first line has '1' for a column's name.*header: false"
    ):
        load(path, "classification", columns={"text": "the first one", "label": "1"})


def test_header_false_is_for_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl: is jsonl; `header: false` is for csv and tsv"):
        load(put(tmp_path, "a.jsonl", LINES), header=False)


# -- JSON under another name


def test_json_lines_named_json_are_read_however_long_the_first_one_is(tmp_path: Path) -> None:
    long = "word " * 300_000
    lines = [json.dumps({"text": text}) for text in (long, "two")]
    for content in (lines, [*lines, ""], lines[:1]):
        records, _ = load(put(tmp_path, "a.json", "\n".join(content)))
        assert [record["text"] for record in records] == [long, "two"][: len(content)]
    records, manifest = load(
        put(tmp_path, "a.json", "\n".join([*lines, "{broken"])), max_rejected_fraction=0.5
    )
    assert len(records) == 2
    assert manifest["rejected"]["examples"][0]["line"] == 3


def test_a_long_squad_file_on_one_line_is_still_squad(tmp_path: Path) -> None:
    answer = {"text": "cat", "answer_start": 2}
    paragraph = {
        "context": "a cat " * 250_000,
        "qas": [{"id": "1", "question": "who?", "answers": [answer]}],
    }
    squad = json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": [paragraph]}]})
    for end in ("", "\n"):
        assert load(put(tmp_path, "a.json", squad + end), "question_answering")[0][0][
            "answers"
        ] == ["cat"]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list_named_jsonl_is_called_one(tmp_path: Path, indent: int | None) -> None:
    path = put(tmp_path, "a.jsonl", json.dumps([{"text": "one"}], indent=indent))
    with pytest.raises(
        UserError, match=r"a\.jsonl: is a JSON list, though its name says one JSON object a line"
    ):
        load(path)
    with pytest.raises(UserError, match=r"though its format says .*take out format: jsonl"):
        load(path.rename(tmp_path / "a.json"), format="jsonl")
    os.rename(tmp_path / "a.json", tmp_path / "b.json")
    assert load(tmp_path / "b.json")[0][0]["text"] == "one"


def test_advice_for_cola_as_somebody_published_it_keeps_every_row(
    data_dir: Path, tmp_path: Path
) -> None:
    path = put(tmp_path, "train.tsv", (data_dir / "glue/CoLA/train.tsv").read_bytes())
    with pytest.raises(UserError, match=r"header: false.*columns: \{text: 0, label: 1\}"):
        load(path, "classification")
    _, manifest = load(path, "classification", header=False, columns={"text": 0, "label": 1})
    assert manifest["rows"] == path.read_bytes().count(b"\n") == 8539
