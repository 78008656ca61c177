"""A request to stop, and what comes after it."""

from __future__ import annotations

import os
import signal

import pytest

from llm.train.signals import StopRequest


@pytest.fixture(autouse=True)
def _handlers() -> object:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_second_sigterm_does_not_cut_off_the_end_of_a_stopped_stage() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal == signal.SIGTERM
    os.kill(os.getpid(), signal.SIGTERM)  # the default handler would end this process
    assert stop.signal == signal.SIGTERM


def test_without_a_request_the_handlers_are_those_of_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
