"""A colleague gets data, models, scores and experiments from the remotes, and trains nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.pipeline.workspace import ROOT, run
from tests.servers import S3

METRICS = ("tokenize", "pretrain", "mix", "finetune", "evaluate", "contamination", "summary")


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """The environment in which s3://bucket exists."""
    pytest.importorskip("moto")
    pytest.importorskip("dvc_s3")
    import boto3

    server = S3()
    keys = {
        "aws_access_key_id": "key",
        "aws_secret_access_key": "secret",
        "region_name": "us-east-1",
    }
    boto3.client("s3", endpoint_url=server.url, **keys).create_bucket(Bucket="bucket")
    yield {**S3.KEYS, "AWS_ENDPOINT_URL": server.url}
    server.stop()


def author(first: Path, root: Path, remote: str) -> Path:
    """A clone of what `first` committed, with its cache, that has a remote."""
    run(first, "git", "clone", "-q", str(first), str(root))
    run(root, "dvc", "cache", "dir", "--local", str(first / ".dvc/cache"))
    run(root, "dvc", "remote", "add", "--default", "storage", remote)
    run(root, "git", "commit", "-qam", "a remote")
    return root


def test_pull_and_repro_bring_everything_from_an_s3_server_and_run_nothing(
    first: Path, s3: dict[str, str], tmp_path: Path
) -> None:
    origin = author(first, tmp_path / "author", "s3://bucket/llm")
    run(origin, "dvc", "push", "--run-cache", **s3)
    colleague = tmp_path / "colleague"
    run(tmp_path, "git", "clone", "-q", str(origin), str(colleague))
    assert not (colleague / "models").exists()
    run(colleague, "dvc", "pull", **s3)
    done = run(colleague, "dvc", "repro", "--pull", **s3)
    assert "Running stage" not in done.stdout
    assert "Data and pipelines are up to date" in done.stdout
    for name in (
        "models/finetuned/model.safetensors",
        "metrics/scores.csv",
        "metrics/report/report.html",
    ):
        assert (colleague / name).is_file(), name
    assert run(colleague, "git", "status", "--porcelain").stdout == ""


def test_without_the_lock_file_the_run_cache_of_a_directory_knows_every_stage(
    first: Path, tmp_path: Path
) -> None:
    """What a colleague asks for may have been run by another, in an experiment that nobody
    committed.
    """
    origin = author(first, tmp_path / "author", str(tmp_path / "storage"))
    run(origin, "dvc", "push", "--run-cache")
    colleague = tmp_path / "colleague"
    run(tmp_path, "git", "clone", "-q", str(origin), str(colleague))
    (colleague / "dvc.lock").unlink()
    shutil.rmtree(colleague / "metrics")
    done = run(colleague, "dvc", "repro", "--pull")
    assert "Running stage" not in done.stdout
    assert done.stdout.count("is cached - skipping run") == 7
    assert (colleague / "dvc.lock").read_bytes() == (origin / "dvc.lock").read_bytes()
    run(origin, "dvc", "checkout")
    for name in METRICS:
        assert (colleague / f"metrics/{name}.json").read_bytes() == (
            origin / f"metrics/{name}.json"
        ).read_bytes()


def test_an_experiment_that_is_older_than_the_remote_is_pushed_with_its_results_and_applied_elsewhere(
    first: Path, small_rank: CompletedProcess[str], tmp_path: Path
) -> None:
    """DVC pushes and pulls an experiment with the configuration of its commit, but for
    .dvc/config.local.
    """
    storage, colleague = tmp_path / "storage", tmp_path / "colleague"
    origin = author(
        first, tmp_path / "author", str(storage)
    )  # the remote is a commit after the experiment
    run(tmp_path, "git", "clone", "-q", "--bare", str(origin), "hub.git")
    [command] = re.findall(
        r"^(dvc remote add --local .*?)(?:  +#.*)?$", (ROOT / "docs/SHARING.md").read_text(), re.M
    )
    run(
        first, "dvc", "remote", "add", "storage", str(storage)
    )  # as committed since; taken back below
    run(first, "bash", "-c", command)
    run(first, "git", "checkout", "-q", ".dvc/config")
    run(first, "dvc", "exp", "push", str(tmp_path / "hub.git"), "small-rank")
    (first / ".dvc/config.local").unlink()
    assert len([path for path in storage.rglob("*") if path.is_file()]) > 20
    run(tmp_path, "git", "clone", "-q", str(tmp_path / "hub.git"), str(colleague))
    run(colleague, "bash", "-c", command)
    run(colleague, "dvc", "exp", "pull", "origin", "small-rank")
    run(colleague, "dvc", "exp", "apply", "small-rank")
    done = run(colleague, "dvc", "repro", "--pull")
    assert "Running stage" not in done.stdout
    assert "Data and pipelines are up to date" in done.stdout
    assert "r: 2" in (colleague / "params.yaml").read_text()
    for name in ("models/finetuned/model.safetensors", "metrics/report/report.html"):
        assert (colleague / name).read_bytes() == (first / name).read_bytes(), name
