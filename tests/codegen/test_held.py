"""Ranks that fit into a block: kernels without loops, that compute what the loops compute."""

from __future__ import annotations

import pytest
import torch

import einfuse
from einfuse.codegen import KernelPlan, hold
from einfuse.codegen.plan import Dot, Load, Map, operations
from einfuse.codegen.steady import steady
from einfuse.codegen.triton.build import MODULES
from einfuse.codegen.triton.points import points
from einfuse.ir import Cascade
from einfuse.ir.passes import pipeline

WINDOW = """attention window(area: int = 19) over b, w, h {
  rank i: query = area; rank j: key = area; rank d, e: feature
  in q[b, w, h, i, d]
  in k[b, w, h, j, d]
  in v[b, w, h, j, e]
  in bias[h, 2 * area - 1]
  s = sum[d](q * k) / sqrt(D) + bias[h, i - j + area - 1] CONDITION
  o[i, e] = WEIGHTED
  out o
}"""
SOFTMAX = "sum[j](softmax[j](s) * v)"
CENTRED = "sum[j](softmax[j](s * sum[j](s)) * v)"


def window(weighted: str = SOFTMAX, condition: str = "", area: int = 19) -> einfuse.Attention:
    return einfuse.compile(
        WINDOW.replace("WEIGHTED", weighted).replace("CONDITION", condition and f"where {condition}"), area=area
    )


def inputs(area: int, dtype: torch.dtype = torch.float32, windows: int = 2) -> list[torch.Tensor]:
    given = [torch.randn(2, windows, 3, area, 8, dtype=dtype) for _ in range(3)] + [torch.randn(3, 2 * area - 1, dtype=dtype)]
    return [x.requires_grad_() for x in given]


def loops(plan: KernelPlan) -> list[str]:
    return [s.rank for s in plan.folds]


def compared(attention: einfuse.Attention, given: list[torch.Tensor]) -> None:
    """Values and gradients beside those of the cascade as written in float64."""
    exact = [x.detach().double().requires_grad_() for x in given]
    found, truth = attention(*given), attention.reference(*exact)
    assert isinstance(found, torch.Tensor)
    assert isinstance(truth, torch.Tensor)
    direction = torch.randn_like(truth)
    gradients = (
        torch.autograd.grad(found, given, direction.to(found)),
        torch.autograd.grad(truth, exact, direction),
    )
    bound = 1e-9 if found.dtype == torch.float64 else 2e-4
    torch.testing.assert_close(found.double(), truth, rtol=bound, atol=bound)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=bound, atol=bound)


@pytest.mark.parametrize("condition", ["", "j <= i", "(i + 2 * j) % 5 < 2", "j < i"])
@pytest.mark.parametrize("weighted", [SOFTMAX, "sum[j](sigmoid(s) * v)", CENTRED])
def test_windows_without_loops_agree_with_the_cascade_as_written(condition: str, weighted: str) -> None:
    attention = window(weighted, condition).with_backend("torch")
    assert not any(map(loops, attention.plans("torch", backward=True)))
    compared(attention, inputs(19, torch.float64))


@pytest.mark.parametrize("area", [1, 48, 64])
def test_windows_of_other_sizes(area: int) -> None:
    compared(window(area=area, condition="j <= i").with_backend("torch"), inputs(area, torch.float64))


@pytest.mark.slow
def test_windows_on_a_cpu() -> None:
    """Five windows of three heads: what follows a head alone is computed when the head changes."""
    attention = window(condition="j <= i + w").with_backend("cpu")
    assert not loops(attention.plan("cpu"))
    given = [x.detach() for x in inputs(19, windows=5)]
    found, truth = attention(*given), attention.reference(*given)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_program_walks_a_run_of_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """30 points and no more than 7 programs: 4 points each but for the last of every head."""
    attention = window(condition="j <= i").with_backend("triton")
    given = inputs(19, windows=5)
    attention(*given)
    modules = [m for n, m in MODULES.items() if n.startswith("einfuse_window")]
    for module in modules:
        if hasattr(module, "BUSY"):
            monkeypatch.setattr(module, "BUSY", 7)
    compared(attention, given)
    assert any(hasattr(m, "BUSY") for m in modules)


def test_nothing_is_carried_or_moved_to_a_new_maximum() -> None:
    plan = window().plan("torch")
    loop = einfuse.compile("full").plan("torch")

    def count(p: KernelPlan, fn: str) -> int:
        return sum(isinstance(op, Map) and op.fn == fn for op in operations(p))

    assert (count(plan, "exp"), count(plan, "max"), count(plan, "select")) == (1, 2, 0)  # the floors
    assert count(loop, "exp") > 1
    assert all(op.acc is None for op in operations(plan) if isinstance(op, Dot))


def test_passes_over_a_rank_that_is_held_load_it_once() -> None:
    plan = window(CENTRED).plan("torch")
    assert [op.tensor for op in operations(plan) if isinstance(op, Load)].count("k") == 1


def lowered(cascade: Cascade, block: int, step: int) -> KernelPlan:
    from einfuse.codegen import lower

    floats = {t.name: "f32" for t in cascade.inputs} | dict.fromkeys(cascade.outs, "f32")
    return lower(pipeline.run(cascade, block, step), floats, {"D": 8, "E": 8})  # type: ignore[arg-type]  # names of storage


def test_a_loop_stays_where_a_rank_may_be_longer_than_its_step() -> None:
    plan = lowered(einfuse.compile("full").cascade, 32, 32)
    assert hold(plan) is plan
    assert hold(plan, {"Nq": 16, "Nk": 64}) is plan
    assert hold(plan, {"Nq": 16}) is plan
    keys = hold(plan, {"Nk": 32})
    assert not loops(keys)
    assert keys.tile == plan.tile
    assert [f.rank for f in keys.features] == ["j", "d", "e"]
    both = hold(plan, {"Nq": 16, "Nk": 32})
    assert both.tile is None
    assert [(f.rank, f.size, f.block) for f in both.features[:2]] == [("i", "Nq", 16), ("j", "Nk", 32)]


def test_what_follows_a_head_alone_is_shared_by_the_windows_of_a_program() -> None:
    plan = window().plan("torch")
    found = steady(plan)
    assert found is not None
    follows = {op.tensor: sorted(found.of(op)) for op in operations(plan) if isinstance(op, Load)}
    assert follows == {"q": ["b", "h", "w"], "k": ["b", "h", "w"], "v": ["b", "h", "w"], "bias": ["h"]}
    assert found.order[0] == "h"
    runs = points(plan)
    assert runs is not None
    assert ([b.rank for b in runs.fixed], [b.rank for b in runs.run]) == (["h"], ["b", "w"])
    once, every = runs.split(plan.steps[0])  # type: ignore[arg-type]  # the one region
    assert "bias" in {op.tensor for op in once if isinstance(op, Load)}
    assert not any(isinstance(op, Load) and op.tensor == "bias" for op in every)
    assert steady(einfuse.compile("full").plan("torch")) is None


def test_many_short_sequences_get_a_kernel_of_their_own() -> None:
    """One kernel for all lengths up to a power of two, under a mask too, and the loops for longer ones."""
    attention = einfuse.compile("causal", backend="torch")

    def call(n: int, heads: int) -> list[str]:
        before = set(attention.program.built)
        compared(attention, [torch.randn(16, heads, n, 6, requires_grad=True) for _ in range(3)])
        found = [b for k, b in attention.program.built.items() if k not in before and b.cascade.name == "causal"]
        return [",".join(loops(b.plan)) or "none" for b in found]

    assert call(19, 4) == ["none"]
    assert call(31, 5) == []
    assert call(21, 2) == ["j"]


@pytest.mark.slow
def test_lanes_beyond_a_length_that_is_known_at_a_call_take_no_part() -> None:
    """19 keys in vectors of 16 lanes, all scores far below 0: a lane of padding would be the maximum."""
    q, k, v = torch.ones(64, 1, 19, 6), -20 * torch.ones(64, 1, 19, 6), torch.randn(64, 1, 19, 6)
    attention = einfuse.compile("causal", backend="cpu")
    found, truth = attention(q, k, v), attention.reference(q, k, v)
    assert isinstance(found, torch.Tensor)
    assert [loops(b.plan) for b in attention.program.built.values()][-1] == []
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)
