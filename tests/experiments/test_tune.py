"""Optuna chooses, DVC runs, bad trials are stopped, and a killed tuner goes on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from llm import params
from llm.errors import UserError
from llm.experiments import tune
from llm.experiments.tuning_file import Range, Tuning, load
from llm.report import tuning as report
from llm.report.page import write_report
from llm.runtime.io import read_json
from llm.tracking import status
from tests.pipeline.workspace import ROOT, run
from tests.report import workspace

pytest.importorskip("optuna")

STAGE = """
import os, time
from llm.runtime import heartbeat as beacon; from llm import params
from llm.runtime.stage import run_stage
from llm.runtime.io import write_json
from llm.runtime.timing import stage_timing
def main():
    rate = params.load().pretrain.learning_rate
    with stage_timing("pretrain"):
        for step in range(1, 7 if rate < 0.01 else 200):
            beacon.current().validated(step, 5 - 0.1 * step + 10 * rate)
            time.sleep(0.1 if step % 3 else 1)
        write_json("out.json", {"finetuned": {"loss": 10 * rate}, "study": os.environ["LLM_STUDY"]})
run_stage(main)
"""
FILE = """
study: rates
metric: out.json:finetuned.loss
trials: 2
space: {pretrain.learning_rate: {low: 0.001, high: 0.1, log: true}}
prune: {stage: pretrain, startup_trials: 1}
"""


def described(tmp_path: Path, text: str) -> Tuning:
    (tmp_path / "tuning.yaml").write_text(text)
    return load(tmp_path / "tuning.yaml")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def test_a_bad_trial_is_stopped_early_and_a_killed_one_is_run_again(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    log = tmp_path_factory.mktemp("log") / "log"
    (here / "stage.py").write_text(STAGE)
    data = f"download: {{cmd: echo once | tee -a {log} > data, deps: [stage.py], outs: [data]}}"
    deps = "deps: [data], params: [pretrain.learning_rate], metrics: [out.json: {cache: false}]"
    (here / "dvc.yaml").write_text(
        f"stages: {{{data}, pretrain: {{cmd: python stage.py, {deps}}}}}"
    )
    (here / ".gitignore").write_text("/.state/\n/metrics/\n/tuning.yaml\n")
    for words in (
        ("git", "init", "-q"),
        ("dvc", "init", "-q"),
        ("git", "add", "-A"),
        ("git", "commit", "-qm", "start"),
    ):
        run(here, *words)
    for key, value in {
        "PYTHONPATH": str(ROOT),
        "GIT_AUTHOR_NAME": "t",
        "GIT_AUTHOR_EMAIL": "t@localhost",
    }.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv(
        "PATH", f"{Path(shutil.which('python') or '').parent}{os.pathsep}{os.environ['PATH']}"
    )
    monkeypatch.setenv("GIT_COMMITTER_NAME", "t")
    monkeypatch.setenv("GIT_COMMITTER_EMAIL", "t@localhost")
    monkeypatch.delenv("DVC_ROOT")

    study = tune.open_study(described(here, FILE))
    study.enqueue_trial({"pretrain.learning_rate": 0.002})
    study.ask(
        tune._distributions(described(here, FILE))
    )  # its tuner was killed: the trial still says that it runs
    tune._run_again(study)
    study.enqueue_trial({"pretrain.learning_rate": 0.09})
    tune.tune(here / "tuning.yaml")

    study = tune.open_study(described(here, FILE))
    states = [(trial.state.name, trial.params["pretrain.learning_rate"]) for trial in study.trials]
    assert states[0] == ("FAIL", 0.002)
    assert sorted(states[1:]) == [("COMPLETE", 0.002), ("PRUNED", 0.09)]
    pruned = next(trial for trial in study.trials if trial.state.name == "PRUNED")
    assert max(pruned.intermediate_values) < 150
    assert [
        item.experiment for item in status.read()
    ] == []  # a stopped trial is nothing to go on with
    told = capsys.readouterr().out
    assert "stopped: above the median of the others" in told
    assert f"`dvc exp apply rates-{study.best_trial.number}` takes it over" in told
    assert study.best_value == pytest.approx(0.02)
    assert log.read_text().split() == ["once"]  # the stage before is the same for all
    page = (here / "metrics/tuning/rates.html").read_text()
    assert "stopped early after" in page
    assert "0.02" in page
    run(here, "git", "add", "-A")
    shutil.rmtree(here / ".state")
    tune.open_study(described(here, FILE)).enqueue_trial({"pretrain.learning_rate": 0.002})
    with pytest.raises(
        UserError, match="there is an experiment rates-1 already, which is not of this study"
    ):
        tune.tune(here / "tuning.yaml")


def test_a_study_begins_with_the_values_of_params_yaml(here: Path) -> None:
    space = (
        "{pretrain.learning_rate: {low: 0.001, high: 0.1, log: true}, "
        "finetune.lora.r: [8, 32], pretrain.tokens: [9]}"
    )
    tuning = described(
        here, FILE.replace("{pretrain.learning_rate: {low: 0.001, high: 0.1, log: true}}", space)
    )
    given = params.load().pretrain.learning_rate
    for _ in range(2):  # a study that goes on does not begin again
        study = tune.open_study(tuning)
        tune._begin_with_the_present(study, tuning)
        tune._ask(study, tuning)
    tune._run_again(
        study
    )  # the tuner was killed: its next trial is the same, and told apart as before
    again = tune._ask(study, tuning)
    for trial in (study.trials[0], again):
        assert trial.params == {
            "pretrain.learning_rate": given,
            "finetune.lora.r": 32,
            "pretrain.tokens": 9,
        }
        assert trial.user_attrs == {"params.yaml": True}
    assert study.trials[1].params["pretrain.learning_rate"] != given
    found = report.describe(study, "rates", "out.json:loss")
    assert [trial["name"] for trial in found["trials"] if trial["present"]] == [
        "rates-0",
        f"rates-{again.number}",
    ]


def test_what_the_space_does_not_hold_is_drawn(here: Path) -> None:
    """The first trial then is not the one of params.yaml."""
    space = "{pretrain.learning_rate: {low: 0.01, high: 0.1}, finetune.lora.r: {low: 8, high: 40, step: 8}}"
    tuning = described(
        here, FILE.replace("{pretrain.learning_rate: {low: 0.001, high: 0.1, log: true}}", space)
    )
    study = tune.open_study(tuning)
    tune._begin_with_the_present(study, tuning)
    first = tune._ask(study, tuning)
    assert first.params["finetune.lora.r"] == 32
    assert 0.01 <= first.params["pretrain.learning_rate"] <= 0.1
    assert first.user_attrs == {"params.yaml": False}


@pytest.mark.parametrize(
    ("given", "value", "holds"),
    [
        ({"low": 8, "high": 40, "step": 8}, 32, True),
        ({"low": 8, "high": 40, "step": 8}, 33, False),
        ({"low": 8, "high": 40}, 33, True),
        ({"low": 8, "high": 40}, 33.5, False),
        ({"low": 0.0, "high": 1.0, "step": 0.1}, 0.7, True),
        ({"low": 0.0, "high": 1.0}, 1.1, False),
        ({"low": 0.0, "high": 1.0}, "auto", False),
        ({"low": 0, "high": 1}, True, False),
        ({"low": 0, "high": 1}, None, False),
    ],
)
def test_a_range_holds_what_can_be_drawn_from_it(
    given: dict[str, float], value: object, holds: bool
) -> None:
    assert Range.model_validate(given).holds(value) == holds


def test_a_study_goes_on_with_the_metric_and_the_choices_that_it_was_begun_with(here: Path) -> None:
    choices = FILE.replace("{low: 0.001, high: 0.1, log: true}", "[0.001, 0.1]")
    tuning = described(here, choices)
    tune._ask(tune.open_study(tuning), tuning)
    tune._ask(tune.open_study(tuning), tuning)
    with pytest.raises(
        UserError, match=r'begun with metric "out.json:finetuned.loss", and now it is "out.json:f1"'
    ):
        tune.open_study(described(here, choices.replace("finetuned.loss", "f1")))
    with pytest.raises(UserError, match='begun with direction "minimize"'):
        tune.open_study(described(here, choices + "direction: maximize"))
    other = described(here, choices.replace("0.001", "0.002"))
    with pytest.raises(UserError, match="begun with another space"):
        tune._ask(tune.open_study(other), other)


def test_a_metric_that_is_no_number_is_named(here: Path) -> None:
    (here / "a.json").write_text('{"f1": {"value": 0.5, "signature": "words", "none": null}}')
    assert tune._metric("a.json:f1.value", "workspace") == 0.5
    for key in ("signature", "none"):
        with pytest.raises(UserError, match=f"metric a.json:f1.{key}: expected a finite number"):
            tune._metric(f"a.json:f1.{key}", "workspace")


def studied() -> Any:
    """A study of 24 trials in which the rate matters and the width does not; two were stopped, one
    failed.
    """
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial({}, user_attrs={report.PRESENT: True})

    def value(trial: Any) -> float:
        rate = trial.suggest_float("rate", 0.01, 1, log=True)
        trial.suggest_int("width", 1, 9)
        trial.suggest_categorical("steps", [500])
        trial.suggest_categorical("schedule", ["wsd", "cosine"])
        if trial.number in (5, 6):
            trial.report(9.0, 30)
            raise optuna.TrialPruned
        return float((rate - 0.5) ** 2)

    study.optimize(value, n_trials=24)
    study.tell(study.ask(), state=TrialState.FAIL)
    return study


def test_importances_tell_what_mattered() -> None:
    found = report.importances(studied())
    assert found["rate"] > 0.7


def test_a_study_is_a_page_and_a_section_of_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.minimal(tmp_path)
    monkeypatch.chdir(tmp_path)
    page = report.write(report.describe(studied(), "a-study", "m.json:x.loss")).read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.split("<main>")[1].replace("http://www.w3.org", "")
    write_report(params.load(), tmp_path / "out")
    for text in (page, (tmp_path / "out/report.html").read_text()):
        assert "25 trials by Optuna" in text
        assert "minimizing <code>m.json:x.loss</code>" in text
        assert "22 finished, 2 stopped early" in text
        assert "stopped early after 30 tokens" in text
        assert ", with <code>steps</code> 500; 22 finished" in text
        assert text.count("a-study-0 (params.yaml)") == 1
    assert "| stopped early | – |" in (tmp_path / "out/report.md").read_text()
    assert "| a-study-0 (params.yaml) | finished |" in (tmp_path / "out/report.md").read_text()
    trials = read_json(tmp_path / "metrics/tuning/a-study.json")["trials"]
    values = [trial["value"] for trial in trials]
    assert values == [*sorted(values[:22]), None, None, None]
    drawn = (tmp_path / "out/figures/tuning_0_params.svg").read_text()
    assert all(name in drawn for name in ("rate", "width", "cosine"))
    assert (tmp_path / "out/figures/tuning_0.svg").exists()


def test_a_study_of_few_trials_has_no_importances(tmp_path: Path) -> None:
    import optuna

    study = optuna.create_study(direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("rate", 0, 1), n_trials=3)
    found = report.describe(study, "few", "m.json:f1")
    assert [trial["value"] for trial in found["trials"]] == sorted(
        (t.value for t in study.trials), reverse=True
    )
    assert "<svg" not in report.write(found, tmp_path).read_text()


def test_numbers_and_words_of_the_file_are_those_of_yaml_1_2(here: Path) -> None:
    space = "space: {pretrain.learning_rate: {low: 1e-4, high: 1E-2, log: true}, pretrain.weight_decay: [1e-4, 0.1]}"
    found = described(here, f"study: a\nmetric: m.json:x\ntrials: 2\n{space}").space
    assert (found["pretrain.learning_rate"].low, found["pretrain.learning_rate"].high) == (
        1e-4,
        1e-2,
    )
    assert found["pretrain.weight_decay"] == [1e-4, 0.1]
    assert all(type(value) is float for value in found["pretrain.weight_decay"])


@pytest.mark.parametrize(("text", "found"), [("", "nothing"), ("[]", "list")])
def test_a_file_without_keys_is_named(here: Path, text: str, found: str) -> None:
    with pytest.raises(
        UserError, match=rf"tuning.yaml: expected keys and their values, found {found}"
    ):
        described(here, text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("space: {pretrain.lerning_rate: [1]}", "space.pretrain.lerning_rate.*'lerning_rate'"),
        ("space: {pretrain.learning_rate: [-1]}", r"pretrain.learning_rate.*greater than 0"),
        ("space: {pretrain.learning_rate: {low: 2, high: 1}}", "low < high"),
        ("metric: val_loss", "metric"),
        ("studdy: x", "studdy"),
        ("space: {pretrain.learning_rate: []}", "space.pretrain.learning_rate.*at least 1 item"),
    ],
)
def test_a_mistake_in_the_file_is_named_before_anything_runs(
    here: Path, change: str, message: str
) -> None:
    lines: dict[str, Any] = {
        "study": "study: rates",
        "metric": "metric: a.json:b",
        "trials": "trials: 3",
    }
    lines["space"] = "space: {seed: [1, 2]}"
    lines[change.split(":")[0]] = change
    with pytest.raises(UserError, match=rf"(?s){message}"):
        described(here, "\n".join(lines.values()))
