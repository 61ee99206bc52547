"""What every test relies on: Triton's interpreter, a cache of this run alone, and golden texts.

`golden(text)` compares with tests/golden/<file>/<test>.txt; `pytest --update-golden` writes it, and a golden file that no test
reads is an error.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A run is right or wrong, not lucky: what is drawn is drawn alike on every machine. `--hypothesis-profile=fresh` draws anew.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("fresh", derandomize=False, deadline=None, print_blob=True)
settings.load_profile("steady")

WORKER = os.environ.get("PYTEST_XDIST_WORKER")

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported: before any test module is
os.environ.setdefault("EINFUSE_POISON", "1")  # what kernels write starts as NaN: read when einfuse is imported
# Kernels of Pallas run once each: what takes the time is to compile them. Read when JAX is first used.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")
if WORKER:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker a core
if (
    "EINFUSE_TEST_CACHE" not in os.environ
):  # set by the first process of a run, inherited by its workers: kernels are built once
    os.environ["EINFUSE_TEST_CACHE"] = tempfile.mkdtemp(prefix="einfuse-tests-")
    os.environ["EINFUSE_TEST_CACHE_OWNER"] = str(os.getpid())
os.environ["EINFUSE_CACHE"] = os.environ["EINFUSE_TEST_CACHE"]
os.environ["TRITON_CACHE_DIR"] = os.environ["EINFUSE_TEST_CACHE"] + "/triton"

if shutil.which("gcc") and shutil.which("g++"):
    os.environ.setdefault("CXX", "gcc")  # links no C++ library, of which kernels need nothing: a tenth of the time of a build
gc.set_threshold(100_000, 20, 100)  # imports make objects that stay, and Triton's interpreter makes many that do not

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden"
HELPERS = sorted(p for p in TESTS.rglob("*.py") if not p.stem.startswith("test_") and p.stem != "conftest")
"""Modules that tests import by their bare names, which are therefore unique (tests/test_layout.py)."""
sys.path[:0] = sorted({str(p.parent) for p in HELPERS if p.parent != TESTS})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden texts instead of comparing with them")


def pytest_configure(config: pytest.Config) -> None:
    if WORKER:
        import torch

        torch.set_num_threads(1)


def pytest_unconfigure(config: pytest.Config) -> None:
    if os.environ.get("EINFUSE_TEST_CACHE_OWNER") == str(os.getpid()):
        shutil.rmtree(os.environ["EINFUSE_TEST_CACHE"], ignore_errors=True)


def golden_path(item: pytest.Item) -> Path:
    name = item.name.replace("/", "-")
    return GOLDEN / item.path.relative_to(TESTS).with_suffix("") / f"{name}.txt"


@pytest.hookimpl(tryfirst=True)  # before -k and -m drop items
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if any("::" in arg for arg in config.args):
        return  # single tests were asked for: the others of their file may own the other texts
    wanted = {golden_path(item) for item in items}
    orphans = sorted(str(p) for folder in {p.parent for p in wanted} for p in folder.glob("*.txt") if p not in wanted)
    if orphans:
        raise pytest.UsageError(f"golden files that no test reads: {', '.join(orphans)}")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], None]:
    path = golden_path(request.node)

    def check(text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"no {path}: run `pytest --update-golden` and review what it wrote"
        assert text == path.read_text()

    return check


@pytest.fixture(autouse=True)
def _compiled_fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU kernels are compiled three times as fast, for the same instruction sets: wrong code is wrong without optimisation too.

    Tests marked `optimised` are those whose results an optimiser can change: bits, roundings, functions of vectors.
    """
    if request.node.get_closest_marker("optimised") is None:
        monkeypatch.setenv("CXXFLAGS", f"{os.environ.get('CXXFLAGS', '')} -O0")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> Iterator[None]:
    """Tests that draw inputs draw the same ones whatever ran before them."""
    import torch

    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.random.set_rng_state(state)


@pytest.fixture(autouse=True, scope="session")
def _triton_is_quick() -> None:
    """Triton's interpreter without its repetitions, where a test runs kernels in it."""
    with contextlib.suppress(ImportError):  # a system without Triton
        importlib.import_module("quick_interpreter").install()


@pytest.fixture(autouse=True, scope="session")
def _masks_are_looked_at() -> None:
    """Calls of tests are short: without this, none would skip a tile for what a table holds."""
    from einfuse.runtime.launch import LOOK

    LOOK.update(dict.fromkeys(LOOK, 0))
