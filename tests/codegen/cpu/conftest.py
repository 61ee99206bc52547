"""Kernels of the CPU back ends; compiled without much optimisation, because tests build many and run each for microseconds."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from einfuse.codegen import cpu
from einfuse.codegen import torch as tiled
from einfuse.codegen.plan import KernelPlan

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `import plans`

Runner = Callable[[KernelPlan, Mapping[str, torch.Tensor], Mapping[str, float], Mapping[str, int]], None]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where kernels are kept: one place for the whole run, so that each is built once."""
    shared = os.environ.get("EINFUSE_TEST_CACHE")
    return Path(shared) / "cpu-tests" if shared else tmp_path_factory.mktemp("kernels")


@pytest.fixture(params=["cpu", "torch"])
def run(request: pytest.FixtureRequest, folder: Path) -> Runner:
    """Runs a plan on either back end."""

    def on_cpu(plan, tensors, params, sizes):
        cpu.build(plan, cpu.emit(plan), folder, ["-O1"])(tensors, params, sizes)

    def on_torch(plan, tensors, params, sizes):
        tiled.build(plan, tiled.emit(plan), folder)(tensors, params, sizes)

    return on_cpu if request.param == "cpu" else on_torch
