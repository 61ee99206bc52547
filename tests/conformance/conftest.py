"""What every back end passes before anything else: plans in, tensors out. A new one is in `BACKENDS`, and so in every test here."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from plans import Runner

from einfuse.codegen import cpu
from einfuse.codegen.plan import KernelPlan, verify
from einfuse.runtime.backends import BACKENDS


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where kernels are kept: one place for the whole run, so that each is built once."""
    shared = os.environ.get("EINFUSE_TEST_CACHE")
    return Path(shared) / "conformance" if shared else tmp_path_factory.mktemp("kernels")


@pytest.fixture(params=BACKENDS)
def run(request: pytest.FixtureRequest, folder: Path) -> Runner:
    """Checks a plan against the rules of plans, and runs it on a back end."""
    if request.param == "pallas":
        pytest.importorskip("jax")
    backend = BACKENDS[request.param]

    def runner(
        plan: KernelPlan, tensors: Mapping[str, torch.Tensor], params: Mapping[str, float], sizes: Mapping[str, int]
    ) -> None:
        verify(plan)
        source = backend.emit(plan)
        # the back end itself would run a kernel that cannot be built as torch code
        kernel = cpu.build(plan, source, folder, ["-O1"]) if backend.name == "cpu" else backend.build(plan, source, folder)
        kernel(tensors, params, sizes)

    return runner
