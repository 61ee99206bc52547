"""Starts processes once for all tests that need some."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from processes import Pool, pool


@pytest.fixture(scope="session")
def devices() -> Iterator[Pool]:
    found = pool(3)
    yield found
    found.close()
