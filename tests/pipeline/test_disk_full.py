"""A full disk: during a checkpoint it costs one warning, at the outputs one clear error, and never
a byte.

Calls are refused as the kernel and the libraries would refuse them; two tests let the kernel do it
(`ulimit -f`)."""

from __future__ import annotations

import sys

import pytest

from tests.pipeline.torture import OUTPUTS, Victims

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")

EVER = 10**9
STEPS = 16  # of either stage, in the tests' configuration


# Slow: both stages write checkpoints and outputs with the same code; `pretrain` is the sibling.
@pytest.fixture(
    scope="module", params=["pretrain", pytest.param("finetune", marks=pytest.mark.slow)]
)
def stage(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def expected(stage: str, victims: dict[str, Victims]) -> dict[str, str]:
    """The digests of a run with room enough, which is forgotten."""
    victims[stage].forget(stage)
    assert len(victims[stage].run(stage)["trace"]) > 100
    digests = victims[stage].digests(stage)
    victims[stage].forget(stage)
    return digests


def warnings(log: str) -> list[str]:
    return [
        line for line in log.splitlines() if line.startswith("warning:") and "MLflow" not in line
    ]


# A checkpoint asks for room eleven times; the second one's first request is the 12th after the four
# of its directory.
@pytest.mark.parametrize("first", [16, 17, 19, 24], ids=["mkdir", "tensors", "meta", "pointer"])
def test_a_disk_that_fills_during_a_checkpoint_costs_one_warning(
    first: int, stage: str, victims: dict[str, Victims], expected: dict[str, str]
) -> None:
    victim = victims[stage]
    victim.forget(stage)
    log = victim.run(stage, full={"path": f"/.state/{stage}/", "first": first, "calls": EVER})[
        "log"
    ]
    (warning,) = warnings(log)
    assert "no checkpoint of step" in warning
    assert "No space left on device" in warning
    assert "Training continues; the last complete one stays" in warning
    assert "Traceback" not in log
    assert 1 <= victim.checkpoint(stage) < 4
    assert victim.digests(stage) == expected
    # What there is of a state is good to continue from.
    assert f"resumes after step {victim.checkpoint(stage)} of {STEPS}" in victim.run(stage)["log"]
    assert victim.digests(stage) == expected


def test_a_disk_that_is_full_for_a_while_has_its_last_checkpoint(
    stage: str, victims: dict[str, Victims], expected: dict[str, str]
) -> None:
    victim = victims[stage]
    victim.forget(stage)
    log = victim.run(stage, full={"path": f"/.state/{stage}/", "first": 30, "calls": 12})["log"]
    assert len(warnings(log)) == 1
    assert victim.checkpoint(stage) == STEPS
    assert victim.digests(stage) == expected


def test_a_disk_full_at_an_output_is_an_error_that_names_it_and_the_rerun_mends_it(
    stage: str, victims: dict[str, Victims], expected: dict[str, str]
) -> None:
    victim = victims[stage]
    victim.forget(stage)
    for output in OUTPUTS[stage]:
        folder, _, name = output.partition("/")
        for first in (
            (1, 2, 4) if folder == "models" else (1,)
        ):  # the directory, the weights, config.json; the file
            full = {"path": f"{folder}/.{name}.", "first": first, "calls": EVER}
            failed = victim.run(stage, full=full, fails=True)
            assert failed["status"] == 1
            assert failed["log"].count("error:") == 1
            assert (
                f"error: {output} could not be written (No space left on device)" in failed["log"]
            )
            assert "Free some space and rerun `dvc repro`" in failed["log"]
            assert "Traceback" not in failed["log"]
            assert victim.checkpoint(stage) == STEPS
            assert not (victim.root / output).exists()
        assert f"resumes after step {STEPS} of {STEPS}" in victim.run(stage)["log"]
        assert victim.digests(stage) == expected
        victim.forget_outputs(stage)


def test_a_disk_full_before_the_first_step_is_an_error_that_names_the_state(
    stage: str, victims: dict[str, Victims]
) -> None:
    victim = victims[stage]
    victim.forget(stage)
    failed = victim.run(
        stage, full={"path": f"/.state/{stage}", "first": 1, "calls": EVER}, fails=True
    )
    assert failed["status"] == 1
    assert f"error: {victim.root}/.state/{stage}" in failed["log"]
    assert "Traceback" not in failed["log"]


def test_files_that_the_kernel_refuses_are_told_as_well(
    stage: str, victims: dict[str, Victims], expected: dict[str, str]
) -> None:
    victim = victims[stage]
    weights = OUTPUTS[stage][0 if stage == "pretrain" else 1] + "/model.safetensors"
    # MLflow's database does not fit either: its warning is the second one, and the spool keeps the
    # metrics.
    if stage == "pretrain":  # its checkpoints are larger than its model
        victim.run(stage)
        limit = (victim.root / weights).stat().st_size + 50_000
        victim.forget(stage)
        log = victim.run(stage, full={"limit": limit})["log"]
        assert len(warnings(log)) == 1
        assert "File too large" in warnings(log)[0]
        assert victim.checkpoint(stage) == 0
        assert victim.digests(stage) == expected
    victim.forget(stage)
    failed = victim.run(stage, full={"limit": 200_000}, fails=True)
    assert (
        f"error: {weights.removesuffix('/model.safetensors')} could not be written (File too large)"
        in failed["log"]
    )
    assert "Traceback" not in failed["log"]
    victim.run(stage)
    assert victim.digests(stage) == expected
