"""Two experiments are fetched through DVC, paired by example, and told apart only where chance does
not explain it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from llm.__main__ import main
from llm.errors import UserError
from llm.evaluate import answers as run
from llm.evaluate import metrics, test_sets
from llm.evaluate.language import Windows
from llm.evaluate.scorebook import ScoreBook
from llm.evaluate.test_sets import TestSet
from llm.experiments import compare
from llm.experiments.revisions import Revision, experiments
from llm.experiments.seeds import collect, spreads
from llm.report.figures.curves import for_file
from llm.report.format import number
from llm.runtime.io import write_json
from tests.conftest import ROOT

LABELS = ["numpy", "torch", "scipy"]
BOTH = ("finetuned", "finetuned")


def evaluated(directory: Path, quality: float, seed: int | None = None) -> None:
    """What the evaluate stage leaves of a model that is right with a chance of `quality`."""
    rng = np.random.default_rng(int(100 * quality))
    predictions = directory / "metrics" / "predictions"
    predictions.mkdir(parents=True, exist_ok=True)
    book = ScoreBook(predictions, 100, 0.95, 0)
    common = {"prompt": "p", "truncated": False}
    for kind in ("question_answering", "classification", "summarization"):
        rows = []
        for i in range(120):
            label = LABELS[i % 3]
            row = {"id": str(i), "kind": kind, "references": [f"the {label} of item {i}"], **common}
            rows.append(
                row
                | (
                    {"references": [label], "label": label, "choices": LABELS}
                    if "cl" in kind
                    else {}
                )
            )
        wrong = ["scipy" if "label" in row else "something else here" for row in rows]
        texts = [
            row["references"][0] if rng.random() < quality else bad
            for row, bad in zip(rows, wrong, strict=True)
        ]
        book.answers("finetuned", TestSet(kind, kind, rows), run.Answers(texts, {}, [], "form"))
    tokens = np.full(40, 64.0)
    nats = tokens * (4 - quality + 0.3 * rng.random(40))
    book.windows("finetuned", Windows(nats, tokens, 4 * tokens, np.zeros(0), ""))
    write_json(directory / "metrics" / "evaluate.json", {**book.results, "contamination": {}})
    write_json(directory / "metrics" / "pretrain.json", {"val_loss": 4 - round(quality)})
    curve = "".join(f"{i},{100 * i},{4 - round(quality) * i / 50}\n" for i in range(1, 50))
    (directory / "metrics" / "pretrain_history.csv").write_text(
        f"step,tokens,loss\n{curve}", encoding="utf-8"
    )
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["finetune"]["seed"] = seed
    (directory / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Git and DVC: a weak model on `main`, a strong one as the experiment exp-abc, an equal one in
    the workspace.
    """
    from dvc.repo import Repo

    root = tmp_path_factory.mktemp("repository")
    for command in ("init -qb main", "config user.email a@b.c", "config user.name n"):
        subprocess.run(["git", *command.split()], cwd=root, check=True)
    repo = Repo.init(str(root))
    # A stage in name only: DVC keeps its output and knows it by hash.
    stage = {
        "cmd": "true",
        "outs": ["metrics/predictions"],
        "metrics": [{"metrics/evaluate.json": {"cache": False}}],
    }
    (root / "dvc.yaml").write_text(
        yaml.safe_dump({"stages": {"evaluate": stage}}), encoding="utf-8"
    )
    (root / ".gitignore").write_text("/metrics/predictions\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for quality, seed, name in (
            (0.5, None, "main"),
            (0.8, 1, "exp-abc"),
            (0.78, 2, "exp-def"),
            (0.81, 3, ""),
        ):
            evaluated(root, quality, seed)
            if name:
                repo.commit(force=True)
            if name == "main":
                subprocess.run("git add -A && git commit -qm first", shell=True, check=True)
            elif name:
                repo.experiments.save(name=name)
    repo.close()
    return root


def test_an_experiment_and_a_branch_are_compared_score_by_score(repository: Path) -> None:
    assert experiments(repository) == ["exp-abc", "exp-def"]
    with Revision("main", repository) as a, Revision("exp-abc", repository) as b:
        found = compare.compare(a, b, BOTH)
    rows = {(row.task, row.difference.metric): row for row in found.rows}
    assert {metric for _, metric in rows} == {
        "exact_match", "f1", "accuracy", "mcc", "f1_macro", "bleu", *metrics.ROUGE,
        "loss", "perplexity", "bits_per_byte",
    }  # fmt: skip
    assert {row.better for row in found.rows} == {"B"}, "lower loss and higher scores alike"
    for (task, metric), row in rows.items():
        for side, revision in (("a", "main"), ("b", "exp-abc")):
            stored = Revision(revision, repository).json("metrics/evaluate.json")["finetuned"][
                task
            ][metric]["value"]
            assert getattr(row.difference, side) == pytest.approx(stored), (
                "the very numbers of metrics/evaluate.json"
            )
    assert rows["classification", "accuracy"].difference.n == 120
    assert found.notes == []


def test_f1_of_the_positive_class_is_compared_where_both_sides_have_the_same_one() -> None:
    labels = ["different", "same"]
    rows = [
        {
            "id": str(i),
            "prompt": "p",
            "references": [label],
            "label": label,
            "choices": labels,
            "positive": "same",
        }
        for i, label in enumerate(labels * 5)
    ]
    test = TestSet("mrpc", "classification", rows)
    columns, values = [], []
    for texts in (["same"] * 10, labels * 5):
        measures = {m.name: m for m in run.measures(test, texts, "form")}
        values.append(measures["f1"].value())
        given = {name: [row[name] for row in rows] for name in ("id", "references", "positive")}
        columns.append(given | {"prediction": texts, "accuracy": measures["accuracy"].column})
    assert values == [2 / 3, 1.0]
    for side, value in zip(compare.measures(*columns), values, strict=True):
        assert {m.name: m.value() for m in side}["f1"] == value
    del columns[0]["positive"]
    assert all("f1" not in {m.name for m in side} for side in compare.measures(*columns))


def test_models_of_equal_quality_are_not_told_apart(repository: Path) -> None:
    with Revision("exp-abc", repository) as a, Revision("workspace", repository) as b:
        found = compare.compare(a, b, BOTH)
    assert {row.better for row in found.rows} == {""}
    shown = compare.text(found, ("exp-abc", "workspace"))
    assert "no difference shown" in shown
    assert f"0 of {len(found.rows)} differences are significant" in shown


def test_the_command_prints_and_draws(
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(repository)
    compare.show(["main", "exp-abc"], BOTH, str(tmp_path / "plot.svg"))
    assert "B is better" in capsys.readouterr().out
    drawn = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<?xml")
    assert for_file(drawn).count("question answering") == 2
    compare.show(["main", "exp-abc"], BOTH, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["a"] == ["main", "finetuned"]
    assert {
        "task",
        "metric",
        "a",
        "b",
        "difference",
        "low",
        "high",
        "p_value",
        "n",
        "better",
    } == set(told["rows"][0])


def test_the_command_line_without_a_place_for_the_plot(
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(repository)
    page, plot = tmp_path / "page.html", repository / compare.PLOT
    for words in (["main", "exp-abc", "exp-def"], ["main", "exp-abc", "--html", str(page)]):
        monkeypatch.setattr(sys, "argv", ["llm", "compare", *words])
        main()
        assert page.exists() == ("--html" in words)
        assert not plot.exists()
    monkeypatch.setattr(sys, "argv", ["llm", "compare", "main", "exp-abc"])
    main()
    assert plot.read_text(encoding="utf-8").startswith("<?xml")
    plot.unlink()
    assert "B is better" in capsys.readouterr().out


def test_several_experiments_make_one_page_that_loads_nothing(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(repository)
    compare.show(["main", "exp-abc", "exp-def"], BOTH, html=str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img|iframe)|url\((?!#)|@import|href=\"(?!#)", page)
    for name in ("main", "exp-abc", "exp-def"):
        with Revision(name, repository) as revision:
            commit, scores = revision.commit, revision.json("metrics/evaluate.json")["finetuned"]
        assert f"<b>{name}</b> <code>{commit[:10]}</code>" in page
        assert number(scores["classification"]["accuracy"]["value"]) in page
    assert re.findall(
        r"<code>(finetune\.\w+)</code>.*?<td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", page
    ) == [("finetune.seed", "null", "1", "2")], "the one param that differs"
    rows = re.split("<tr>", page)
    (accuracy,) = [row for row in rows if "Classification · Accuracy<" in row][:1]
    assert accuracy.count(" better</small>") == 2, "both beat the weak one, and are told so"
    assert re.search(r"<dt>exp-def</dt><dd[^>]*>", page), "answers side by side"
    assert ">exp-abc, exp-def</text>" in page, "equal curves are drawn once"
    assert ">main</text>" in page
    assert "<li>exp-abc has no metrics/finetune.json here" in page, "what is missing is said"


def test_a_winner_is_bold_where_a_difference_is_shown_and_nowhere_else(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Values that differ by chance, or since one side was scored on fewer examples, have no winner."""
    monkeypatch.chdir(repository)
    for names, winners in (
        (["exp-abc", "workspace"], 0),
        (["main", "exp-abc"], 12),
        (["exp-abc", "main"], 12),
    ):
        compare.show(names, BOTH, html=str(tmp_path / "page.html"))
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert (
            (len(re.findall(r"<td><b>[\d.,]+</b>", page)) >= winners)
            if winners
            else "<td><b>" not in page
        ), names


def test_one_experiment_is_nothing_to_compare(repository: Path) -> None:
    with pytest.raises(UserError, match="two or more experiments"):
        compare.show(["main"], BOTH)


def test_a_plot_is_of_two_experiments() -> None:
    for names, html in ((["main", "exp-abc", "exp-def"], None), (["main", "exp-abc"], "page.html")):
        with pytest.raises(UserError, match="--plot draws two experiments"):
            compare.show(names, BOTH, plot="plot.svg", html=html)


def test_examples_that_differ_are_left_out_and_said(repository: Path, tmp_path: Path) -> None:
    evaluated(tmp_path, 0.5)
    path = tmp_path / "metrics/predictions/finetuned-question_answering.parquet"
    import pyarrow.parquet as pq

    columns = pq.read_table(path).to_pydict()
    columns["references"][0] = ["another question"]
    test_sets.write_columns(path, {name: values[:-10] for name, values in columns.items()})
    (tmp_path / "metrics/predictions/finetuned-summarization.parquet").unlink()
    with Revision("main", repository) as a:
        found = compare.compare(a, Revision("workspace", tmp_path), BOTH)
    assert next(r.difference.n for r in found.rows if r.task == "question_answering") == 109
    assert found.notes == [
        "summarization: only one side has it",
        "question_answering: 109 examples are common to both; one side has 120",
    ]


def test_what_is_not_there_is_named(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing: unknown Git revision"):
        Revision("nothing", repository)
    with pytest.raises(
        UserError, match=r"main has no predictions of 'base' .* it has those of finetuned"
    ):
        compare.compare(
            Revision("main", repository), Revision("exp-abc", repository), ("base", "base")
        )
    with pytest.raises(
        UserError, match=r"main has no metrics/other\.json.*dvc exp pull origin main"
    ):
        Revision("main", repository).json("metrics/other.json")
    with pytest.raises(UserError, match="not a git repository"):
        Revision("main", tmp_path)


def test_seeds_are_the_experiments_that_differ_in_nothing_else(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository)
    runs = collect([])
    assert [run.name for run in runs] == ["workspace", "exp-abc", "exp-def"]
    found = {(s.task, s.metric): s for s in spreads(runs)}
    values = [run.values["finetuned", "classification", "accuracy"] for run in runs]
    spread = found["classification", "accuracy"]
    assert spread.values == values
    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.deviation == pytest.approx(np.std(values, ddof=1))
    assert [run.name for run in collect(["main", "exp-def"])] == ["main", "exp-def"]
    with pytest.raises(UserError, match="1 seed among exp-abc"):
        collect(["exp-abc"])
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["finetune"]["epochs"] = 9
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"exp-abc differs from workspace in finetune\.epochs, not in seeds only"
    ):
        collect(["workspace", "exp-abc"])
