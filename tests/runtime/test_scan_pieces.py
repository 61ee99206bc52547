"""A scan in several kernels: cut, divided, its columns shared out. Whatever is done, the outputs are those of the one kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from narrowed import scan as scan_of

import einfuse
from einfuse.codegen import scan
from einfuse.codegen.plan import Dot
from einfuse.codegen.plan.scan import Prefix
from einfuse.codegen.scan import ScanPlan, triton
from einfuse.codegen.scan.columns import share, shareable
from einfuse.codegen.scan.cut import cut
from einfuse.codegen.scan.divide import divide, hoist_decays
from einfuse.codegen.scan.ladder import kernels, pressure
from einfuse.ir import Cascade
from einfuse.ir.passes import chunk, chunk_backward
from einfuse.runtime.backends import TorchBackend, TritonBackend
from einfuse.runtime.binding import extent_of
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Graph
from einfuse.runtime.outputs import Output, described
from einfuse.runtime.pieces import Pieces
from einfuse.runtime.specialise import Specialisation
from einfuse.runtime.verify import Shape, example_inputs, example_sizes

SHAPE = Shape(1, 1, 40, 40, (18, 20), 1)
"""One head: every program runs for itself, and interpreting one takes seconds."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A plan as it is, for Triton's interpreter."""

    plan: ScanPlan
    options: dict[str, int] = field(default_factory=dict)

    @property
    def source(self) -> str:
        return triton.emit(self.plan)

    def smaller(self) -> tuple[Piece, ...]:
        return ()


def whole(plan: ScanPlan) -> list[ScanPlan]:
    return [plan]


def in_two(plan: ScanPlan) -> list[ScanPlan]:
    return list(cut(plan))


def divided(plan: ScanPlan) -> list[ScanPlan]:
    """As far as it goes."""
    parts = divide(plan) if plan.count is not None and plan.step > 1 else (plan,)
    return [plan] if len(parts) == 1 else [q for p in parts for q in divided(p)]


def in_crumbs(plan: ScanPlan) -> list[ScanPlan]:
    return [q for p in cut(plan) for q in divided(p)]


def by_columns(plan: ScanPlan) -> list[ScanPlan]:
    out = []
    for p in cut(plan):
        rank = shareable(p)
        out.append((share(p, rank, 16) if rank else None) or p)
    return out


def ran(c: Cascade, split: Callable[[ScanPlan], list[ScanPlan]], env: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    sizes = {**example_sizes(c, SHAPE), "n_blocks": 3}
    (fold,) = c.body
    ranks = {y.target: y.ranks for y in fold.body}  # type: ignore[union-attr]  # a blocked scan is one fold
    outs = {n: Output(tuple(extent_of(c, r, sizes) for r in (*c.over, *ranks[n])), torch.float32) for n in c.outs}
    numbers = {t.name: t.default for t in c.inputs if t.param}
    given = Given({t.name: env[t.name] for t in c.inputs if not t.param}, numbers, sizes)  # type: ignore[arg-type]  # all have defaults
    kernel = Specialisation.of(c, given.more(described(outs)), TorchBackend())
    plan = scan.lower(c, kernel.storage, kernel.static)
    pieces = Pieces(tuple(map(Piece, split(plan))), TritonBackend())
    return dict(zip(outs, Graph(lambda x: pieces.nodes(x, outs), given, tuple(outs)).run(dict(given.tensors)), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gated_delta", "retention", "linear"])
def test_kernels_of_all_kinds_agree(name: str) -> None:
    c = scan_of(einfuse.compile(name).cascade)
    wanted = tuple(t.name for t in c.inputs if t.dtype == "float" and not t.param)
    found = chunk_backward.run(chunk.run(c, 16), wanted)
    env = {n: x for n, x in example_inputs(c, torch.float32, 0, SHAPE).items() if isinstance(x, torch.Tensor)}
    forward = ran(found.forward, whole, env)
    generator = torch.Generator().manual_seed(1)
    for n in c.outs:
        env |= {f"d_{n}{end}": torch.randn(forward[n].shape, generator=generator) for end in ("", "_last")}
    env |= {n: forward[n] for n in found.saved}
    for stage in (found.forward, found.backward):
        truth = ran(stage, whole, env)
        for split in (in_two, in_crumbs, by_columns):
            for n, x in ran(stage, split, env).items():
                torch.testing.assert_close(x, truth[n], rtol=1e-4, atol=1e-5 * truth[n].abs().max().item())


def backward_plan(name: str) -> ScanPlan:
    a = einfuse.compile(name)
    c = a.program.cascades(True)[1]
    return scan.lower(c, a.example_storage(c, torch.bfloat16), {"D": 64, "E": 64})


def test_only_the_first_kernel_waits_for_earlier_blocks() -> None:
    carry, rest = cut(backward_plan("retention"))
    assert [s.value.dims for s in carry.states] == [("d", "e")]
    assert not rest.states
    assert {t.name for t in rest.tensors if t.out} == {"d_q", "d_k", "d_v", "d_slope"}
    assert [(p.tensor, p.axes) for p in rest.partial] == [("d_slope", ("block",))], "a sum over blocks is no state"


def test_decays_of_features_are_added_up_before_the_states_are_carried() -> None:
    carry, _ = cut(backward_plan("gla"))
    before, on = hoist_decays(carry)
    assert not before.states
    assert [s.value.dims for s in on.states] == [("d", "e")]
    assert not any(isinstance(op, Prefix) for op in on.body)
    assert sum(isinstance(op, Dot) for op in on.body) == 1, "what a block adds to the state stays"
    carry, _ = cut(backward_plan("retention"))
    assert hoist_decays(carry) == (carry,), "a number per point is quickly added up"


def test_columns_are_shared_only_where_sums_over_them_stay_linear() -> None:
    _, rest = cut(backward_plan("gated_delta"))
    assert shareable(rest) == "e"
    shared = share(rest, "e", 32)
    assert shared is not None
    assert {p.tensor for p in shared.partial} == {"d_q", "d_k", "d_g", "d_beta"}, "d_v has the columns itself"
    text = """attention f over b { rank i: query = N; rank d, e: feature in k[b, i, d] in v[b, i, e] scan i {
      state S[d, e] = S + k * v
      o = tanh(sum[d](k * S)) * sum[e](exp(v)) } out o }"""
    a = einfuse.compile(text)
    (c,) = a.program.cascades(False)
    plan = scan.lower(c, a.example_storage(c, torch.float32), {"D": 64, "E": 64})
    assert share(plan, "d", 32) is None, "tanh of a share is no share of tanh"
    assert share(plan, "e", 32) is None, "a share times a column is no share of the product"


def test_a_rung_below_holds_less_and_the_ladder_ends() -> None:
    todo = list(kernels(backward_plan("gated_delta"), "sm_90"))
    assert len(todo) > 2, "a kernel that holds too much is divided before anything is compiled"
    for _ in range(200):
        rung = todo.pop()
        below = rung.smaller()
        assert all(pressure(r.plan) <= pressure(rung.plan) for r in below)
        todo += below
        if not todo:
            return
    raise AssertionError("the ladder does not end")


@pytest.mark.slow
def test_threads_share_one_head() -> None:
    a, before = einfuse.compile("gated_delta", backend="cpu"), torch.get_num_threads()
    x = example_inputs(a.cascade, torch.float32, 0, Shape(1, 1, 300, 300, (24, 40), 1))
    leaves = {n: y.requires_grad_() for n, y in x.items() if isinstance(y, torch.Tensor)}

    def run() -> list[torch.Tensor]:
        o, last = a(**leaves)
        return [o, last, *torch.autograd.grad(o.sum() + last.square().sum(), list(leaves.values()))]

    try:
        torch.set_num_threads(1)
        alone = run()
        torch.set_num_threads(3)
        for found, wanted in zip(run(), alone, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(before)
    crews = {crew for _, crew in a.program.kernels}  # type: ignore[attr-defined]
    assert crews == {1, 3}


def test_hazard_7_kernels_of_scans_ask_for_multiply_adds() -> None:
    """A Triton to come leaves them out unless a launch asks."""
    found = einfuse.compile("retention").candidates("triton", torch.bfloat16, True, {}, "sm_90")
    assert all("enable_fp_fusion=True" in c.source for c in found)
