"""The documents that models are scored on stand for all sources, and depend on the text alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.val_sample import ValSample, choose
from llm.text.hashing import is_validation, text_hash
from tests.evaluate.standins import Bytes, Stream, held_out_text

Document = tuple[int, int, int]  # hash, tokens, source
# Of equal texts too, which are of equal size.
HASHES = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 20))
DOCUMENTS = st.lists(
    st.builds(lambda text, source: (text, 1 + text * 7 % 61, source), HASHES, st.integers(0, 3)),
    min_size=1,
    max_size=60,
)


def chosen(documents: list[Document], limit: int) -> tuple[np.ndarray, np.ndarray]:
    hashes, sizes, sources = zip(*documents, strict=True)
    return choose(np.array(hashes, np.uint64), np.array(sizes), np.array(sources), limit)


@settings(deadline=None)
@given(documents=DOCUMENTS, limit=st.integers(2, 2000), data=st.data())
def test_every_source_keeps_its_share_in_whole_documents_whatever_their_order(
    documents: list[Document], limit: int, data: st.DataObject
) -> None:
    numbers, read = chosen(documents, limit)
    assert (np.diff(numbers) > 0).all(), "in the order of the stream, none twice"
    sizes, sources = (np.array([document[i] for document in documents]) for i in (1, 2))
    for source in set(sources.tolist()):
        share = limit * sizes[sources == source].sum() / sizes.sum()
        own = sources[numbers] == source
        taken = int(read[own].sum())
        longest = max(2.0, float(np.minimum(sizes[sources == source], np.ceil(share)).max()))
        assert own.any()
        assert abs(taken - min(share, sizes[sources == source].sum())) <= longest
        cut = read[own] < sizes[numbers][own]
        assert (read[own][cut] >= share).all(), "only a document longer than the whole share is cut"
    if limit >= sizes.sum():
        assert read.tolist() == sizes.tolist()
    order = data.draw(st.permutations(range(len(documents))))
    again, _ = chosen([documents[i] for i in order], limit)
    assert sorted(documents[order[i]] for i in again) == sorted(documents[i] for i in numbers)


def test_documents_are_chosen_by_hash_and_a_larger_limit_only_adds() -> None:
    rng = np.random.default_rng(0)
    documents = [(int(rng.integers(2**63)), 10, 0) for _ in range(200)]
    small, large = chosen(documents, 200)[0], chosen(documents, 500)[0]
    smallest = sorted(range(200), key=lambda i: documents[i][0])
    assert small.tolist() == sorted(smallest[:20])
    assert set(small) < set(large)


def test_a_document_that_a_mixture_repeats_is_read_once_while_there_are_others() -> None:
    documents = [(hash_, 10, 0) for hash_ in range(10) for _ in range(4)]
    numbers, _ = chosen(documents, 100)
    assert [documents[i][0] for i in numbers] == list(range(10))
    assert len(chosen(documents, 150)[0]) == 15, "copies fill a share that has no other text"


def test_a_mixture_is_read_in_its_proportions_and_not_from_its_beginning() -> None:
    texts = [f"first source {i:04d}" for i in range(300)] + [
        f"second one {i:06d}" for i in range(100)
    ]
    stream, places = Stream(texts), np.repeat([0, 1], [300, 100])
    sample = ValSample(stream, Bytes(), 1800, ["one", "two"], places)
    about = sample.about(sample.names)
    assert about["tokens"] == len(sample) == pytest.approx(1800, abs=20)
    assert about["sources"]["one"]["documents"] == pytest.approx(75, abs=1)
    assert about["sources"]["two"]["documents"] == pytest.approx(25, abs=1)
    assert about["of"] == {"documents": 400, "tokens": len(stream), "bytes": stream.bytes}
    read = [Bytes().decode(ids.tolist()) for ids in sample.documents_ids()]
    assert set(read) <= set(texts)
    assert read == sorted(read)
    assert sample.bytes == sum(map(len, read)) == sum(s["bytes"] for s in about["sources"].values())
    # A part of them, counted in documents: of each source again.
    spread = sample.spread(20)
    assert [sample.names[i] for i in spread].count("one") == 15  # type: ignore[index]


def test_the_sample_is_what_a_smaller_split_would_hold_out() -> None:
    texts = [f"document {i}" for i in range(2000) if is_validation(f"document {i}", 0.2)]
    sample = held_out_text(texts, sum(len(text) + 1 for text in texts) // 2)
    read = [Bytes().decode(ids.tolist()) for ids in sample.documents_ids()]
    assert max(map(text_hash, read)) < min(text_hash(text) for text in set(texts) - set(read))


def test_a_document_longer_than_the_limit_is_cut_to_it_and_ends() -> None:
    sample = held_out_text(["x" * 1000], 100)
    assert len(sample) == 100
    assert sample.read(99, 1)[0] == sample.eos_id
    assert sample.bytes == sample.document_bytes.sum() == 99
    assert sample.cut.all()


@pytest.mark.parametrize("limit", [None, 10**6])
def test_all_of_the_text_is_the_stream_itself(limit: int | None) -> None:
    texts = ["some", "", "text ü"]
    stream = Stream(texts)
    sample = held_out_text(texts, limit)
    np.testing.assert_array_equal(sample.read(0, len(sample)), stream.read(0, len(stream)))
    assert sample.bytes == stream.bytes
    assert sample.describe() == "all 3 held-out documents"
