"""Scores that several loops of a kernel read: computed by the first, kept, and right."""

from __future__ import annotations

import pytest
import torch
from noting import noting

import einfuse
from einfuse.codegen.cpu import CpuKernel
from einfuse.codegen.cpu import keep as keeping
from einfuse.codegen.cpu.keep import keep, too_long
from einfuse.codegen.plan import Dot, KernelPlan, Load, prune
from einfuse.runtime.verify import Shape


def products(plan: KernelPlan) -> list[int]:
    """How many products over features each loop has, in its first phase."""
    features = {f.rank for f in plan.features}
    folds = plan.folds
    return [sum(isinstance(op, Dot) and op.rank in features for op in f.phases[0].body) for f in folds]


@pytest.mark.parametrize(("name", "loops"), [("hard", 2), ("topk", 5), ("sparsemax", 14), ("softmax_standardised", 2)])
def test_only_the_first_loop_computes_scores(name: str, loops: int) -> None:
    plan = einfuse.compile(name).plan("cpu")
    assert products(plan) == [1] * loops
    made = keep(plan)
    assert products(prune(made)) == [1] + [0] * (loops - 1)
    (kept,) = made.kept
    for fold in made.folds[1:]:
        assert all(any(isinstance(op, Load) and op.tensor == kept.tensor for op in p.body) for p in fold.phases)


@pytest.mark.parametrize("name", ["causal", "alibi", "softpick"])
def test_one_loop_keeps_nothing(name: str) -> None:
    plan = einfuse.compile(name).plan("cpu")
    assert keep(plan) is plan


def test_loops_over_other_points_share_nothing() -> None:
    """The second loop sees keys that the first did not."""
    attn = einfuse.compile("""attention f over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  s = sum[d](q * k)
  top = max[j](s where j <= i)
  o[i, e] = sum[j](max(s - top, 0) * v)
  out o
}""")
    plan = attn.plan("cpu")
    assert len(plan.folds) == 2
    assert keep(plan) is plan


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.optimised), "bfloat16"])
def test_kernels_with_kept_rows_are_right(dtype: str) -> None:
    """More than one tile and more than one block, ragged, on two threads."""
    found = einfuse.verify(
        einfuse.compile("sparsemax"), backends=["cpu"], dtypes=[dtype], shape=Shape(1, 2, 61, 285, (12, 20), 2), brief=True
    )
    assert found.ok, [r for r in found.rows if not r.ok]


def test_the_text_says_what_is_kept() -> None:
    text = einfuse.compile("hard").source("cpu", torch.float32, D=8, E=8)
    assert "rows of i that several loops read" in text
    assert "run in order" not in text, "the tiles of a point stay independent"


@pytest.mark.slow
def test_rows_of_many_keys_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """More keys than a thread has room for: another kernel, the same result."""
    plan = einfuse.compile("topk").plan("cpu")
    assert plan.tile is not None
    most = keeping.MOST // (4 * plan.tile.block)
    assert not too_long(plan, {"Nk": most, "Nq": 1})
    assert too_long(plan, {"Nk": most + 1, "Nq": 1})
    assert not too_long(einfuse.compile("causal").plan("cpu"), {"Nk": 100 * most, "Nq": 1})  # one loop
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 100, 64).unbind()
    kept = einfuse.compile("topk")(q, k, v)
    monkeypatch.setattr(keeping, "MOST", 48 * 100 * 4 - 1)
    bound: list[str] = []
    frugal = CpuKernel.frugal
    monkeypatch.setattr(CpuKernel, "frugal", noting(bound, lambda self: self.plan.name, frugal))
    torch.testing.assert_close(einfuse.compile("topk")(q, k, v), kept)
    assert bound == ["topk"]
