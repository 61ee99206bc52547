"""Inside autocast regions a call has the dtypes that torch's own attention has there; what is kept between calls stays wide."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from narrowed import three
from torch.nn.functional import scaled_dot_product_attention

import einfuse

pytestmark = pytest.mark.slow

BF, HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float16, torch.float32, torch.float64
Manager = contextlib.AbstractContextManager[object]


def cast(*dtypes: torch.dtype | None) -> Callable[[], Manager]:
    """Nested regions; None: one in which autocast is off."""

    def enter() -> Manager:
        stack = contextlib.ExitStack()
        for dtype in dtypes:
            stack.enter_context(torch.autocast("cpu", dtype=dtype or BF, enabled=dtype is not None))
        return stack

    return enter


REGIONS = {
    "none": cast(),
    "bf": cast(BF),
    "half": cast(HALF),
    "off": cast(None),
    "off in bf": cast(BF, None),
    "half in bf": cast(BF, HALF),
}
INPUTS = [(d,) * 3 for d in (BF, HALF, SINGLE, DOUBLE)]
INPUTS += [(SINGLE, BF, BF), (BF, SINGLE, SINGLE), (DOUBLE, SINGLE, SINGLE), (BF, HALF, HALF)]


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("region", REGIONS)
def test_dtypes_are_those_of_torch(region: str, mode: Callable[[], Manager]) -> None:
    attn = einfuse.compile("full", backend="torch")
    for dtypes in INPUTS:
        with mode(), REGIONS[region]():
            held = three(torch.ones(1, 2, 3, 4, dtype=d) for d in dtypes)
            try:
                expected = scaled_dot_product_attention(*held).dtype
            except RuntimeError:
                with pytest.raises(TypeError, match="must share one dtype"):
                    attn(*held)
                continue
            out = attn(*held)
        assert isinstance(out, torch.Tensor)
        assert out.dtype == expected, f"for {dtypes}"


@pytest.mark.parametrize("region", ["none", "bf"])
@pytest.mark.parametrize("dtype", [SINGLE, BF])
def test_states_between_steps_stay_wide(region: str, dtype: torch.dtype) -> None:
    narrow = BF if region == "bf" else dtype
    scan, fold = einfuse.compile("retention"), einfuse.compile("full")
    q, k, v = (torch.randn(1, 2, 6, 4).to(dtype) for _ in range(3))
    with REGIONS[region]():
        whole = scan(q, k, v, torch.ones(2))
        state, rows = None, []
        for n in range(6):
            (row, _), state = scan.step(state, *(x[:, :, n : n + 1] for x in (q, k, v)), torch.ones(2))
            rows.append(row)
        out, known = fold.step(None, q, k[:, :, :3], v[:, :, :3])
        out, known = fold.step(known, q, k[:, :, 3:], v[:, :, 3:])
    assert isinstance(state, tuple)
    assert isinstance(known, einfuse.runtime.parts.PartialState)
    assert {x.dtype for x in (*state, *known.tensors.values())} == {SINGLE}
    found = torch.cat(rows, 2)
    assert {found.dtype, whole[0].dtype, out.dtype} == {narrow}  # type: ignore[union-attr]  # of one output
    near: dict[str, Any] = {"rtol": 0.02, "atol": 0.01} if narrow == BF else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(found, whole[0], **near)
    torch.testing.assert_close(out, fold(q.to(narrow), k.to(narrow), v.to(narrow)), **near)
