"""Makes the helpers of this folder importable, and starts processes once for all tests that need some."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from processes import Pool, pool  # importable only now


@pytest.fixture(scope="session")
def devices() -> Iterator[Pool]:
    found = pool(3)
    yield found
    found.close()
