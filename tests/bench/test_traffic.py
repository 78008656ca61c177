"""What is sent, and what that leaves of many devices' speed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.traffic import H100, JOBS, efficiency, minimum_bytes, muon_bytes, sharded_bytes


def test_one_process_sends_nothing() -> None:
    assert minimum_bytes(1000, 1) == sharded_bytes(1000, 100, 1, 3, 2) == muon_bytes(1000, 1) == 0


def test_a_sharded_pass_in_float32_sends_half_as_much_again_as_the_minimum() -> None:
    for processes in (2, 8, 512):
        assert sharded_bytes(10**9, 0, processes, 1, 4) == pytest.approx(
            1.5 * minimum_bytes(10**9, processes)
        )
        assert sharded_bytes(10**9, 0, processes, 1, 2) == pytest.approx(
            minimum_bytes(10**9, processes)
        )


@pytest.mark.parametrize("job", JOBS, ids=[job.name for job in JOBS])
def test_more_devices_are_never_more_efficient_and_a_faster_network_never_less(job) -> None:
    found = [efficiency(job, count) for count in (1, 8, 64, 512)]
    assert found[0] == 1
    assert found == sorted(found, reverse=True)
    assert 0 < found[-1] < 1
    for count in (8, 64, 512):
        assert efficiency(
            job, count, replace(H100, network=2 * H100.network, inside=2 * H100.inside)
        ) >= efficiency(job, count)
        assert efficiency(job, count, replace(H100, network=1e30, inside=1e30, hop=0.0)) == 1


def test_a_hand_count_agrees() -> None:
    """124M at 512 devices: 1,024 tokens each, 1.9 ms of computing against 25 ms of gradients at 40
    GB/s.
    """
    job = JOBS[0]
    computing = 6 * 124e6 * 1024 / (989e12 * 0.4)
    exchange = 2 * 511 / 512 * 4 * 124e6 / 40e9 + 2 * 19 * 9 * 5e-6
    assert efficiency(job, 512) == pytest.approx(
        computing / (computing + exchange - 2 / 3 * computing), rel=1e-3
    )
