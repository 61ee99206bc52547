"""A kernel whose compiler reports spilled registers gives way to one with smaller tiles, within the call: what it wrote is not believed."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from narrowed import only

import einfuse
from einfuse.ir import Scalar
from einfuse.runtime import backends


def test_hazard_3_a_kernel_that_spills_gets_smaller_tiles_within_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    torch_backend = backends.BACKENDS["torch"]

    @dataclasses.dataclass(frozen=True)
    class Spilling(backends.Usual):
        name: backends.BackendName = "torch"
        identity: str = "torch that spills"

        def tilings(self, storage: str, width: int, backward: bool) -> backends.Tilings:
            return ((64, 64), (32, 64), (32, 32))

        def prepared(self, plan: einfuse.codegen.KernelPlan, small: Mapping[str, int]) -> einfuse.codegen.KernelPlan:
            return plan

        def emit(self, plan: einfuse.codegen.KernelPlan) -> str:
            return torch_backend.emit(plan)

        def build(self, plan: einfuse.codegen.KernelPlan, source: str, folder: Path) -> backends.Kernel:
            kernel = torch_backend.build(plan, source, folder)
            assert plan.tile is not None
            tile = plan.tile.block

            def run(tensors: Mapping[str, torch.Tensor], params: Mapping[str, Scalar], sizes: Mapping[str, int]) -> int:
                kernel(tensors, params, sizes)
                used.append(tile)
                if tile > 32:
                    tensors["o"].fill_(torch.nan)
                return 7 if tile > 32 else 0

            return run

    monkeypatch.setitem(backends.BACKENDS, "torch", Spilling())
    attn = einfuse.compile("full", backend="torch")
    q, k, v = (torch.randn(1, 2, 70, 24) for _ in range(3))  # a width that no other test has: built kernels are shared
    first, second, third = (only(attn(q, k, v)) for _ in range(3))
    assert used == [64, 32, 32, 32], "the first rung spills, the second does not and stays"
    torch.testing.assert_close(first.double(), attn.reference(q=q, k=k, v=v), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(second, third, rtol=0, atol=0)
