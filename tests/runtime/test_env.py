"""A number in an environment variable that is none is a message, not a traceback."""

from __future__ import annotations

import pytest

from llm.errors import UserError
from llm.runtime.env import number


@pytest.mark.parametrize("given", ["abc", "-1", "inf", "nan", "1e400"])
def test_what_is_no_such_number_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_STATE_SECONDS", given)
    expected = (
        f"LLM_STATE_SECONDS='{given}': expected seconds between checkpoints, 0 or more, such as 30"
    )
    with pytest.raises(UserError, match=expected):
        number("LLM_STATE_SECONDS", 30.0, "seconds between checkpoints")


def test_the_least_counts_and_nothing_given_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_TIMEOUT_SECONDS", "1")
    assert number("LLM_TIMEOUT_SECONDS", 600.0, "seconds", least=1) == 1.0
    monkeypatch.setenv("LLM_TIMEOUT_SECONDS", "0.5")
    with pytest.raises(UserError, match="1 or more, such as 600"):
        number("LLM_TIMEOUT_SECONDS", 600.0, "seconds", least=1)
    for nothing in ("", None):
        if nothing is None:
            monkeypatch.delenv("LLM_TIMEOUT_SECONDS")
        else:
            monkeypatch.setenv("LLM_TIMEOUT_SECONDS", nothing)
        assert number("LLM_TIMEOUT_SECONDS", 600.0, "seconds") == 600.0
