"""What the embedded source promises: clean prose, the same bytes everywhere, tasks that need their
text.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from llm.errors import UserError
from llm.sources.docs import questions, records, scan
from llm.sources.docs import source as docs
from llm.sources.docs.dedup import near_duplicates
from llm.sources.docs.docstrings import Field, parse
from llm.sources.docs.prose import english, inline, sentences

PACKAGES = ["json", "logging", "email", "asyncio", "unittest", "networkx", "datasets"]
ROOT = Path(__file__).parents[3]
FIELDS = {
    "pretrain": ["id", "text", "source", "group"],
    "summarization": ["id", "document", "summary", "group", "split"],
    "question_answering": ["id", "context", "question", "answers", "group", "split"],
    "classification": ["id", "text", "text_pair", "label", "group", "split"],
}


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[list[dict], dict]]:
    out = {}
    for kind in docs.KINDS:
        rows, info = docs.records(kind, PACKAGES)
        out[kind] = (list(rows), info)
    return out


def test_docs_numpydoc_becomes_prose_and_fields():
    dropped: Counter[str] = Counter()
    doc = parse(
        """
        mean(a, axis=None)

        Compute the :func:`~numpy.mean` of ``a`` along *one* axis [1]_.

        The average is taken over the flattened array by default, otherwise
        over the specified axis; see `the guide <https://x.org>`_.

        .. versionadded:: 1.7
           Not of interest.

        .. math:: \\frac{1}{n}

        It can be called so::

            mean([1, 2])

        Parameters
        ----------
        a : array_like
            Array containing numbers. Possible forms:

            - a list;
            - a tuple.
        axis : None or int, optional
            Axis along which the means are computed.
        out : ndarray

        Returns
        -------
        m : ndarray
            The means, see :attr:`ndarray.dtype`.

        Raises
        ------
        ValueError
            If the array is empty.

        See Also
        --------
        average : Weighted average

        Notes
        -----
        .. note:: Float precision matters here for single-precision input.

        Examples
        --------
        >>> mean([1, 2])
        1.5
        """,
        dropped,
    )
    assert doc.summary == "Compute the mean of a along one axis."
    assert doc.body == [
        "The average is taken over the flattened array by default, otherwise over the specified axis; see the guide."
    ]
    assert doc.fields == [
        Field(
            "Parameters",
            "a",
            "array_like",
            "Array containing numbers. Possible forms: a list; a tuple.",
        ),
        Field(
            "Parameters",
            "axis",
            "None or int, optional",
            "Axis along which the means are computed.",
        ),
        Field("Returns", "m", "ndarray", "The means, see ndarray.dtype."),
        Field("Raises", "ValueError", "", "If the array is empty."),
    ]
    assert [item.line() for item in doc.fields][1:] == [
        "axis: None or int, optional. Axis along which the means are computed.",
        "Returns m: ndarray. The means, see ndarray.dtype.",
        "Raises ValueError: If the array is empty.",
    ]
    assert doc.notes == ["Float precision matters here for single-precision input."]
    assert dropped["field without a description"] == 1  # `out`
    assert (
        dropped["directive math"] == dropped["directive versionadded"] == dropped["code block"] == 1
    )
    assert dropped["dangling lead-in"] == 1


def test_docs_google_and_sphinx_fields_are_read():
    google = parse(
        """Loads a dataset.

        Args:
            path (`str`, *optional*):
                Path or name of the dataset. Depending on it, more happens.
            split: Which split to load.

        Returns:
            Dataset: the loaded dataset,
            in memory.

        Raises:
            FileNotFoundError: if there is no such file.

        Example:

        ```py
        >>> load()
        ```
        """,
        Counter(),
    )
    assert [item.line() for item in google.fields] == [
        "path: str, optional. Path or name of the dataset. Depending on it, more happens.",
        "split: Which split to load.",
        "Returns: Dataset. The loaded dataset, in memory.",
        "Raises FileNotFoundError: If there is no such file.",
    ]
    sphinx = parse(
        "Parse it.\n\n:param str text: what to parse,\n    even if long\n"
        ":type text: str\n:return: the tree of `text'\n",
        Counter(),
    )
    assert [item.line() for item in sphinx.fields] == [
        "text: str. What to parse, even if long",
        "Returns: The tree of 'text'",
    ]


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        ("``*args`` and ``**kwargs``", "*args and **kwargs"),
        (r"\*args, \*\*kwargs and *x*", "*args, **kwargs and x"),
        (":class:`.Session` of :class:`_orm.Mapper`, :meth:`!go`", "Session of Mapper, go"),
        ("`title <https://a.b>`_ and `ref`_", "title and ref"),
        ("[`~datasets.load_dataset`] and [text](https://a.b/c)", "load_dataset and text"),
        ("call f() (see [3]_ ) now", "call f() now"),
        ("C{text} of <b>html</b> [2]_.", "text of html."),
        ("resolve .. and .", "resolve .. and ."),
        ("snake_case_ and __init__", "snake_case_ and __init__"),
    ],
)
def test_docs_inline_markup_becomes_words(markup: str, plain: str):
    assert inline(markup) == plain


def test_docs_sentences_do_not_end_at_abbreviations():
    assert sentences("Use it, e.g. Like this. Or i.e. That? See J. Doe. End") == [
        "Use it, e.g. Like this.",
        "Or i.e. That?",
        "See J. Doe.",
        "End",
    ]


def test_docs_what_is_not_english_prose_is_dropped_and_counted():
    dropped: Counter[str] = Counter()
    doc = parse(
        "A fine summary line.\n\nCopyright (c) 2001 Somebody. All rights reserved.\n\n"
        "Der schnelle braune Fuchs springt heute wieder einmal ganz allein über den faulen grauen Hund.\n\n"
        "See https://example.org for more.\n\nx = f(1)\ny = g(x)\n\n=====  =====\nA      B\n=====  =====\n1      2\n"
        "=====  =====\n\n>>> f(1)\n2\n\nReplace %(name)s here.\n",
        dropped,
    )
    assert (doc.summary, doc.body, doc.notes, doc.fields) == ("A fine summary line.", [], [], [])
    for reason in (
        "licence",
        "not English",
        "sentence with a link",
        "code block",
        "table",
        "doctest",
        "placeholder",
    ):
        assert dropped[reason] >= 1, reason
    assert not english("Функция возвращает значение")


def test_docs_added_docstrings_of_c_functions_are_found():
    import ast

    source = (
        "add_newdoc('numpy._core.multiarray', 'array', 'Create an array.')\n"
        "add_newdoc('numpy', 'ndarray', ('T', 'View of the transposed array.'))\n"
        "add_docstr(torch.abs, r'Computes ' + r'the absolute {input}'.format(**common))\n"
        "class _Hidden:\n    'Not public.'\n"
        "@set_module('numpy')\ndef mean():\n    'Mean.'\n"
    )
    assert list(scan.docstrings(ast.parse(source), Counter())) == [
        ("array", "Create an array.", "numpy"),
        ("ndarray.T", "View of the transposed array.", "numpy"),
        ("abs", "Computes the absolute {input}", "torch"),
        ("mean", "Mean.", "numpy"),
    ]
    assert scan.public_name("scipy.stats._stats_py", "gmean", "") == "scipy.stats.gmean"
    assert scan.public_name("numpy._core.fromnumeric", "mean", "") == "numpy.mean"


def test_docs_source_is_never_executed(tmp_path, monkeypatch):
    package = tmp_path / "docs_bomb"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text(
        '"""A package whose import fails loudly and on purpose."""\nraise SystemExit(3)\n'
    )
    (package / "tests" / "test_it.py").write_text(
        '"""Tests are not documentation that anybody reads."""\n'
    )
    (package / "_hidden.py").write_text('"""Private modules are not documentation for users."""\n')
    (package / "made_pb2.py").write_text('"""Generated protocol buffer code is not prose."""\n')
    (package / "broken.py").write_text('"""Not Python."""\ndef (:\n')
    monkeypatch.syspath_prepend(tmp_path)
    found = docs.corpus(("docs_bomb",))
    assert [entry.doc.summary for entry in found.entries] == [
        "A package whose import fails loudly and on purpose."
    ]
    assert found.dropped["file: tests, vendored or generated"] == 2
    assert found.dropped["file: private module"] == 1
    assert found.dropped["file: not this Python's syntax"] == 1
    assert "docs_bomb" not in sys.modules


def test_docs_an_unknown_package_or_kind_is_refused():
    with pytest.raises(UserError, match="'no_such_package' is not installed"):
        list(docs.records("pretrain", ["no_such_package"])[0])
    with pytest.raises(UserError, match="instructions"):
        docs.records("instructions")


def test_docs_near_duplicates_keep_the_first_and_may_be_confined_to_other_groups():
    base = (
        "compute the weighted average of all the values in the array along the given axis "
        "and return it as a new array"
    )
    texts = [
        base,
        base.replace("weighted", "plain"),
        "something that is altogether different from what was said before",
    ]
    assert near_duplicates(texts, threshold=0.5) == [True, False, True]
    assert near_duplicates(texts, ["a", "a", "b"], threshold=0.5) == [True, True, True]


def test_docs_bytes_do_not_depend_on_hash_seed_or_working_directory(tmp_path):
    program = (
        "import hashlib, json\nfrom llm.sources.docs import source as docs\nh = hashlib.sha256()\n"
        "for kind in docs.KINDS:\n    rows, info = docs.records(kind, ['json', 'logging', 'huggingface_hub'])\n"
        "    h.update(json.dumps([list(rows), info]).encode())\nprint(h.hexdigest())"
    )
    digests = set()
    for seed, place in (("1", tmp_path), ("2", ROOT)):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            cwd=place,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        digests.add(run.stdout)
    assert len(digests) == 1


def test_docs_order_of_a_directory_listing_does_not_matter(monkeypatch):
    before = [module for module, _ in scan.source_files("email", Counter())]
    listed = Path.rglob
    monkeypatch.setattr(
        Path, "rglob", lambda self, pattern: reversed(sorted(listed(self, pattern)))
    )
    assert [module for module, _ in scan.source_files("email", Counter())] == before


def test_docs_records_have_the_fields_and_unique_ids_in_order(found):
    for kind, (rows, info) in found.items():
        assert len(rows) > 50, kind
        assert all(list(row) == FIELDS[kind] for row in rows)
        ids = [row["id"] for row in rows]
        assert ids == sorted(set(ids))
        assert info["kept"]["records"] == len(rows)
        assert all(count >= 0 for count in info["dropped"].values())
        assert "networkx==" in info["revision"]
        assert "networkx" in info["licence"]
        assert str(Path.home()) not in json.dumps([rows, info])


def test_docs_no_markup_is_left_in_any_text(found):
    for kind, (rows, _) in found.items():
        for row in rows:
            text = "\n".join(
                row[key] for key in ("text", "document", "summary", "context") if key in row
            )
            assert ">>>" not in text, (kind, row["id"])
            assert not re.search(
                r"``|:(class|func|meth|mod|attr):|\.\. \w+::|^-{4,}$|https?://", text, re.M
            ), row["id"]


def test_docs_summaries_are_one_sentence_that_the_document_does_not_contain(found):
    for row in found["summarization"][0]:
        summary, document = row["summary"], row["document"]
        assert 20 <= len(summary) <= 150
        assert summary.endswith(".")
        assert summary[0].isupper()
        assert 200 <= len(document) <= 1200
        assert summary.rstrip(".").lower() not in document.lower()


def test_docs_answers_are_exact_short_spans_of_a_short_context(found):
    for row in found["question_answering"][0]:
        (answer,) = row["answers"]
        assert answer in row["context"]
        assert 12 <= len(answer) <= 120
        assert len(row["context"]) <= 900
        assert row["question"].endswith("?")
        assert "`" in row["question"]


def test_docs_questions_cannot_be_answered_from_the_name_alone(found):
    rows, info = found["question_answering"]
    assert 0 < info["kept"]["closed_book_f1"] < 0.17  # of two small libraries; 0.114 of all
    answers = Counter(" ".join(re.findall(r"[a-z0-9]+", row["answers"][0].lower())) for row in rows)
    assert answers.most_common(1)[0][1] == 1


def test_docs_closed_book_f1_sees_a_name_that_determines_its_answer():
    rows = [{"answers": ["The axis to work along"], "group": f"module{i}"} for i in range(60)]
    assert questions.closed_book_f1(rows, [("Parameters", "axis")] * 60) == 1.0


def test_docs_library_names_are_masked_where_the_library_is_asked_for(found):
    rows = found["classification"][0]
    labels = {row["label"] for row in rows}
    assert {"networkx", "huggingface", "email"} <= labels
    for row in rows:
        assert 150 <= len(row["text"]) <= 700
        assert row["label"] not in row["text"].lower(), row["id"]
    masked = records.mask(
        "Like np.mean, a NumPy (or sklearn's) torch.Tensor of PyTorch; NP-hard, Hugging Face, json",
        ["json"],
    )
    assert (
        masked
        == "Like mean, a [library] (or [library]'s) Tensor of [library]; NP-hard, [library], [library]"
    )


def test_docs_equal_paragraphs_do_not_cross_modules(found):
    for kind, key in (
        ("summarization", "document"),
        ("classification", "text"),
        ("question_answering", "context"),
    ):
        groups = defaultdict(set)
        for row in found[kind][0]:
            for line in row[key].splitlines()[kind == "question_answering" :]:
                if len(line) > 60:
                    groups[hashlib.sha256(line.encode()).digest()].add(row["group"])
        assert {len(modules) for modules in groups.values()} == {1}, kind
