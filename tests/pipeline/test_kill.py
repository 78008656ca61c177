"""Kill it anywhere: the outputs of a killed and resumed run are those of a run that was never
killed, byte for byte.

`make torture N=200` runs as many kills as one likes.
"""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.pipeline.torture import MOMENTS, STAGES, Victims, summary, torture

KILLS = int(
    os.environ.get("LLM_KILLS", "50")
)  # that hit; half of them in pretrain, half in finetune
SEED = int(os.environ.get("LLM_KILLS_SEED", "0"))  # other moments
OUTPUT = {
    "pretrain": "stages.pretrain.main",
    "finetune": "llm.train.finetune_methods.write",
}  # what makes the outputs whole

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")


def test_stages_killed_anywhere_end_with_the_same_bytes(
    victims: dict[str, Victims], capsys: pytest.CaptureFixture
) -> None:
    half = -(-KILLS // 2)
    with ThreadPoolExecutor(2) as pool:
        futures = {
            stage: pool.submit(torture, stage, victims[stage], half, SEED) for stage in STAGES
        }
        found = {stage: future.result() for stage, future in futures.items()}
    hits = [hit for stage in STAGES for hit in found[stage][0]]
    differences = [difference for stage in STAGES for difference in found[stage][1]]
    with capsys.disabled():
        print(f"\n{summary(hits, differences)}")
    assert differences == []
    assert len(hits) >= KILLS
    for stage in STAGES if KILLS >= 50 else ():  # then each kind of moment has had its turn
        functions = {hit["function"] for hit in found[stage][0]}
        assert {
            "llm.train.checkpoint.local.State._write",
            "llm.model.hf_files.save_model",
            OUTPUT[stage],
        } <= functions
        assert {(hit["point"], hit["when"]) for hit in found[stage][0]} >= {
            *MOMENTS,
            ("time", "at"),
        }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stage", STAGES)
def test_a_signal_saves_the_step_and_says_how_to_continue(
    stage: str, number: signal.Signals, victims: dict[str, Victims]
) -> None:
    victim = victims[stage]
    victim.forget(stage)
    victim.run(stage)
    expected = victim.digests(stage)
    victim.forget(stage)
    # In the writing of the fifth checkpoint, which goes on beside the training.
    stopped = victim.run(
        stage, {"point": "save_file", "nth": 5, "when": "before", "signal": number}, fails=True
    )
    assert stopped["status"] == 1
    step = victim.checkpoint(stage)
    assert 5 <= step < 16
    assert f"{stage}: stopped after step {step}; `dvc repro` continues from there" in stopped["log"]
    assert "Traceback" not in stopped["log"]
    assert f"resumes after step {step} " in victim.run(stage)["log"]
    assert victim.digests(stage) == expected
