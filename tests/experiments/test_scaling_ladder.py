"""The ladder runs, is taken up where it was killed, and says what its law predicted of the run held
back.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from llm import params
from llm.errors import UserError
from llm.evaluate.scaling_law import Law
from llm.experiments import scaling_ladder
from llm.runtime.io import read_json
from llm.train.trainer import Result, Trainer
from stages import scaling, tokenize
from tests.pipeline.workspace import TINY
from tests.stages.test_tokenize import documents, workspace

ROOT = Path(__file__).parents[2]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = workspace(
        tmp_path / "ladder",
        documents(),
        model=TINY["model"] | {"max_position_embeddings": 64},
        pretrain={
            "precision": "fp32",
            "compile": False,
            "sequence_length": 64,
            "batch_tokens": 256,
        },
        finetune={"sequence_length": 64, "batch_tokens": 320},
        mix={"max_tokens": 48},
        scaling={
            "depths": [1, 2],
            "tokens": [512, 1024, 2048],
            "held_back_depth": 3,
            "bootstrap": 20,
        },
    )
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_ROOT", str(root))
    tokenize.main()
    return root


def test_a_killed_ladder_keeps_its_finished_runs_and_ends_with_the_same_bytes(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    trained: list[str] = []
    run = Trainer.run

    def counted(trainer: Trainer) -> Result:
        if len(trained) == 3 and not kept:
            raise KeyboardInterrupt  # killed in the fourth run
        trained.append(
            f"{trainer.engine.model.config.num_hidden_layers} {trainer.steps * trainer.settings.batch_tokens}"
        )
        return run(trainer)

    kept: list[str] = []
    monkeypatch.setattr(Trainer, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        scaling.main()
    kept = trained.copy()
    scaling.main()
    assert len(trained) == 7  # six and the one held back, none of them twice
    assert len(set(trained)) == len(trained)
    whole = [path.read_bytes() for path in (prepared / "metrics").glob("scaling.*")]
    scaling.main()
    assert len(trained) == 7
    assert [path.read_bytes() for path in (prepared / "metrics").glob("scaling.*")] == whole
    assert not list(
        (prepared / ".state").glob("scaling-*/*/step-*")
    )  # the checkpoints are not needed any more
    told = capsys.readouterr().out
    assert re.search(r"scaling: 7 runs of [\d,]+ to [\d,]+ parameters, the last held back", told)
    assert "scaling: the held-back run" in told

    found = read_json("metrics/scaling.json")
    assert len(found["runs"]) == 6
    held, law = found["held_back"], found["law"]
    assert held["depth"] == 3
    assert held["error"] == pytest.approx(held["observed"] - held["predicted"]["value"])
    assert held["within"] == (
        held["predicted"]["low"] <= held["observed"] <= held["predicted"]["high"]
    )
    expected = law["E"]["value"] + sum(
        law[name]["value"] / held[unit] ** law[power]["value"]
        for name, unit, power in (("A", "parameters", "alpha"), ("B", "tokens", "beta"))
    )
    assert held["predicted"]["value"] == pytest.approx(expected)
    assert [best["flops"] / held["flops"] for best in found["optimal"]] == pytest.approx(
        list(scaling_ladder.LARGER)
    )
    assert "<svg" in (prepared / "metrics/scaling.svg").read_text()


@pytest.mark.parametrize(
    ("true", "determined"),
    [
        # Slow: its sibling is the law whose E is not determined.
        pytest.param((2.0, 200.0, 400.0, 0.35, 0.4), True, marks=pytest.mark.slow),
        ((0.0, 5, 25, 0.1, 0.15), False),
    ],
)
def test_what_is_told_of_larger_budgets_says_how_far_it_is(
    true: tuple[float, ...], determined: bool
) -> None:
    data = yaml.safe_load((ROOT / "params.yaml").read_text())
    data["scaling"] |= {"tokens": [400000, 4000000, 40000000, 400000000], "bootstrap": 20}
    p = params.parse(data)
    rungs = scaling_ladder.rungs(p, 8192)
    noise = np.random.default_rng(0).normal(1, 1e-3, len(rungs))
    losses = [
        float(Law(*true).loss(r.parameters, r.tokens)) * n
        for r, n in zip(rungs, noise, strict=True)
    ]
    found = scaling_ladder.conclude(p, rungs, losses, 8192)
    assert found["E_determined"] == determined
    largest = {key: max(run[key] for run in found["runs"]) for key in ("parameters", "tokens")}
    for best in found["optimal"]:
        assert best["beyond"] == {key: max(1, best[key] / largest[key]) for key in largest}
    assert max(found["optimal"][-1]["beyond"].values()) > 1
    told = scaling_ladder.describe(found)
    assert (
        any("E, which no model can fall below, is not determined" in line for line in told)
        != determined
    )
    assert ("times the ladder's" in told[2]) == (max(found["optimal"][0]["beyond"].values()) > 1)


def test_each_run_has_the_budget_and_the_rates_of_its_own_size_and_length(prepared: Path) -> None:
    rungs = scaling_ladder.rungs(params.load(), 600)
    assert [rung.held_back for rung in rungs] == [False] * 6 + [True]
    assert sorted(rung.flops for rung in rungs[:-1]) == [rung.flops for rung in rungs[:-1]]
    small, large = rungs[0].params, rungs[-1].params
    assert (small.model.num_hidden_layers, large.model.num_hidden_layers) == (1, 3)
    assert (small.model.hidden_size, large.model.hidden_size) == (64, 192)
    assert small.pretrain.learning_rate > large.pretrain.learning_rate
    assert small.pretrain.tokens == 512
    assert not small.pretrain.induction_init


def test_batches_grow_with_the_tokens_of_a_size_and_do_not_jump() -> None:
    p = params.load(ROOT / "params.yaml")
    rungs = scaling_ladder.rungs(p, p.tokenize.vocab_size)[:-1]
    for depth in p.scaling.depths:
        own = sorted(
            (rung.params.pretrain for rung in rungs if rung.depth == depth),
            key=lambda own: own.tokens,
        )
        for few, many in pairwise(own):
            expected = few.batch_tokens * (many.tokens / few.tokens) ** 0.3271
            assert (
                abs(many.batch_tokens - expected) < 1.2 * p.pretrain.sequence_length
            )  # both are whole sequences


def test_the_default_ladder_takes_less_than_half_an_hour_on_two_cores() -> None:
    p = params.load(ROOT / "params.yaml")
    flops = sum(rung.flops for rung in scaling_ladder.rungs(p, p.tokenize.vocab_size))
    assert (
        flops / 2e11 < 1800 * 0.8
    )  # at the 200 GFLOP/s that small models reach (docs/LOG.md), with room for the rest


def test_the_stage_is_outside_of_what_plain_repro_runs_and_names_all_code_that_it_runs() -> None:
    stage = yaml.safe_load((ROOT / "scaling" / "dvc.yaml").read_text())["stages"]["scaling"]
    assert "scaling" not in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert stage["wdir"] == ".."
    # `dvc pull`, `dvc checkout` and `dvc exp apply` would end with an error where a cached output
    # was never made.
    assert stage["outs"]
    assert all(options == {"cache": False} for out in stage["outs"] for options in out.values())
    assert all((ROOT / path).exists() for path in stage["deps"] if not path.startswith("data"))


def test_a_run_that_is_held_back_must_be_the_largest() -> None:
    data = yaml.safe_load((ROOT / "params.yaml").read_text())
    data["scaling"]["held_back_depth"] = 4
    with pytest.raises(UserError, match="must be above all depths"):
        params.parse(data)
