from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.train.workers import Workers


@pytest.fixture(scope="session")
def workers() -> Iterator[Workers]:
    """Four processes that train together as they are told; to start them takes longer than most
    jobs.
    """
    found = Workers()
    yield found
    found.close()
