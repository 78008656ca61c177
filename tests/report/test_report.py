"""The report: whole, deterministic, self-contained, and safe with whatever text the data holds."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llm import params
from llm.corpus.clean.plan import Plan
from llm.params import Clean
from llm.report import commentary, page, scores
from llm.report import format as words
from llm.report.collect import collect
from llm.report.corpus import compare_tokenizers
from llm.report.page import write_report
from llm.tracking import metrics_files
from tests.report import workspace

ATTACK = "<script>alert(1)</script> & {{ 7 * 7 }} | `x` <img src='https://example.org/p.png'>"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects what a browser would load, and checks that tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attrs:
            if key in ("src", "href", "xlink:href", "data", "srcset", "poster") and not (
                value or ""
            ).startswith("#"):
                self.loads.append(value or "")
            if key == "id":
                self.ids.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        opened = self.open.pop()
        assert opened == tag, f"<{opened}> closed by </{tag}>"


def render(directory: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.chdir(directory)
    out = directory / "out"
    out.mkdir(exist_ok=True)
    write_report(params.load(), out, {"name": "quick-fox", "id": "0123abcd"})
    return (out / "report.html").read_text(encoding="utf-8"), (out / "report.md").read_text(
        encoding="utf-8"
    )


def test_a_full_run_is_shown_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.full(tmp_path)
    html, markdown = render(tmp_path, monkeypatch)
    for text in (html, markdown):
        assert "5,476,352" in text, "the parameter count of config.json"
        assert "quick-fox" in text
        assert "0123abcd" in text
        assert "89e6c98d92887913cadf06b2adb97f26" in text, "hashes of dvc.lock"
        assert "nrefs:1|case:mixed" in text.replace("\\|", "|"), "signatures"
        assert "Sliding window" in text
        assert "Near duplicate" in text
        assert "PSF-2.0" in text
        assert "the axis along which to sum" in text
        assert "axis axis axis" in text
        assert "not run here" in text, "evaluate and mix have no timing in this workspace"
    parsed = Page(html)
    assert parsed.tags.count("svg") == 12, (
        "corpus, two a training stage, two a task with predictions, one a task"
    )
    assert html.count('class="sample"') == 3 + 3 * 6 + 3 * 9 + 4 * 20, (
        "the first, samples, best and worst and random, training data"
    )
    for text in (html, markdown):
        assert "beam search, 4 beams" in text, "the effect of decoding settings"
        assert "raised the loss on held-out text from 2.900 to 3.010" in text, "forgetting"
        assert "Accuracy +0.460 (0.400 to 0.520, p = 0.034)" in text
        assert (
            "4.7 % of the answers were cut at their limit, 0.30 % of the answers are empty" in text
        )
        assert "1.777" in text, "held-out text by source"
    assert "<mark>" in html
    names = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert names == sorted(re.findall(r"\(figures/([a-z_]+\.svg)\)", markdown))


def test_the_corpus_is_shown_with_its_sources_and_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.full(tmp_path, note="a|b <i>")
    html, markdown = render(tmp_path, monkeypatch)
    for text in (html, markdown):
        assert "20,866 documents" in text
        assert "12.4 MB of text" in text
        assert "3,082,318" in text, "tokens of both sides"
        assert "64.9 %" in text, "a source's share of the tokens"
        assert "⏎" in text
        assert "␣the" in text
        assert "(none given)" in text
        assert "a token of this tokenizer stands for" not in text, "there are no shards here"
    assert "package a|b &lt;i&gt;" in html
    assert "package a\\|b &lt;i&gt;" in markdown


@pytest.mark.parametrize("here", [True, False])
def test_the_tokenizer_is_compared_with_gpt2s_where_that_is_at_hand(
    here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm.corpus import chunks, encode
    from llm.runtime.io import write_json
    from llm.sources import raw
    from llm.tokenizer.bpe import GPT2_PATTERN, Tokenizer

    monkeypatch.chdir(tmp_path)
    texts = [f"Document {i} returns the {i}th value of the array, in order." for i in range(60)]
    ours, other = (
        Tokenizer.train(texts, 330),
        Tokenizer({bytes([i]): i for i in range(256)}, GPT2_PATTERN),
    )
    monkeypatch.setattr("llm.tokenizer.gpt2.are_here", lambda: here)
    monkeypatch.setattr(Tokenizer, "gpt2", classmethod(lambda cls: other))
    with raw.Writer(tmp_path / "raw", "pretrain") as writer:
        for text in texts:
            writer.write({"id": text, "text": text, "source": "", "group": ""})
    shards, counts = encode.encode_corpus(
        chunks.find_chunks(tmp_path / "raw"),
        ours,
        tmp_path / "data",
        0.3,
        2000,
        Plan(Clean(), None),
    )
    write_json("data/tokens/meta.json", encode.describe(shards, counts, ours, 0.3))
    ours.save("data/tokenizer")
    found = compare_tokenizers()
    assert found is not None
    assert found["bytes"] == counts.splits["val"]["bytes"]
    assert found["ours"] == found["bytes"] / (counts.splits["val"]["tokens"] - found["documents"])
    assert found["gpt2"] == (1.0 if here else None)
    (tmp_path / "metrics").mkdir()
    write_json("metrics/tokenize.json", counts.metrics(ours, Clean()))
    workspace.minimal(tmp_path)
    html, markdown = render(tmp_path, monkeypatch)
    for text in (html, markdown):
        assert ("not on this machine" in text) != here


def test_params_alone_give_a_page_that_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.minimal(tmp_path)
    html, markdown = render(tmp_path, monkeypatch)
    assert html.count("not run here") >= 6
    assert "Not run here" in markdown
    assert "None" not in re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    assert Page(html).open == []


@pytest.mark.parametrize("stage", ["tokenize", "pretrain", "mix", "finetune", "evaluate"])
def test_any_one_stage_may_be_missing(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.full(tmp_path)
    (tmp_path / "metrics" / f"{stage}.json").unlink()
    html, _ = render(tmp_path, monkeypatch)
    assert Page(html).open == []


def test_the_same_inputs_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(directory: Path) -> dict[str, bytes]:
        workspace.full(directory)
        render(directory, monkeypatch)
        out = directory / "out"
        return {
            path.relative_to(out).as_posix(): path.read_bytes()
            for path in out.rglob("*")
            if path.is_file()
        }

    first, second = files(tmp_path / "a"), files(tmp_path / "b")
    assert first == second
    numbers = {path.name: path.read_bytes() for path in Path("metrics").glob("*.json")}
    assert len(numbers) == 7
    assert {name: first[f"numbers/{name}"] for name in numbers} == numbers, (
        "a remote has the metrics through the report alone"
    )
    assert len(first) == 14 + len(numbers)
    assert not any(str(tmp_path).encode() in content for content in first.values()), (
        "no absolute paths"
    )


def test_the_page_loads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.full(tmp_path)
    html, _ = render(tmp_path, monkeypatch)
    parsed = Page(html)
    assert parsed.loads == []
    assert not {"script", "link", "img", "iframe", "object"} & set(parsed.tags)
    assert not re.search(r"@import|url\((?!#)", html)
    assert len(parsed.ids) == len(set(parsed.ids)), "figures do not share ids"
    assert parsed.open == []


def test_data_is_text_and_never_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.full(tmp_path, note=ATTACK)
    html, markdown = render(tmp_path, monkeypatch)
    parsed = Page(html)
    assert parsed.loads == []
    assert "script" not in parsed.tags
    assert "&lt;script&gt;alert(1)" in html
    assert "{{ 7 * 7 }}" in html, "templates are not applied to data"
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside


def test_a_code_fence_is_longer_than_any_in_its_text() -> None:
    assert words.fence("a ```` b").splitlines()[0] == "`````text"
    assert words.fence("plain") == "```text\nplain\n```"


def test_best_is_lowest_for_perplexity_and_highest_for_the_rest_and_lengths_have_none() -> None:
    evaluate = workspace.evaluation()
    assert scores.best(evaluate, "language_modeling", "perplexity") == {"base"}
    assert scores.best(evaluate, "classification", "accuracy") == {"baseline:tfidf"}
    assert scores.best(evaluate, "question_answering", "mean_length") == set()
    assert "the strongest baseline (zstd)" in " ".join(
        commentary.summary({**_empty(), "metrics": {"evaluate": evaluate}})
    )


def test_the_overall_score_is_the_mean_of_headline_metrics_where_more_is_better() -> None:
    assert scores.overall(workspace.evaluation()) == pytest.approx((0.31 * 0.9 + 0.61 + 0.57) / 3)
    assert scores.overall({}) is None


def test_samples_pair_the_models_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.full(tmp_path)
    monkeypatch.chdir(tmp_path)
    samples = collect(params.load())["samples"]["classification"]
    assert len(samples) == 6
    assert samples[0]["base"].strip() == ""
    assert all(sample["finetuned"].startswith("the axis") for sample in samples)


def test_timings_older_than_the_run_are_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.full(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert metrics_files.scalars(0.0)["pretrain/tokens_per_second"] == 8123.4
    later = (tmp_path / "metrics" / "timing" / "pretrain.json").stat().st_mtime + 60
    cached = metrics_files.scalars(later)
    assert "pretrain/tokens_per_second" not in cached
    assert cached["evaluate/finetuned.question_answering.f1"] == 0.61
    assert "evaluate/contamination.summarization" not in cached, "a detail, which is in the file"
    assert "evaluate/finetuned.language_modeling.bits_per_byte.numpy" not in cached
    assert {key.count("/") for key in cached} == {1}, "one section a stage in MLflow's UI"
    assert not any(key.endswith((".low", ".high", ".n", ".p_value")) for key in cached)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.12345, "0.123"),
        (-0.5, "−0.500"),
        (1234567, "1,234,567"),
        (2.04e14, "2.04 × 10¹⁴"),
        (1e-6, "1.00 × 10⁻⁶"),
    ],
)
def test_numbers_have_the_digits_that_mean_something(value: float | None, shown: str) -> None:
    assert words.number(value) == shown


def _empty() -> dict:
    return {
        "model": None,
        "manifests": {},
        "contamination": {},
        "contamination_by_text": {},
        "timing": {},
        "metrics": {},
        "comparison": {},
    }


def test_the_page_says_whether_each_training_gives_the_same_bytes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.full(tmp_path)
    html, markdown = render(tmp_path, monkeypatch)
    assert "Identical bytes on rerun, pretrain: pretrain&#39;s own words." in html
    assert "Identical bytes on rerun, finetune: finetune's own words." in markdown


def test_the_page_leads_with_an_answer_a_task_and_the_scores_against_the_best_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.full(tmp_path)
    html, markdown = render(tmp_path, monkeypatch)
    lead = markdown.split("## 1 Model")[0]
    first = lead.splitlines()[4]
    assert first.startswith("Of the test examples 1.3 % (summarization), 0.67 % (question answer")
    assert first.endswith("share 13 words in a row with the training text.")
    for task in ("Summarization", "Question answering", "Classification"):
        assert lead.count(f"### {task}\n") == 1
    assert lead.count("Question 20: what is `axis`?") == 3, "the middle one of 40"
    marks = {
        cells[1].strip(): cells[-2].strip()
        for line in lead.splitlines()
        if line.startswith("| ") and (cells := line.split("|"))
    }
    assert marks["Classification"] == "▼ −0.070, p = 0.034"
    assert marks["Question answering"] == "▲ +0.280, p < 0.001"
    assert marks["Summarization"] == "○ +0.081, p = 0.200"
    assert marks["Language modeling"] == "–"
    assert html.index("What the model does") < html.index('<div class="tiles">')
    assert "▼ 0.570" in html
    assert "▲ <b>0.610</b>" in html


@pytest.mark.parametrize(
    ("shares", "sentence"),
    [
        ({"a": 0.0}, "No test example shares 13 words in a row with the training text."),
        (
            {"a": 0.0, "language_modeling": 0.0},
            "No test example and no held-out document share 13 words in a row with the training text.",
        ),
        (
            {"a": 0.25, "b": 0.0, "language_modeling": 0.5},
            "Of the test examples 25.0 % (a), 0 % (b) and of the held-out documents 50.0 % share 13 words in a row "
            "with the training text.",
        ),
        (
            {"a": 0.0, "language_modeling": 0.5},
            "Of the held-out documents 50.0 % share 13 words in a row with the training text.",
        ),
    ],
)
def test_the_first_sentence_says_how_much_of_the_test_data_is_in_the_training_text(
    shares: dict[str, float], sentence: str
) -> None:
    assert commentary.contaminated(shares) == sentence


def test_every_score_has_its_contamination_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.full(tmp_path)
    html, markdown = render(tmp_path, monkeypatch)
    assert "Contamination: 0.67 % (pretraining 0.33 %, finetuning 0.67 %)." in html
    rows = [
        line
        for line in markdown.splitlines()
        if line.startswith(("| Finetuned |", "| Base |", "| Lead"))
    ]
    ends = [row.rstrip(" |").rsplit("|", 1)[1].strip() for row in rows]
    assert ends[:3] == ["1.3 %", "1.3 %", "–"]
    assert ends[3:5] == ["0.67 %", "0.33 %"]
    assert "; contamination 0.67 %." in html


def test_what_each_cleaning_rule_did_is_shown_with_its_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.full(tmp_path)
    html, markdown = render(tmp_path, monkeypatch)
    assert "Cleaning" not in html + markdown
    path = tmp_path / "metrics" / "tokenize.json"
    example = {"document": 1234, "text": "Lost <b>text</b>", "became": ""}
    rule = {
        "removed": 17,
        "removed_bytes": 5000,
        "changed": 0,
        "edits": 0,
        "cut_bytes": 0,
        "examples": [example],
    }
    masked = {
        **rule,
        "removed": 0,
        "changed": 3,
        "edits": 4,
        "examples": [{**example, "became": "Masked | text"}],
    }
    clean = {"documents": 100, "kept": 83, "bytes": 90000, "kept_bytes": 85000}
    rules = {
        "c4.min_num_sentences": rule,
        "personal_data.email": masked,
        "exact_duplicates": {**rule, "examples": []},
    }
    metrics = json.loads(path.read_text(encoding="utf-8"))
    workspace.dump(path, {**metrics, "clean": {**clean, "rules": rules}})
    html, markdown = render(tmp_path, monkeypatch)
    assert (
        "<code>c4.min_num_sentences</code></th><td>17</td><td>5.0 kB</td><td>0</td><td>0</td>"
        in html
    )
    assert "Lost &lt;b&gt;text&lt;/b&gt;" in html
    assert "<dt>Became</dt><dd>Masked | text</dd>" in html
    assert "| `personal_data.email` | 0 | 5.0 kB | 3 | 4 |" in markdown
    assert "Lost <b>text</b>\n→ Masked | text" in markdown


def test_a_mixture_has_a_table_of_its_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.full(tmp_path)
    counts = {
        f"{split}_{key}": 1000
        for split in ("train", "val")
        for key in ("tokens", "documents", "bytes")
    }
    for stage, added in (
        (
            "tokenize",
            {"sources": {"web": {**counts, "weight": 0.75, "share_of_train_tokens": 0.7431}}},
        ),
        (
            "pretrain",
            {"val_loss_by_source": {"web": 3.25}, "val_bits_per_byte_by_source": {"web": 1.125}},
        ),
    ):
        path = tmp_path / "metrics" / f"{stage}.json"
        workspace.dump(path, json.loads(path.read_text(encoding="utf-8")) | added)
    html, markdown = render(tmp_path, monkeypatch)
    assert (
        "<td>75.0 %</td><td>1,000</td><td>1,000</td><td>74.3 %</td><td>1,000</td><td>3.250</td><td>1.125</td>"
        in html
    )
    assert "| web | 75.0 % | 1,000 | 1,000 | 74.3 % | 1,000 | 3.250 | 1.125 |" in markdown


def test_a_scaling_law_is_shown_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.minimal(tmp_path)
    score = {"value": 1.25, "low": 1.2, "high": 1.3}
    runs = [
        {
            "depth": d,
            "parameters": d * 10**6,
            "tokens": t,
            "flops": 1e12,
            "loss": 4.0 - d / 10,
            "fitted": 4.0,
        }
        for d in (1, 2)
        for t in (1000, 2000)
    ]
    held = {
        "depth": 3,
        "parameters": 3 * 10**6,
        "tokens": 2000,
        "flops": 3e12,
        "observed": 3.6,
        "error": 0.1,
    }
    law = {name: score for name in ("E", "A", "B", "alpha", "beta", "exponent")}
    best = {
        "flops": 3e12,
        "depth": 2,
        "parameters": 2 * 10**6,
        "tokens": 5000,
        "loss": score,
        "by_formula": score,
    }
    best["beyond"] = {"parameters": 1.0, "tokens": 2.5}
    found = {
        "runs": runs,
        "law": law,
        "held_back": held | {"predicted": score, "within": False},
        "optimal": [best],
    }
    workspace.dump(
        tmp_path / "metrics/scaling.json",
        found | {"resamples": 20, "confidence": 0.95, "E_determined": False},
    )
    monkeypatch.chdir(tmp_path)
    page.write_report(params.load(), tmp_path / "out")
    for name in ("report.html", "report.md"):
        text = (tmp_path / "out" / name).read_text()
        assert "1.25 [1.2, 1.3]" in text
        assert "outside the interval" in text
        assert "2.5 × tokens" in text
        assert "is not determined: the losses" in text
    assert "Scaling law" in (tmp_path / "out/report.html").read_text()
    assert (tmp_path / "out/figures/scaling.svg").exists()
