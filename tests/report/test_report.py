"""The report: whole, deterministic, self-contained, and safe with whatever text the data holds."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llm import params
from llm.report import history, page, scores
from llm.report.collect import collect
from llm.report.page import write_report
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
            if key in ("src", "href", "xlink:href", "data", "srcset", "poster") and not (value or "").startswith("#"):
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
    return (out / "report.html").read_text(encoding="utf-8"), (out / "report.md").read_text(encoding="utf-8")


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
    assert parsed.tags.count("svg") == 11, "two figures a training stage, one a task, one a task with predictions"
    assert html.count('class="sample"') == 3 * 6 + 3 * 9 + 4 * 20, "samples, best and worst and random, training data"
    for text in (html, markdown):
        assert "beam search, 4 beams" in text, "the effect of decoding settings"
        assert "rose from 2.900 to 3.010" in text, "forgetting"
        assert "Accuracy +0.460 (0.400 to 0.520, p = 0.034)" in text
        assert "4.7 % of the answers were cut at their limit, 0.30 % of the answers are empty" in text
        assert "1.777" in text, "held-out text by source"
    assert "<mark>" in html
    names = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert names == sorted(re.findall(r"\(figures/([a-z_]+\.svg)\)", markdown))


def test_params_alone_give_a_page_that_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.minimal(tmp_path)
    html, markdown = render(tmp_path, monkeypatch)
    assert html.count("not run here") >= 6
    assert "Not run here" in markdown
    assert "None" not in re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    assert Page(html).open == []


@pytest.mark.parametrize("stage", ["tokenize", "pretrain", "mix", "finetune", "evaluate"])
def test_any_one_stage_may_be_missing(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.full(tmp_path)
    (tmp_path / "metrics" / f"{stage}.json").unlink()
    html, _ = render(tmp_path, monkeypatch)
    assert Page(html).open == []


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def files(directory: Path) -> dict[str, bytes]:
        workspace.full(directory)
        render(directory, monkeypatch)
        out = directory / "out"
        return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    first, second = files(tmp_path / "a"), files(tmp_path / "b")
    assert first == second
    assert len(first) == 13
    assert not any(str(tmp_path).encode() in content for content in first.values()), "no absolute paths"


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
    assert page.fence("a ```` b").splitlines()[0] == "`````text"
    assert page.fence("plain") == "```text\nplain\n```"


def test_best_is_lowest_for_perplexity_and_highest_for_the_rest_and_lengths_have_none() -> None:
    evaluate = workspace.evaluation()
    assert scores.best(evaluate, "language_modeling", "perplexity") == {"base"}
    assert scores.best(evaluate, "classification", "accuracy") == {"baseline:tfidf"}
    assert scores.best(evaluate, "question_answering", "mean_length") == set()
    assert "the strongest baseline (zstd)" in " ".join(page.summary({**_empty(), "metrics": {"evaluate": evaluate}}))


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


def test_timings_older_than_the_run_are_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.full(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert history.scalars(0.0)["pretrain/tokens_per_second"] == 8123.4
    later = (tmp_path / "metrics" / "timing" / "pretrain.json").stat().st_mtime + 60
    cached = history.scalars(later)
    assert "pretrain/tokens_per_second" not in cached
    assert cached["evaluate/finetuned.question_answering.f1"] == 0.61
    assert cached["evaluate/contamination.summarization"] == 0.0133
    assert cached["evaluate/finetuned.language_modeling.bits_per_byte.numpy"] == 1.111
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
    assert page.number(value) == shown


def _empty() -> dict:
    return {"model": None, "manifests": {}, "contamination": {}, "timing": {}, "metrics": {}, "comparison": {}}


def test_the_page_says_whether_each_training_gives_the_same_bytes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.full(tmp_path)
    html, markdown = render(tmp_path, monkeypatch)
    assert "Identical bytes on rerun, pretrain: pretrain&#39;s own words." in html
    assert "Identical bytes on rerun, finetune: finetune's own words." in markdown
