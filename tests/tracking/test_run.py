"""Tracking: which run, no point twice, nothing lost, never in the way."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from llm import params
from llm.errors import UserError
from llm.params import Params
from llm.runtime import heartbeat
from llm.runtime.timing import stage_timing
from llm.tracking import executions, mlflow_store, ui
from llm.tracking import run as tracking
from tests import warm
from tests.report import workspace

DEAD = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables; making them takes a second."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow_store.Store(f"sqlite:///{path}")
    return path


@pytest.fixture
def root(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a store of its own, which the first use copies from `database`."""

    def copied(store: mlflow_store.Store) -> None:
        path = Path(store.uri.removeprefix("sqlite:///"))
        if store.uri.startswith("sqlite:///") and path.parent.is_dir() and not path.exists():
            shutil.copyfile(database, path)

    monkeypatch.setattr(mlflow_store.Store, "_make_database", copied)
    workspace.minimal(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return tmp_path


def changed(p: Params, rate: float) -> Params:
    return p.model_copy(update={"pretrain": p.pretrain.model_copy(update={"learning_rate": rate})})


def runs() -> list[Any]:
    store = mlflow_store.Store(executions.store_uri())
    found = store.client.search_experiments(filter_string="name = 'llm'")
    return list(reversed(store.client.search_runs([e.experiment_id for e in found])))


def curve(run_id: str, key: str) -> list[tuple[int, float]]:
    points = mlflow_store.Store(executions.store_uri()).client.get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in points)


def test_stages_share_one_run_until_the_report_finishes_it(root: Path) -> None:
    p = params.load()
    ids = []
    for name in ("pretrain", "finetune"):
        with tracking.stage(p, name) as run:
            run.log_metrics({"loss": 1.5, "val_loss": None}, step=1)
            ids.append(run.run_id)
    ids.append(tracking.finish(p))
    with tracking.stage(p, "pretrain") as run:
        next_id = run.run_id
    assert len(set(ids)) == 1
    assert next_id not in ids
    first, second = runs()
    assert (first.info.status, second.info.status) == ("FINISHED", "RUNNING")
    assert set(first.data.metrics) == {"pretrain/loss", "finetune/loss"}
    assert first.data.params["pretrain.learning_rate"] == str(p.pretrain.learning_rate)
    assert first.data.params["finetune.lora.target_modules"].startswith('["q_proj"')
    assert first.info.artifact_uri.startswith((root / "mlartifacts").as_uri())


def test_a_change_of_params_begins_a_new_run_and_ends_the_old_one_as_killed(root: Path) -> None:
    p = params.load()
    with tracking.stage(p, "pretrain"):
        pass
    with tracking.stage(changed(p, 0.02), "pretrain"):
        pass
    old, new = runs()
    assert (old.info.status, new.info.status) == ("KILLED", "RUNNING")
    assert new.data.params["pretrain.learning_rate"] == "0.02"


def test_a_stage_that_begins_again_with_other_code_begins_a_new_run_and_another_stage_does_not(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = params.load()
    first = executions.current(p, "pretrain")["execution"]
    monkeypatch.setattr(executions.provenance, "code_digest", lambda: "other code")
    assert executions.current(p, "finetune")["execution"] == first
    assert executions.current(p, "pretrain")["execution"] != first


def test_runs_are_named_as_the_dvc_experiment_or_after_the_commit(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = params.load()
    assert executions.current(p, "mix")["name"] == "workspace", "outside of git"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], cwd=root, check=True)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    named = executions.current(changed(p, 0.02), "mix")
    assert named["name"] == f"workspace-{commit[:7]}"
    monkeypatch.setenv("DVC_EXP_NAME", "feral-dodo")
    other = executions.current(changed(p, 0.02), "mix")
    assert other["name"] == "feral-dodo"
    assert other["execution"] != named["execution"], (
        "a queued twin of the workspace has its own run"
    )
    assert executions.tags()["git.commit"] == commit
    assert executions.tags()["dvc.exp_name"] == "feral-dodo"


def test_a_temporary_workspace_lands_in_the_main_store(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = root / "temporary"
    workspace.minimal(elsewhere)
    monkeypatch.chdir(elsewhere)
    with tracking.stage(params.load(), "mix") as run:
        run.log_metrics({"train": 3})
    assert (root / "mlflow.db").is_file()
    assert [path.name for path in elsewhere.iterdir()] == ["params.yaml"]


def test_a_resumed_stage_joins_its_curve_without_double_points(root: Path) -> None:
    p = params.load()

    def die_at_step_7() -> None:
        with tracking.stage(p, "pretrain") as run:
            for step in range(1, 8):
                run.log_metrics({"loss": 10 - step}, step=step)
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        die_at_step_7()
    assert runs()[0].info.status == "FAILED"
    with tracking.stage(p, "pretrain") as run:  # resumes from the state of step 4
        for step in range(5, 11):
            run.log_metrics({"loss": 10 - step}, step=step)
    assert len(runs()) == 1
    assert runs()[0].info.status == "RUNNING"
    assert curve(run.run_id or "", "pretrain/loss") == [
        (step, 10.0 - step) for step in range(1, 11)
    ]


def test_a_process_that_is_killed_outright_leaves_a_run_that_can_be_resumed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An edit while tests run is not the point.
    monkeypatch.setattr(executions.provenance, "code_digest", lambda: "x")
    script = (
        "import os, time\nfrom llm import params\nfrom llm.tracking import run as tracking\n"
        "from llm.runtime import provenance\nprovenance.code_digest = lambda: 'x'\n"
        "with tracking.stage(params.load(), 'pretrain') as run:\n"
        "    run.log_metrics({'loss': 9.0}, step=1)\n"
        "    assert run.run_id\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(workspace.REPOSITORY)}
    done = subprocess.run([warm.python(), "-c", script], cwd=root, env=environment, check=False)
    assert done.returncode == -9
    with tracking.stage(params.load(), "pretrain") as run:
        run.log_metrics({"loss": 9.0}, step=1)
        run.log_metrics({"loss": 8.0}, step=2)
    assert len(runs()) == 1
    assert curve(run.run_id or "", "pretrain/loss") == [(1, 9.0), (2, 8.0)]


def test_a_dead_server_costs_one_warning_and_its_spool_is_replayed(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    p = params.load()
    uri = executions.store_uri()
    monkeypatch.setattr(executions, "store_uri", lambda: uri)
    good = mlflow_store.Store.__init__

    def refuse(self: mlflow_store.Store, address: str) -> None:
        good(self, DEAD)

    monkeypatch.setattr(mlflow_store.Store, "__init__", refuse)
    began = time.monotonic()
    with tracking.stage(p, "pretrain") as run:
        for step in range(100):
            run.log_metrics({"loss": float(step)}, step=step)
        assert run.run_id is None
        assert run.state["name"] == "workspace"
    assert time.monotonic() - began < 120  # MLflow alone would try for four minutes
    errors = capsys.readouterr().err
    assert errors.count("warning") == 1
    assert len(list((root / ".state" / "mlflow" / "spool").glob("*.jsonl"))) == 1
    monkeypatch.setattr(mlflow_store.Store, "__init__", good)
    with tracking.stage(p, "finetune") as run:
        run.log_metrics({"loss": 0.5}, step=1)
    assert capsys.readouterr().err.count("warning") == 0
    assert len(runs()) == 1
    assert curve(run.run_id or "", "pretrain/loss") == [(step, float(step)) for step in range(100)]
    assert curve(run.run_id or "", "finetune/loss") == [(1, 0.5)]
    assert not list((root / ".state" / "mlflow" / "spool").glob("*.jsonl"))


def test_what_a_full_disk_cut_off_does_not_spoil_what_is_spooled_after_it(root: Path) -> None:
    state = {"execution": "one", "store": "somewhere"}
    operations = [{"op": "tags", "tags": {"a": "b" * 100}}, {"op": "inputs"}]
    for before in ([], operations[:1]):
        if before:
            executions.spool(state, before)
        [size] = [path.stat().st_size for path in (root / ".state").rglob("*.jsonl")] or [0]
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                executions.spool(state, operations)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    executions.spool(state, operations[1:])
    [path] = (root / ".state").rglob("*.jsonl")
    assert executions.read_spool(path) == [state, *operations]


def test_an_unreachable_uri_does_not_stop_the_stage(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    with tracking.stage(params.load(), "tokenize") as run:
        run.log_metrics({"vocab_size": 4096})
    assert tracking.finish(params.load()) is None
    assert not (root / "mlflow.db").exists()
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 2, "one a stage"
    [path] = (root / ".state" / "mlflow" / "spool").glob("*.jsonl")
    operations = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert operations[0]["name"] == "workspace"
    assert [o for o in operations[1:] if o["op"] == "end"][-1]["status"] == "FINISHED"


def test_finish_adds_what_cached_stages_did_not_log_and_nothing_twice(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.full(root / "w")
    monkeypatch.chdir(root / "w")
    p = params.load()
    with tracking.stage(p, "pretrain") as run:
        run.log_metrics({"loss": 123.0}, step=7 * 8192)  # a live point stays as it was logged
    run_id = tracking.finish(p, ("metrics/evaluate.json",))
    assert run_id == run.run_id
    points = curve(run_id or "", "pretrain/loss")
    assert [tokens for tokens, _ in points] == [step * 8192 for step in range(1, 733)]
    assert dict(points)[7 * 8192] == 123.0
    assert curve(run_id or "", "pretrain/step") == [(step * 8192, step) for step in range(1, 733)]
    final = runs()[0].data.metrics
    assert final["evaluate/finetuned.classification.accuracy"] == 0.57
    assert (
        final["finetune/val_loss"]
        == json.loads(Path("metrics/finetune.json").read_text())["val_loss"]
    )
    assert final["mix/test"] == 1113
    assert {key for key in final if key.startswith("evaluate/")} == {
        "evaluate/finetuned.summarization.rougeLsum",
        "evaluate/finetuned.question_answering.f1",
        "evaluate/finetuned.classification.accuracy",
        "evaluate/finetuned.language_modeling.bits_per_byte",
        "evaluate/base.language_modeling.bits_per_byte",
    }
    assert len(final) < 60, "what charts can show: the rest lies beside them, as files"
    assert "null" not in runs()[0].data.params.values()
    inputs = (
        mlflow_store.Store(executions.store_uri())
        .client.get_run(run_id or "")
        .inputs.dataset_inputs
    )
    assert sorted(item.dataset.name for item in inputs) == sorted(("pretrain", *workspace.TASKS))
    assert runs()[0].data.tags["input/data/tokens"] == "md5:89e6c98d92887913cadf06b2adb97f26.dir"


@pytest.mark.parametrize(
    "names",
    [("one", "two"), pytest.param(("four", "one", "three", "two"), marks=pytest.mark.slow)],
    ids=len,
)
def test_processes_log_densely_to_a_store_that_does_not_exist(
    root: Path, names: tuple[str, ...]
) -> None:
    script = (
        "import sys\nfrom llm import params; from llm.tracking import run as tracking\n"
        "with tracking.stage(params.load(), 'pretrain') as run:\n"
        "    for step in range(1000):\n"
        "        run.log_metrics({'loss': 1.0 / (step + 1), 'rate': 0.1, 'norm': 1.0}, step=step)\n"
        "    assert run.run_id\n"
    )
    processes = []
    for name in names:
        environment = {**os.environ, "PYTHONPATH": str(workspace.REPOSITORY), "DVC_EXP_NAME": name}
        command = [warm.python(), "-c", script]
        processes.append(
            subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True)
        )
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "warning" not in errors.lower(), errors
    found = runs()
    assert sorted(run.info.run_name for run in found) == list(names)
    assert all(len(curve(run.info.run_id, "pretrain/loss")) == 1000 for run in found)


def test_logging_does_not_wait_for_the_store(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apply, released = mlflow_store.Store.apply, threading.Event()
    in_time = []

    def held(self: mlflow_store.Store, state: Any, operation: Any) -> None:
        in_time.append(released.wait(120))
        apply(self, state, operation)

    monkeypatch.setattr(mlflow_store.Store, "apply", held)
    with tracking.stage(params.load(), "pretrain") as run:
        assert run.run_id  # the store has the first operation now
        for step in range(2000):
            run.log_metrics({"loss": 1.0, "learning_rate": 0.1, "grad_norm": 2.0}, step=step)
        released.set()
    assert all(in_time)
    assert len(curve(run.run_id, "pretrain/loss")) == 2000


def test_a_value_that_mlflow_refuses_does_not_block_the_rest(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracking.stage(params.load(), "mix") as run:
        run.put({"op": "tags", "tags": {"": "a tag without a name"}})
        run.log_metrics(
            {"odd name (%) é": 1.0, "base/f1": 2.0, "init": "random", "tied": True, "nothing": None}
        )
    assert "refuses tags" in capsys.readouterr().err
    assert runs()[0].data.metrics == {"mix/odd name ___ é": 1.0, "mix/base.f1": 2.0}
    assert not list((root / ".state" / "mlflow" / "spool").glob("*.jsonl"))


def models(root: Path, count: int) -> list[Path]:
    """Directories of tiny models that differ."""
    import torch

    from llm.model.config import Config
    from llm.model.hf_files import save_model
    from llm.model.transformer import Transformer
    from llm.tokenizer.bpe import Tokenizer

    tokenizer = Tokenizer.train(["Return the sum of all elements along an axis."] * 20, 300)
    (root / "tokenizer").mkdir()
    tokenizer.save(root / "tokenizer")
    config = Config(
        tokenizer.vocab_size, 32, 64, 2, 2, 1, 16, 64, 10000.0, 1e-6, True, qk_norm=True
    )
    found = [root / "models" / str(number) for number in range(1, count + 1)]
    for seed, directory in enumerate(found):
        torch.manual_seed(seed)
        directory.mkdir(parents=True)
        save_model(Transformer(config), directory, root / "tokenizer", tokenizer.eos_id)
    return found


def test_the_final_model_is_registered_and_answers_and_the_better_one_is_champion(
    root: Path,
) -> None:
    import mlflow

    from llm.generation.generate import generate
    from llm.model.hf_files import load_model
    from llm.tokenizer.bpe import Tokenizer

    for number, (directory, score) in enumerate(zip(models(root, 3), (0.5, 0.7, 0.6), strict=True)):
        p = changed(params.load(), 0.001 * (number + 1))
        tracking.finish(p, model=str(directory), score=mlflow_store.Score(score, "a", 300))
    store = mlflow_store.Store(executions.store_uri())
    champion = store.client.get_model_version_by_alias("llm", "champion")
    assert [int(champion.version), champion.tags["score"], champion.run_id] == [
        2,
        "0.7",
        runs()[1].info.run_id,
    ]
    mlflow.set_tracking_uri(executions.store_uri())
    served = mlflow.pyfunc.load_model("models:/llm@champion")
    tokenizer = Tokenizer.load(root / "models" / "2")
    ids = generate(
        load_model(root / "models" / "2"), [tokenizer.chat_ids("Return")], 5, tokenizer.eos_id
    )
    assert served.predict(["Return"], params={"max_new_tokens": 5}) == [
        tokenizer.decode_response(ids[0])
    ]


def test_the_same_bytes_are_registered_once_and_fewer_examples_make_no_champion(root: Path) -> None:
    def finish(directory: Path, score: float, tests: str, examples: int) -> tuple[int, int]:
        """How many versions there are afterwards, and which is the champion."""
        scored = mlflow_store.Score(score, tests, examples)
        tracking.finish(
            changed(params.load(), 0.001 * len(seen)), model=str(directory), score=scored
        )
        seen.append(score)
        client = mlflow_store.Store(executions.store_uri()).client
        versions = client.search_model_versions("name = 'llm'")
        return len(versions), int(client.get_model_version_by_alias("llm", "champion").version)

    seen: list[float] = [0.0]
    one, two, three = models(root, 3)
    assert finish(one, 0.5, "300 examples", 300) == (1, 1)
    assert finish(two, 0.9, "60 examples", 60) == (2, 1), "better, but on fewer examples"
    assert finish(two, 0.9, "60 examples", 60) == (2, 1), "the same bytes"
    assert finish(two, 0.6, "300 examples", 300) == (2, 2), (
        "the same bytes, scored on the champion's examples"
    )
    assert finish(three, 0.4, "others", 300) == (3, 3), "as many other examples: the newer one"
    assert finish(one, 0.3, "others", 300) == (3, 3)
    named = [run.data.tags[mlflow_store.MODEL] for run in runs()]
    assert [name.removeprefix("models:/llm/") for name in named] == ["1", "2", "2", "2", "3", "1"]
    assert len(list((root / "mlartifacts" / "models").iterdir())) == 3


def test_a_repository_that_was_copied_writes_to_its_own_place_and_keeps_what_it_had(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    (directory,) = models(root, 1)
    tracking.finish(params.load(), ("params.yaml",), model=str(directory))
    os.environ.pop(
        "MLFLOW_TRACKING_URI"
    )  # MLflow's own, set where a model is logged; each stage is a process
    with pytest.MonkeyPatch.context() as patch:  # what the store does not take is spooled
        patch.setattr(mlflow_store.Store, "open", lambda *_, **__: 1 / 0)
        with tracking.stage(params.load(), "pretrain") as run:
            run.log_metrics({"loss": 1.0}, step=8)
    before = sorted(path for path in (root / "mlartifacts").rglob("*") if path.is_file())
    database = (root / "mlflow.db").read_bytes()
    copy = tmp_path / "copy of it"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns(copy.name))
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(copy))
    run_id = tracking.finish(params.load(), ("params.yaml",), model="models/1")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    first, second = runs()
    assert curve(run_id or "", "pretrain/loss") == [(8, 1.0)], "the spool came along"
    for each in (first, second):
        assert each.info.artifact_uri.startswith((copy / "mlartifacts").as_uri())
        assert (copy / "mlartifacts" / each.info.run_id / "artifacts" / "params.yaml").is_file()
    mlflow.set_tracking_uri(executions.store_uri())
    shutil.rmtree(root / "mlartifacts" / "models")  # the model is read from the copy
    assert mlflow.pyfunc.load_model("models:/llm@champion").metadata.model_uuid
    assert (
        len(mlflow_store.Store(executions.store_uri()).client.search_model_versions("name = 'llm'"))
        == 1
    )
    assert [path for path in before if "models" not in path.parts[len(root.parts) :]] == sorted(
        path for path in (root / "mlartifacts").rglob("*") if path.is_file()
    )
    assert (root / "mlflow.db").read_bytes() == database


def test_a_link_to_the_repository_moves_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking.finish(params.load())
    (tmp_path / "link").symlink_to(root)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "link"))
    assert runs()[0].info.artifact_uri.startswith((root / "mlartifacts").as_uri())


def test_the_ui_names_the_remedy_where_there_is_no_store(root: Path) -> None:
    with pytest.raises(UserError, match="make repro"):
        ui.start()
    assert not (root / "mlflow.db").exists()


def test_the_ui_takes_a_free_port_and_links_to_the_runs() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind((ui.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert ui.free_port(port) != port
    assert "compareRunsMode=CHART" in ui.link("http://127.0.0.1:5000/", "1")
    assert ui.link("http://h/", "1").startswith(
        "http://h/#/experiments/1/runs?workflowType=machine_learning"
    )


def test_how_a_stage_goes_is_a_tag_of_the_run(root: Path) -> None:
    with stage_timing("pretrain"), tracking.stage(params.load(), "pretrain") as run:
        shown = heartbeat.current()
        assert shown is not None
        assert run.run_id
        shown.trouble = "diverging: the loss rose"
        shown.report()
    with stage_timing("finetune"), tracking.stage(params.load(), "finetune"):
        pass
    (found,) = runs()
    assert found.data.tags["llm.health/pretrain"] == "diverging: the loss rose"
    assert found.data.tags["llm.health/finetune"] == "ok"
