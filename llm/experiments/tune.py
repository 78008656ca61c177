"""`python -m llm tune tuning.yaml`: Optuna chooses params, DVC runs them, a file keeps the study.

A trial is the DVC experiment `<study>-<number>`, run in a temporary directory, with a history, a
cache and an MLflow run like any other. While it trains, its validation losses are read from the
stage's status file (`llm.runtime.heartbeat`). A trial that is worse than the median of the others
after as many tokens is stopped. The study is in `.state/tuning.db`. The same command resumes it; a
trial that was running when the tuner was killed resumes from its training state.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from llm.errors import UserError
from llm.experiments.revisions import Revision
from llm.experiments.tuning_file import Range, Tuning, current, load
from llm.report import tuning as report
from llm.report.format import setting, tuned
from llm.runtime.state_dirs import state_root
from llm.tracking import status

POLL = 0.5  # seconds between two checks of a running trial
BUSY = "Unable to acquire lock"  # DVC's message while another DVC has the lock
TAKEN = "conflicts with existing experiment"  # DVC's message if the name is taken
TRIES = 20  # for that lock, a second apart
FAILURES = 3  # failed trials in a row after which the search stops


def tune(path: Path) -> None:
    """Run trials until the study has as many as the file says, and write a page of them.

    Raises:
        UserError: the file is wrong, Optuna is missing, `FAILURES` trials in a row failed, or an
            experiment has the name of a trial.
    """
    tuning = load(path)
    study = open_study(tuning)
    from optuna.trial import TrialState

    _run_again(study)
    _begin_with_the_present(study, tuning)
    failed = 0
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    while (done := len(study.get_trials(deepcopy=False, states=ended))) < tuning.trials:
        trial = _ask(study, tuning)
        name = f"{tuning.study}-{trial.number}"
        values = {key: trial.params[key] for key in tuning.space}
        print(f"tune: {name} ({done + 1} of {tuning.trials}): {_shown(values)}", flush=True)
        value, why = run_trial(tuning, trial, name, values)
        if why == "failed":
            failed += 1
            study.tell(trial, state=TrialState.FAIL)
            if failed == FAILURES:
                raise UserError(
                    f"tune: {FAILURES} trials in a row failed; the messages above say why."
                )
            continue
        failed = 0
        if why == "pruned":
            study.tell(trial, state=TrialState.PRUNED)
            status.forget(name)
            print(f"tune: {name} stopped: above the median of the others", flush=True)
        else:
            study.tell(trial, value)
            print(f"tune: {name}: {tuning.metric} = {value:.5g}", flush=True)
        _write_page(study, tuning)
    best = study.best_trial
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    present = next((t for t in complete if t.user_attrs.get(report.PRESENT)), None)
    beside = f" (params.yaml: {present.value:.5g})" if present else ""
    print(
        f"tune: best is {tuning.study}-{best.number}, {best.value:.5g}{beside}: {_shown(best.params)}\n"
        f"tune: `dvc exp apply {tuning.study}-{best.number}` takes it over; {_write_page(study, tuning)} has all "
        "trials, and `dvc repro -sf report` takes them into the report"
    )


def open_study(tuning: Tuning) -> Any:
    """Return the study of this name, new or resumed.

    Raises:
        UserError: Optuna is not installed, or the study's trials are of another search.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError(
            "tune: Optuna is not installed: pip install -c constraints.txt -e '.[tune]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    database = state_root() / "tuning.db"
    database.parent.mkdir(parents=True, exist_ok=True)
    pruner: Any = optuna.pruners.NopPruner()
    if tuning.prune:
        pruner = optuna.pruners.MedianPruner(
            tuning.prune.startup_trials, tuning.prune.warmup_tokens
        )
    study = optuna.create_study(
        storage=f"sqlite:///{database}",
        study_name=tuning.study,
        direction=tuning.direction,
        pruner=pruner,
        load_if_exists=True,
    )
    asked = tuning.model_dump(mode="json", include={"metric", "direction", "targets"})
    for key, value in asked.items():
        original = study.user_attrs.get(key, value)
        if original != value:
            raise UserError(
                f"tune: the study {tuning.study!r} was begun with {key} {json.dumps(original)}, and now it is "
                f"{json.dumps(value)}: its trials cannot be compared with new ones. Give the study another name."
            )
        study.set_user_attr(key, value)
    # A resumed study must not draw its first trials again.
    study.sampler = optuna.samplers.TPESampler(
        seed=tuning.seed + len(study.get_trials(deepcopy=False))
    )
    return study


def _run_again(study: Any) -> None:
    """Queue the trials that were running when their tuner was killed."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)


def _begin_with_the_present(study: Any, tuning: Tuning) -> None:
    """Queue the values of params.yaml as the first trial of a new study, for comparison."""
    if study.get_trials(deepcopy=False):
        return
    values = current(tuning)
    searched = {key for key, each in _distributions(tuning).items() if not each.single()}
    study.enqueue_trial(values, user_attrs={report.PRESENT: values.keys() >= searched})


def _ask(study: Any, tuning: Tuning) -> Any:
    """Return the next trial; raise UserError if the study's trials are of another space."""
    try:
        return study.ask(_distributions(tuning))
    except ValueError as error:  # other choices than before, or another scale
        raise UserError(
            f"tune: the study {tuning.study!r} was begun with another space ({error}). Give the study another name."
        ) from None


def _distributions(tuning: Tuning) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    distributions: dict[str, Any] = {}
    for key, values in tuning.space.items():
        if not isinstance(values, Range):
            distributions[key] = CategoricalDistribution(values)
        elif isinstance(values.low, int) and isinstance(values.high, int):
            distributions[key] = IntDistribution(
                values.low, values.high, log=values.log, step=int(values.step or 1)
            )
        else:
            distributions[key] = FloatDistribution(
                values.low, values.high, log=values.log, step=values.step
            )
    return distributions


def run_trial(
    tuning: Tuning, trial: Any, name: str, values: dict[str, Any]
) -> tuple[float | None, str]:
    """Run a trial as a DVC experiment; return its metric, and `done`, `pruned` or `failed`."""
    # Without --force, which would run every stage again.
    command = ["dvc", "exp", "run", "--temp", "--name", name]
    for key, value in values.items():
        command += ["--set-param", f"{key}={setting(value)}"]
    log = state_root() / "tuning" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # DVC and its stages must come from this environment, even if no shell activated it.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    own = {"PATH": path, "LLM_STUDY": tuning.study, "LLM_TRIAL": str(trial.number)}
    for _ in range(TRIES):
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [*command, *tuning.targets],
                stdout=file,
                stderr=file,
                env={**os.environ, **own},
                start_new_session=True,
            )
        try:
            pruned = _watch(process, tuning, trial, name)
        except BaseException:
            _stop(process)
            raise
        if pruned:
            return None, "pruned"
        if process.returncode == 0:
            return _metric(tuning.metric, name), "done"
        text = log.read_text(encoding="utf-8", errors="replace")
        if TAKEN in text:
            raise UserError(
                f"tune: there is an experiment {name} already, which is not of this study: give the study another name "
                f"in its file, or remove the experiment (`dvc exp remove {name}`)."
            )
        if BUSY not in text:
            break
        time.sleep(1)
    print(f"tune: {name} failed; {log} ends:\n{text[-1500:]}", file=sys.stderr, flush=True)
    return None, "failed"


def _watch(process: subprocess.Popen, tuning: Tuning, trial: Any, name: str) -> bool:
    """Pass a trial's validation losses to Optuna until it ends; return True if Optuna stops it."""
    seen = -1
    while process.poll() is None:
        time.sleep(POLL)
        if tuning.prune is None:
            continue
        for tokens, loss in status.validation(name, tuning.prune.stage):
            if tokens > seen:
                seen = tokens
                # Optuna compares them in the study's direction; a loss is better low.
                trial.report(loss if tuning.direction == "minimize" else -loss, tokens)
                if trial.should_prune():
                    _stop(process)
                    return True
    return False


def _stop(process: subprocess.Popen) -> None:
    """End DVC; its stages then save their state and end too."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _metric(metric: str, experiment: str) -> float:
    """Return the value at `file.json:dotted.path` of an experiment.

    Raises:
        UserError: the experiment has no such file or path, or no number there.
    """
    path, _, keys = metric.partition(":")
    with Revision(experiment) as revision:
        value = revision.json(path)
    for key in keys.split("."):
        if not isinstance(value, dict) or key not in value:
            known = ", ".join(value) if isinstance(value, dict) else type(value).__name__
            raise UserError(
                f"metric {metric}: {path} of {experiment} has no {key!r} there; it has {known}."
            )
        value = value[key]
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(
            f"metric {metric}: expected a finite number, found {json.dumps(value)[:80]} in {experiment}."
        )
    return float(value)


def _shown(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {tuned(value)}" for key, value in values.items())


def _write_page(study: Any, tuning: Tuning) -> Path:
    return report.write(report.describe(study, tuning.study, tuning.metric))
