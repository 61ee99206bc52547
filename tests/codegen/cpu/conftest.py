"""Kernels of the CPU back end are kept in one place for a whole run, so that each is built once."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where kernels are kept."""
    shared = os.environ.get("EINFUSE_TEST_CACHE")
    return Path(shared) / "cpu-tests" if shared else tmp_path_factory.mktemp("kernels")
