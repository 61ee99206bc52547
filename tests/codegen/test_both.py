"""Two straight-line plans as one: what both compute stands once, and loops are left to others."""

from __future__ import annotations

import torch

import einfuse
from einfuse.codegen import KernelPlan, both, hold, lower
from einfuse.codegen.plan import Dot, Map, operations
from einfuse.codegen.torch import emit
from einfuse.ir.passes import pipeline

SPEC = """attention windows(area: int = 16) over b, h {
  rank i: query = area; rank j: key = area; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  s = sum[d](q * k) where j <= i + 3
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}"""
SIZES = {"B": 2, "H": 1, "D": 4, "E": 4}


def plans(area: int) -> list[KernelPlan]:
    """The backward's rows and columns."""
    found = einfuse.compile(SPEC, area=area).program.backward_of(("q", "k", "v")).cascades[1:]
    out = []
    for cascade, _ in found:
        storage = dict.fromkeys((*(t.name for t in cascade.inputs if not t.param), *cascade.outs), "f32")
        out.append(hold(lower(pipeline.run(cascade, 16, 16), storage, SIZES)))  # type: ignore[arg-type]  # f32 is a storage
    return out


def run(plan: KernelPlan, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    outs = {t.name: torch.full((2, 1, 16, 4), float("nan")) for t in plan.tensors if t.out}
    space: dict[str, object] = {}
    exec(compile(emit(plan), "plan", "exec"), space)
    space["kernel"]({**tensors, **outs}, {}, SIZES)  # type: ignore[operator]  # the kernel that the text defines
    return outs


def test_what_both_compute_is_computed_once() -> None:
    rows, columns = plans(16)
    plan = both(rows, columns)
    assert plan is not None
    counts = [[sum(isinstance(op, kind) for op in operations(p)) for p in (rows, columns, plan)] for kind in (Dot,)]
    assert counts == [[3, 4, 5]]
    assert sum(isinstance(op, Map) and op.fn == "exp" for op in operations(plan)) == 1
    torch.manual_seed(0)
    tensors = {t.name: torch.rand(2, 1, 16, *([4] if t.axes == 4 else [])) for t in plan.tensors if not t.out}
    apart = run(rows, tensors) | run(columns, tensors)
    for name, value in run(plan, tensors).items():
        torch.testing.assert_close(value, apart[name])


def test_loops_and_plans_that_depend_on_each_other_are_left_apart() -> None:
    rows, columns = plans(40)
    assert both(rows, columns) is None
    held, _ = plans(16)
    assert both(held, held) is None  # they write the same tensor
