"""A mixture takes each source by its weight, whole documents, the same ones whatever else there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm import params
from llm.errors import UserError
from llm.sources.download import write_raw
from llm.sources.mixture import copies, shares
from llm.sources.raw import read

NAMES = st.sampled_from("abcdef")
SIZES = st.dictionaries(NAMES, st.integers(1, 10**12), min_size=2)


@given(sizes=SIZES, data=st.data(), repeats=st.floats(1, 10))
def test_the_shares_give_the_weights_and_nothing_is_repeated_too_often(
    sizes: dict[str, int], data: st.DataObject, repeats: float
) -> None:
    weights = {name: data.draw(st.floats(0.01, 100)) for name in sizes}
    found = shares(sizes, weights, repeats)
    total = sum(found[name] * sizes[name] for name in sizes)
    for name in sizes:
        assert found[name] * sizes[name] / total == pytest.approx(
            weights[name] / sum(weights.values())
        )
        assert 0 < found[name] <= repeats * (1 + 1e-9)
    assert max(found.values()) >= 1 - 1e-9
    assert min(found.values()) <= 1 + 1e-9


def test_a_document_that_a_share_takes_a_larger_one_takes_too() -> None:
    texts = [f"document {i}" for i in range(4000)]
    for share in (0.1, 0.5, 1.0, 2.25):
        taken = [copies(text, share) for text in texts]
        assert sum(taken) / len(texts) == pytest.approx(share, abs=0.05)
        assert all(
            copies(text, share + 0.1) >= number for text, number in zip(texts, taken, strict=True)
        )


def mixture(folder: Path, **options: Any) -> dict[str, Any]:
    for name, count in {"web": 3000, "books": 300}.items():
        lines = (
            json.dumps({"text": f"{name} says {i:06d} and {i * 7919 % 10007:05d}"})
            for i in range(count)
        )
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\nbroken\n")
    inner = {
        name: {
            "source": "files",
            "paths": [str(folder / f"{name}.jsonl")],
            "licence": f"{name}-licence",
        }
        for name in ("web", "books")
    }
    source = params.MixtureSource.model_validate({"source": "mixture", "sources": inner, **options})
    return write_raw("pretrain", "pretrain", source, folder / "out")


def test_records_carry_their_source_and_the_manifest_says_what_was_taken_of_each(
    tmp_path: Path,
) -> None:
    manifest = mixture(tmp_path, weights={"web": 3, "books": 1}, max_repeats=2)
    records = list(read(tmp_path / "out"))
    size = {
        name: sum(len(r["text"]) for r in records if r["source"] == name)
        for name in ("web", "books")
    }
    assert size["web"] / (size["web"] + size["books"]) == pytest.approx(0.75, abs=0.02)
    assert len({r["id"] for r in records}) == len(records) == manifest["rows"]
    assert sum(r["source"] == "books" for r in records) == 600
    assert all(r["text"].startswith(r["source"]) for r in records)
    books = manifest["sources"]["books"]
    assert (books["rows"], books["taken_rows"], books["times_taken"], books["weight"]) == (
        300,
        600,
        2.0,
        0.25,
    )
    assert books["taken_bytes"] == size["books"]
    assert books["inputs"][0]["path"].endswith("books.jsonl")
    assert manifest["licence"] == "web: web-licence; books: books-licence"
    assert manifest["rejected"]["count"] == 2
    assert (
        manifest["dropped"]["web: beyond its weight"]
        == 3000 - manifest["sources"]["web"]["taken_rows"]
    )
    assert not (tmp_path / "out" / ".sources").exists()
    first = [part["sha256"] for part in manifest["files"]]
    assert [
        part["sha256"]
        for part in mixture(tmp_path, weights={"web": 3, "books": 1}, max_repeats=2)["files"]
    ] == first


def test_without_weights_and_repeats_the_scarcest_source_limits_the_others(tmp_path: Path) -> None:
    manifest = mixture(tmp_path)
    assert manifest["sources"]["books"]["taken_rows"] == 300
    assert 240 < manifest["sources"]["web"]["taken_rows"] < 360


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"sources": {"a": {"source": "docs"}}}, "at least 2"),
        ({"weights": {"wbe": 1.0}}, "weights.wbe is not one of the sources; did you mean web"),
        (
            {"weights": {"web": 0.0}},
            "download.pretrain.weights.web: Input should be greater than 0",
        ),
        ({"max_repeats": 0.5}, "max_repeats"),
        ({"max_documents": 5}, "max_documents is set for each"),
        ({"sources": {"../x": {"source": "docs"}, "b": {"source": "docs"}}}, "letters, digits"),
        (
            {"sources": {"web": {"source": "files", "path": ["x"]}, "b": {"source": "docs"}}},
            "did you mean paths",
        ),
        (
            {"sources": {"web": {"source": "mixture"}, "b": {"source": "docs"}}},
            "'mixture' is unknown",
        ),
    ],
)
def test_an_impossible_mixture_is_refused_by_name(changed: dict[str, Any], expected: str) -> None:
    import yaml

    data = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    good = {"source": "mixture", "sources": {name: {"source": "docs"} for name in ("web", "books")}}
    data["download"]["pretrain"] = good | changed
    with pytest.raises(UserError) as caught:
        params.parse(data)
    assert expected in str(caught.value)
    data["download"]["pretrain"] = good
    assert params.parse(data).download["pretrain"].source == "mixture"
    data["download"]["summarization"] = good
    with pytest.raises(UserError, match="only pretrain can be a mixture"):
        params.parse(data)


def test_repeated_text_and_a_rule_against_repetition_contradict_each_other() -> None:
    import yaml

    data = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    sources = {name: {"source": "docs"} for name in ("web", "books")}
    data["download"]["pretrain"] = {"source": "mixture", "sources": sources, "max_repeats": 2}
    params.parse(data)
    data["tokenize"]["clean"]["exact_duplicates"] = True
    with pytest.raises(
        UserError, match=r"would remove what download\.pretrain\.max_repeats repeats"
    ):
        params.parse(data)
