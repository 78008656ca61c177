"""Sources: real files keep every record, formats agree with each other, and the manifest tells what
happened.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from llm import params
from llm.errors import UserError
from llm.sources import record_schema
from llm.sources.download import write_raw
from llm.sources.raw import FIELDS, Writer, read, schema
from llm.sources.readers import json as json_files
from llm.sources.readers import text as text_files
from llm.sources.readers.paths import find


def load(
    out: Path, kind: str, *paths: str | Path, **options: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Records and manifest of files."""
    source = params.FilesSource(source="files", paths=[str(p) for p in paths], **options)
    manifest = write_raw("set", kind, source, out)
    return list(read(out)), manifest


NEWS = ["World", "Sports", "Business", "Sci/Tech"]
# Rows from shared/data/MANIFEST.md; alpaca has four records with an empty output.
REAL = [
    ("pretrain", "pretrain/TinyStories-train.txt", {}, 1389, 0),
    ("pretrain", "pretrain/c4.jsonl.gz", {}, 407, 0),
    ("pretrain", "pretrain/large.jsonl.zst", {}, 16285, 0),
    ("pretrain", "pretrain/novels_eltec.txt.gz", {}, 1354, 0),
    ("pretrain", "pretrain/tech_cc0.parquet", {}, 1298, 0),
    ("pretrain", "pretrain/textbooks_ccby.jsonl.zst", {}, 582, 0),
    ("pretrain", "pretrain/wikipedia_sample.txt", {}, 15, 0),
    ("pretrain", "pretrain/wikipedia_vital_leads.jsonl.gz", {}, 4958, 0),
    ("question_answering", "squad/train-v1.1.json", {}, 7982, 0),
    ("question_answering", "squad/dev-v1.1.json", {}, 5397, 0),
    ("question_answering", "squad/train-v2.0.sample.json", {}, 2831, 0),
    ("summarization", "cnn_dailymail", {}, 1564, 0),
    ("summarization", "pretrain/wikipedia_vital_leads.jsonl.gz",
     {"columns": {"document": "text", "summary": "description"}}, 4880, 78),
    ("classification", "glue/SST-2/train.tsv", {"labels": ["negative", "positive"]}, 20000, 0),
    ("classification", "glue/SST-2/dev.tsv", {}, 436, 0),
    ("classification", "glue/RTE/train.tsv", {}, 1767, 0),
    ("classification", "glue/MRPC/msr_paraphrase_train.txt", {"labels": ["different", "same"]}, 4076, 0),
    ("classification", "classification/ag_news.parquet", {"labels": NEWS}, 3920, 0),
    ("instructions", "alpaca/alpaca_data.json", {}, 3244, 4),
    ("instructions", "alpaca/instruction-data_rasbt.json", {}, 1100, 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "file", "options", "rows", "rejected"),
    REAL,
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_real_files_keep_every_record_that_their_manifest_counts(
    data_dir: Path,
    tmp_path: Path,
    kind: str,
    file: str,
    options: dict[str, Any],
    rows: int,
    rejected: int,
) -> None:
    records, manifest = load(tmp_path, kind, data_dir / file, **options)
    assert (len(records), manifest["rejected"]["count"]) == (rows, rejected)
    assert manifest["rows"] == rows == sum(part["rows"] for part in manifest["files"])
    assert len({record["id"] for record in records}) == rows
    assert all(tuple(record) == FIELDS[kind] for record in records)
    for part in manifest["files"]:
        assert hashlib.sha256((tmp_path / part["path"]).read_bytes()).hexdigest() == part["sha256"]


@pytest.mark.parametrize("file", ["pretrain/tinyshakespeare.txt", "pretrain/wikitext-2.valid.txt"])
def test_text_without_separators_is_cut_into_documents_and_loses_nothing_but_line_ends(
    data_dir: Path, tmp_path: Path, file: str
) -> None:
    records, manifest = load(tmp_path, "pretrain", data_dir / file)
    whole = (data_dir / file).read_text(encoding="utf-8")
    at = 0
    for record in records:
        found = whole.index(record["text"], at)
        assert not whole[at:found].strip("\n")
        at = found + len(record["text"])
    assert not whole[at:].strip("\n")
    assert 60 <= len(records) <= 80
    assert "has no <|endoftext|>" in manifest["notes"]


def test_squad_keeps_the_official_ids_articles_and_unanswerable_questions(
    data_dir: Path, tmp_path: Path
) -> None:
    path = data_dir / "squad/train-v2.0.sample.json"
    records, _ = load(tmp_path, "question_answering", path)
    official = {
        question["id"]: (
            article["title"],
            paragraph["context"],
            [a["text"] for a in question["answers"]],
        )
        for article in json.loads(path.read_text(encoding="utf-8"))["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }
    assert {r["id"]: (r["group"], r["context"], r["answers"]) for r in records} == official
    assert sum(not r["answers"] for r in records) == 188


def test_glue_quotes_are_text_and_the_byte_order_mark_is_not(
    data_dir: Path, tmp_path: Path
) -> None:
    records, _ = load(tmp_path, "classification", data_dir / "glue/MRPC/msr_paraphrase_train.txt")
    first = 'Amrozi accused his brother, whom he called "the witness", of deliberately distorting his evidence.'
    assert (records[0]["text"], records[0]["label"]) == (first, "1")
    lines = (
        (data_dir / "glue/MRPC/msr_paraphrase_train.txt")
        .read_text(encoding="utf-8-sig")
        .splitlines()[1:]
    )
    assert [[r["label"], r["text"], r["text_pair"]] for r in records] == [
        [fields[0], fields[3], fields[4]] for fields in (line.split("\t") for line in lines)
    ]


def test_hub_names_of_files_give_the_split(data_dir: Path, tmp_path: Path) -> None:
    records, _ = load(tmp_path, "summarization", data_dir / "cnn_dailymail")
    counts = {
        split: sum(r["split"] == split for r in records)
        for split in ("train", "validation", "test")
    }
    assert counts == {"train": 1069, "validation": 150, "test": 345}


ROWS = [
    {"text": "one, with a \"quote\"", "label": 0},
    {"text": "zwei\tß", "label": 1},
    {"text": "three\nlines 🐍", "label": 1},
]  # fmt: skip


def test_formats_and_compressions_give_the_same_records(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    quoted = "text,label\n" + "".join(
        '"{}",{}\n'.format(r["text"].replace('"', '""'), r["label"]) for r in ROWS
    )
    for name, data in {
        "a.jsonl": lines, "a.jsonl.gz": gzip.compress(lines), "a.jsonl.zst": zstandard.compress(lines),
        "a.csv": quoted.encode(), "bom.jsonl": b"\xef\xbb\xbf" + lines, "hidden-gzip.jsonl": gzip.compress(lines),
        "frames.jsonl.zst": zstandard.compress(lines[:20]) + zstandard.compress(lines[20:]), "unnamed": lines,
        "members.jsonl.gz": gzip.compress(lines[:20]) + gzip.compress(lines[20:]), "lines.json": lines,
        "list.json": json.dumps(ROWS, indent=1).encode(), "data.json": json.dumps({"a": 1, "data": ROWS}).encode(),
        "bom.csv": b"\xef\xbb\xbf" + quoted.replace("\n", "\r\n").replace("three\r\n", "three\n").encode(),
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(data)
        records, _ = load(tmp_path / "out", "classification", tmp_path / name)
        assert [(r["text"], r["label"]) for r in records] == [
            (r["text"], str(r["label"])) for r in ROWS
        ], name
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    records, _ = load(tmp_path / "out", "classification", tmp_path / "a.parquet")
    assert [r["text"] for r in records] == [r["text"] for r in ROWS]


TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
).filter(str.strip)


@settings(max_examples=60)
@given(
    texts=st.lists(TEXT, min_size=1, max_size=8),
    ascii=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_any_text_comes_through_json_lines_and_json_lists_unchanged(
    tmp_path: Path, texts: list[str], ascii: bool, indent: int | None
) -> None:
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"text": t}, ensure_ascii=ascii) for t in texts), "utf-8", newline=""
    )
    (tmp_path / "b.json").write_text(
        json.dumps([{"text": t} for t in texts], ensure_ascii=ascii, indent=indent),
        "utf-8",
        newline="",
    )
    for name in ("a.jsonl", "b.json"):
        records, manifest = load(tmp_path / "out", "pretrain", tmp_path / name)
        assert [r["text"] for r in records] == texts
        assert manifest["bytes"] == sum(len(t.encode()) for t in texts)


DOCUMENT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\ufeff"), min_size=1
).map(lambda text: text.strip("\n"))


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(DOCUMENT.filter(str.strip), min_size=1, max_size=6), chunk=st.integers(1, 40)
)
def test_documents_are_the_same_wherever_the_chunks_of_a_text_file_end(
    documents: list[str], chunk: int
) -> None:
    data = "\n<|endoftext|>\n".join(documents).encode()
    sizes = text_files.HEAD, text_files.CHUNK
    text_files.HEAD = text_files.CHUNK = chunk
    try:
        rows = list(text_files.text(io.BytesIO(data), "x", []))
    finally:
        text_files.HEAD, text_files.CHUNK = sizes
    assert [row.record["text"] for row in rows if row.record] == documents
    lines = data.decode().split("\n")
    for row in rows:
        assert row.record is not None
        assert lines[row.line - 1].startswith(row.record["text"].split("\n")[0])


@settings(max_examples=60, deadline=None)
@given(
    items=st.lists(
        st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False))
    ),
    chunk=st.integers(1, 30),
)
def test_a_json_list_reads_the_same_wherever_its_chunks_end(
    items: list[dict[str, Any]], chunk: int
) -> None:
    size, json_files.CHUNK = json_files.CHUNK, chunk
    try:
        rows = list(json_files.json_list(io.BytesIO(json.dumps(items, indent=1).encode()), "x"))
    finally:
        json_files.CHUNK = size
    assert [row.record for row in rows] == items


def test_usual_data_sets_are_mapped_by_their_columns(tmp_path: Path) -> None:
    def one(kind: str, record: dict[str, Any], **options: Any) -> dict[str, Any]:
        (tmp_path / "a.jsonl").write_text(json.dumps(record))
        return load(tmp_path / "out", kind, tmp_path / "a.jsonl", **options)[0][0]

    qnli = one(
        "classification", {"question": "q?", "sentence": "s.", "label": 1}, labels=["yes", "no"]
    )
    assert (qnli["text"], qnli["text_pair"], qnli["label"]) == ("q?", "s.", "no")
    mnli = one("classification", {"premise": "p", "hypothesis": "h", "label": 2, "idx": 0})
    assert (mnli["text"], mnli["text_pair"], mnli["label"]) == ("p", "h", "2")
    snli = one(
        "classification",
        {"sentence1": "p", "sentence2": "h", "gold_label": "neutral", "pairID": "1"},
    )
    assert (snli["text"], snli["text_pair"], snli["label"]) == ("p", "h", "neutral")
    qqp = one("classification", {"id": 7, "question1": "p", "question2": "q", "is_duplicate": 1})
    assert (qqp["id"], qqp["text"], qqp["text_pair"], qqp["label"]) == ("7", "p", "q", "1")
    news = one("summarization", {"article": "a", "highlights": "h", "id": "x1"})
    assert (news["document"], news["summary"], news["id"], news["group"]) == ("a", "h", "x1", "x1")
    squad = {
        "id": "i",
        "title": "T",
        "context": "a cat",
        "question": "q",
        "answers": {"text": ["cat"], "answer_start": [2]},
    }
    assert one("question_answering", squad) == {
        "id": "i", "context": "a cat", "question": "q", "answers": ["cat"], "group": "T", "split": "",
    }  # fmt: skip
    assert (
        one("question_answering", {**squad, "answers": {"text": [], "answer_start": []}})["answers"]
        == []
    )
    dolly = one(
        "instructions", {"instruction": "i", "context": "c", "response": "r", "category": "x"}
    )
    assert (dolly["instruction"], dolly["input"], dolly["output"]) == ("i", "c", "r")
    assert one("instructions", {"instruction": "i", "output": "r"})["input"] == ""
    mapped = one("pretrain", {"body": "b", "url": "u"}, columns={"text": "body", "source": "url"})
    assert (mapped["text"], mapped["source"], mapped["group"]) == ("b", "u", "")
    article = one("pretrain", {"text": "b", "title": "Tea"}, columns={"group": "title"})
    assert article["group"] == "Tea"
    named = one("classification", {"text": "t", "label": "pos"}, labels={"pos": "positive"})
    assert named["label"] == "positive"


LABELS = [  # label, `labels` of the params, the class or the reason that it is set aside with
    (True, None, "true"),
    (False, None, "false"),
    (True, ["bad", "good"], "good"),
    (False, {"false": "bad", "true": "good"}, "bad"),
    (math.nan, None, "no label"),
    (math.inf, None, "no label"),
    (None, None, "no label"),
    ("", None, "no label"),
    ("-", None, "no label"),  # SNLI, MNLI: the annotators did not agree
    ("-", {"-": "undecided"}, "undecided"),
    ("NaN", None, "no label"),
    ("NULL", None, "no label"),
    (-1, None, "no label"),
    ("-1.0", None, "no label"),
    (-1, {"-1": "negative", "0": "neutral"}, "negative"),
    (1.0, None, "1"),
    (1.0, ["bad", "good"], "good"),
    ("1.0", ["bad", "good"], "good"),
    ("2.0", None, "2.0"),  # may be the name of a version
    (3.8, None, record_schema.SCORE),
    ("3.800", None, record_schema.SCORE),
    (3.8, {"3.8": "close"}, "close"),
    (2.0, ["bad", "good"], "unknown label"),
    ("none", None, "none"),
]


@pytest.mark.parametrize(("label", "labels", "expected"), LABELS)
def test_a_label_is_a_class_or_is_set_aside_with_the_reason(
    tmp_path: Path, label: Any, labels: list[str] | dict[str, str] | None, expected: str
) -> None:
    (tmp_path / "a.jsonl").write_text(
        "".join(
            json.dumps(record) + "\n"
            for record in ({"text": "a", "label": label}, {"text": "b", "label": "0"})
        )
    )
    labels = (
        labels
        if labels is None or "0" in labels or isinstance(labels, list)
        else labels | {"0": "zero"}
    )
    records, manifest = load(
        tmp_path / "out",
        "classification",
        tmp_path / "a.jsonl",
        labels=labels,
        max_rejected_fraction=0.5,
    )
    found = [record["label"] for record in records if record["text"] == "a"] or [
        *manifest["rejected"]["by_reason"]
    ]
    assert found == [expected]


def test_a_regression_is_refused_by_its_name(tmp_path: Path) -> None:
    rows = [f"{i}\ta {i}\tb {i}\t{i % 26 / 5:.3f}\n" for i in range(100)]
    (tmp_path / "sts-b.tsv").write_text("index\tsentence1\tsentence2\tscore\n" + "".join(rows))
    with pytest.raises(
        UserError, match=r"(?s)label is a number with a fraction: '0.200'.*regression.*set.labels"
    ):
        load(tmp_path / "out", "classification", tmp_path / "sts-b.tsv", columns={"label": "score"})


@pytest.mark.parametrize(
    ("values", "labels", "positive"),
    [
        ([0, 1], None, "1"),
        ([False, True], None, "true"),
        (["True", "False"], None, "True"),  # a CSV file that pandas wrote
        ([0, 1], ["not_equivalent", "equivalent"], "equivalent"),
        (["x", "y"], {"y": "no", "x": "yes"}, "yes"),
        ([1, 2, 4, 5], {"1": "bad", "2": "bad", "4": "good", "5": "good"}, "good"),
        (["entailment", "not_entailment"], None, None),
        ([0, 1, 2], ["a", "b", "c"], None),
        ([0, 1, 2], None, None),
    ],
)
def test_the_second_of_two_classes_is_the_positive_one(
    tmp_path: Path, values: list[Any], labels: Any, positive: str | None
) -> None:
    lines = [json.dumps({"text": f"{i}", "label": value}) for i, value in enumerate(values)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert load(tmp_path / "o", "classification", tmp_path / "a.jsonl", labels=labels)[1].get(
        "positive_label"
    ) == (positive)


def test_class_names_that_datasets_wrote_into_a_parquet_file_are_used(tmp_path: Path) -> None:
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    table = pa.Table.from_pylist([{"sentence": "a", "label": 1}])
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    records, manifest = load(tmp_path / "out", "classification", tmp_path / "a.parquet")
    assert records[0]["label"] == manifest["positive_label"] == "pos"


def test_repeated_ids_stay_apart_and_repeated_texts_are_kept(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(
            '{"id": 7, "document": "d", "summary": "s"}\n{"document": "d", "summary": "s"}\n'
        )
    records, _ = load(tmp_path / "out", "summarization", tmp_path / "*.jsonl")
    assert len({r["id"] for r in records}) == 4
    assert records[0]["id"] == "7"
    assert records[2]["id"] == "7@b.jsonl:1"


def test_bytes_and_ids_do_not_depend_on_where_the_files_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests, manifests = [], []
    for folder in ("here", "there/deep"):
        root = tmp_path / folder
        (root / "texts/sub").mkdir(parents=True)
        (root / "texts/a.txt").write_text("one\n<|endoftext|>\ntwo")
        (root / "texts/sub/b.jsonl").write_text('{"text": "three"}\n')
        monkeypatch.chdir(root)
        _, manifest = load(root / "out", "pretrain", "texts/**/*")
        digests.append([part["sha256"] for part in manifest["files"]])
        manifests.append((root / "out/manifest.json").read_bytes())
    assert digests[0] == digests[1]
    assert manifests[0] == manifests[1]
    assert str(tmp_path).encode() not in manifests[0]


def test_directories_and_globs_take_every_file_once_even_through_link_loops(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/a.txt").write_text("a")
    (tmp_path / "d/e/b.txt.gz").write_bytes(gzip.compress(b"b"))
    (tmp_path / "d/README.md").write_text("not data")
    (tmp_path / "d/.hidden.txt").write_text("x")
    (tmp_path / "d/e/loop").symlink_to(tmp_path / "d", target_is_directory=True)
    (tmp_path / "d/again.txt").symlink_to(tmp_path / "d/a.txt")
    for pattern in ("d", "d/**", "d/**/*.txt*"):
        found = [i.label for i in find([str(tmp_path / pattern)], "paths")]
        data = [label for label in found if not label.endswith(".md")]
        assert data == ["a.txt", "e/b.txt.gz"], pattern
    assert len(find([str(tmp_path / "d/a.txt"), str(tmp_path / "d/*.txt")], "paths")) == 1
    (tmp_path / "a[1].txt").write_text("odd name")
    assert len(find([str(tmp_path / "a[1].txt")], "paths")) == 1


def test_fsspec_addresses_are_read_like_files(tmp_path: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe("/bucket/a.txt", b"one\n<|endoftext|>\ntwo")
    fs.pipe("/bucket/b.jsonl.gz", gzip.compress(b'{"text": "three"}\n'))
    records, _ = load(tmp_path, "pretrain", "memory://bucket/*")
    assert [r["text"] for r in records] == ["one", "two", "three"]
    with pytest.raises(UserError, match="nothing found"):
        load(tmp_path, "pretrain", "memory://bucket/absent")


def test_held_out_files_are_the_test_split_and_limits_count_per_split(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(f'{{"text": "{name} {i}", "label": "x"}}\n' for i in range(9))
        )
    records, manifest = load(
        tmp_path / "out",
        "classification",
        tmp_path / "train.jsonl",
        test_paths=[str(tmp_path / "test.jsonl")],
        max_documents=4,
    )
    assert [r["split"] for r in records] == ["train"] * 4 + ["test"] * 4
    assert "max_documents" in manifest["notes"]


def test_files_to_validate_on_are_the_validation_split(tmp_path: Path) -> None:
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(f'{{"text": "{name} {i}", "label": "x"}}\n' for i in range(3))
        )
    own = {"val_paths": [str(tmp_path / "dev.jsonl")], "test_paths": [str(tmp_path / "test.jsonl")]}
    for options, expected in (
        (own, ["train", "validation", "test"]),
        ({"val_paths": own["val_paths"]}, ["train", "validation"]),
    ):
        records, manifest = load(
            tmp_path / "out", "classification", tmp_path / "train.jsonl", **options
        )
        assert [(r["split"], r["text"]) for r in records] == [
            (split, f"{name} {i}")
            for split, name in zip(expected, ("train", "dev", "test"), strict=False)
            for i in range(3)
        ]
        assert len(manifest["inputs"]) == len(expected)
    (tmp_path / "link.jsonl").symlink_to("train.jsonl")
    with pytest.raises(UserError, match=r"link.jsonl is in paths and in val_paths"):
        load(
            tmp_path / "out",
            "classification",
            tmp_path / "train.jsonl",
            val_paths=[str(tmp_path / "link.jsonl")],
        )
    with pytest.raises(UserError, match=r"dev.jsonl is in val_paths and in test_paths"):
        load(
            tmp_path / "out",
            "classification",
            tmp_path / "train.jsonl",
            **own | {"test_paths": own["val_paths"]},
        )


def test_parts_are_bounded_and_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [{"id": str(i), "text": f"{i} " * 50, "source": "s", "group": ""} for i in range(500)]
    for name in ("a", "b"):
        with Writer(tmp_path / name, "pretrain", part_bytes=20_000, group_bytes=5_000) as writer:
            for row in rows:
                writer.write(row)
    parts = sorted((tmp_path / "a").iterdir())
    assert len(parts) > 2
    for part in parts:
        assert part.read_bytes() == (tmp_path / "b" / part.name).read_bytes()
        assert pq.read_schema(part).equals(schema("pretrain"))
        assert sum(len(t) for t in pq.read_table(part).column("text").to_pylist()) < 30_000
    assert list(read(tmp_path / "a")) == rows
    assert list(read(tmp_path / "a", ["text"])) == [{"text": row["text"]} for row in rows]


# -- hub


def test_reading_says_what_to_do_about_missing_truncated_and_foreign_parts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dvc repro"):
        list(read(tmp_path))
    with Writer(tmp_path, "pretrain") as writer:
        writer.write({"id": "1", "text": "t" * 5000, "source": "s", "group": ""})
    with pytest.raises(UserError, match=r"no column label; it has id, text, source"):
        list(read(tmp_path, ["label"]))
    part = tmp_path / "part-00000.parquet"
    os.truncate(part, part.stat().st_size // 2)
    with pytest.raises(UserError, match=r"part-00000.parquet cannot be read.*-f download"):
        list(read(tmp_path))
