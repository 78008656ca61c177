"""What the processes compute together."""

from __future__ import annotations

import pytest

from llm.train.checkpoint.local import State
from llm.train.trainer import Trainer
from tests.model.conftest import random_model
from tests.train.test_trainer import Sequences, Silent, settings


@pytest.mark.parametrize("seed", [20_261_121, 2**63 - 1])
def test_every_seed_that_params_allow_trains(seed: int) -> None:
    data, state = Sequences(), State("pretrain", {"seed": seed})
    with state.locked():
        result = Trainer(
            random_model(0).train(), data, data, data, settings(), 2, seed, state, Silent()
        ).run()
    assert result.steps == len(result.history) == 2
