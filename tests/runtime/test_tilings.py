"""A kernel that spills registers is replaced by one with smaller tiles; results are the same."""

import dataclasses
from collections.abc import Mapping

import pytest
import torch

import einfuse
from einfuse.codegen import triton
from einfuse.runtime import backends


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("storage", ["bf16", "f32"])
def test_tilings_shrink(storage: str, backward: bool, target: backends.Target) -> None:
    found = triton.tilings(storage, 64, backward, target)
    assert found[0] == triton.block_sizes(storage, 64, backward, target)
    assert len(set(found)) == len(found) > 1
    assert all(t >= 16 and s >= 16 for t, s in found)
    whole = (
        64 if storage == "bf16" and target == "sm_90" else 16
    )  # wgmma multiplies tiles of 64: smaller ones are the last resort
    wide = [t >= whole for t, _ in found]
    assert wide == sorted(wide, reverse=True)
    areas = [t * s for t, s in found if t >= whole]
    assert areas == sorted(areas, reverse=True)


def test_a_kernel_that_spills_gets_smaller_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[int, int]] = []
    torch_backend = backends.BACKENDS["torch"]

    @dataclasses.dataclass(frozen=True)
    class Spilling:
        name: backends.BackendName = "torch"

        def tilings(self, storage: str, width: int, backward: bool) -> backends.Tilings:
            return ((64, 64), (32, 64), (32, 32))

        def workers(self, device: torch.device) -> int:
            return 1

        def emit(self, plan: einfuse.codegen.KernelPlan) -> str:
            return torch_backend.emit(plan)

        def build(self, plan: einfuse.codegen.KernelPlan, source: str, folder: object) -> backends.Kernel:
            kernel = torch_backend.build(plan, source, folder)
            assert plan.tile is not None
            tile = plan.tile.block

            def run(tensors: Mapping, params: Mapping, sizes: Mapping) -> int:
                kernel(tensors, params, sizes)
                used.append(tile)
                return 7 if tile > 32 else 0

            return run

    monkeypatch.setitem(backends.BACKENDS, "torch", Spilling())
    attn = einfuse.compile("full", backend="torch")
    q, k, v = (torch.randn(1, 2, 70, 24) for _ in range(3))  # a width that no other test has: built kernels are shared
    first, second, third = (attn(q, k, v) for _ in range(3))
    assert used == [64, 32, 32], "the first rung spills, the second does not and stays"
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(second, third, rtol=0, atol=0)
