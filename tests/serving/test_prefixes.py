"""Prefixes that sequences share: the rows of all of them are one item, whose states the derived merge puts together with those of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from narrowed import only

import einfuse
from einfuse import serving
from einfuse.codegen.plan import interpret
from einfuse.codegen.plan import nodes as kp
from einfuse.ir import SpecError
from einfuse.ir.passes.items import SEQUENCE, TOKENS
from einfuse.runtime.backends import BackendName
from einfuse.runtime.graph import Kernel
from einfuse.runtime.specialise import Printed
from einfuse.serving import lists

HEADS, SHARED, D, P, TABLE = 4, 2, 8, 4, 6
ROWS = torch.tensor([1, 2, 0, 1, 3, 1])
LENGTH = torch.tensor([17, 22, 16, 13, 20, 9])
PAGES = torch.tensor(
    [
        [20, 3, 11, 7, 1, 0],  # three pages of these
        [20, 3, 11, 2, 4, 5],
        [20, 3, 11, 2, 6, 0],  # has no rows now
        [8, 9, 10, 12, 0, 0],  # begins with none
        [20, 3, 11, 7, 13, 0],
        [14, 3, 11, 0, 0, 0],  # goes on alike behind another page
    ]
)
STARTS = torch.nn.functional.pad(ROWS.cumsum(0), (1, 0))
EXTRA: dict[str, dict[str, Any]] = {
    "causal": {},
    "alibi": {"slope": torch.rand(HEADS, dtype=torch.float64)},
    "sliding_window": {"window": 7},
    "document": {},
    "sink": {"sink": torch.randn(HEADS, dtype=torch.float64)},
    "sigmoid": {},
    "lse": {},
}


def made(attention: einfuse.Attention, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[serving.Plan, torch.Tensor]:
    """A plan of the six sequences, and queries of their rows."""
    torch.manual_seed(0)
    token: dict[str, Any] = {"k": (SHARED, D), "v": (SHARED, D)}
    if any(t.name == "doc" for t in attention.cascade.inputs):
        token["doc"] = torch.zeros((), dtype=torch.int64)
    kept = serving.Cache.empty(attention, pages=21, width=P, table=TABLE, batch=6, dtype=dtype, **token)
    for x in kept.tensors.values():
        x.copy_(torch.randn(x.shape) if x.is_floating_point() else torch.randint(2, x.shape))
    kept.page.copy_(PAGES)
    kept.length.copy_(LENGTH)
    given = {n: x.to(dtype) if isinstance(x, torch.Tensor) else x for n, x in EXTRA.get(attention.name, {}).items()}
    asked: dict[str, Any] = {"prefixes": True, **options, **given}
    plan = serving.plan(attention, kept, tiles=(1, 4), q=torch.empty(11, HEADS, D, dtype=dtype), **asked)
    return plan, torch.randn(11, HEADS, D, dtype=dtype)


def truth(plan: serving.Plan, q: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of the rows of all sequences, each alone on its tokens."""
    found: list[list[torch.Tensor]] = []
    for b, n in enumerate(LENGTH.tolist()):
        tokens = torch.arange(n)
        held = {m: x[PAGES[b, tokens // P], tokens % P][None] for m, x in plan.cache.tensors.items()}
        held = {m: x.transpose(1, 2) if x.ndim == 4 else x for m, x in held.items()}
        whole = torch.zeros(1, HEADS, n, D, dtype=q.dtype)
        whole[0, :, n - int(ROWS[b]) :] = q[STARTS[b] : STARTS[b + 1]].transpose(0, 1)
        outs = plan.attention.reference(q=whole, **held, **EXTRA.get(plan.attention.name, {}), dtype=torch.float64)
        outs = outs if isinstance(outs, tuple) else (outs,)
        found.append([x[0, :, n - int(ROWS[b]) :].transpose(0, 1) for x in outs])
    return [torch.cat(x) for x in zip(*found, strict=True)]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", list(EXTRA))
def test_rows_are_what_they_are_alone(name: str, parts: int) -> None:
    plan, q = made(einfuse.compile(name, backend="torch"), parts=parts)
    plan.update(STARTS)
    outs = plan.run(q)
    for mine, wanted in zip(outs if isinstance(outs, tuple) else (outs,), truth(plan, q), strict=True):
        torch.testing.assert_close(mine[: STARTS[-1]], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=pytest.mark.slow)])
def test_kernels_do_the_same(backend: BackendName) -> None:
    plan, q = made(einfuse.compile("causal", backend=backend), torch.float32)
    plan.update(STARTS)
    torch.testing.assert_close(plan.run(q)[: STARTS[-1]], truth(plan, q)[0].float(), rtol=1e-5, atol=1e-5)


def counted(monkeypatch: pytest.MonkeyPatch, prefixes: bool) -> tuple[int, torch.Tensor]:
    """How many bytes of keys a step of 16 sequences reads, of 128 tokens in the same pages and 64 of their own: by the plans of the kernels
    of CPUs, in straight loops. And the outputs."""
    torch.manual_seed(0)
    read, load = [], interpret._Program.load

    def watched(self: Any, op: kp.Load) -> torch.Tensor:
        found = load(self, op)
        if op.tensor == "k":
            assert op.where is None, "whole blocks are read"
            read.append(found.numel() * self.tensors["k"].itemsize)
        return found

    monkeypatch.setattr(interpret._Program, "load", watched)
    attention = einfuse.compile("causal", backend="cpu")
    kept = serving.Cache.empty(attention, pages=72, width=16, table=12, batch=16, k=(SHARED, D), v=(SHARED, D))
    for x in kept.tensors.values():
        x.normal_()
    kept.page[:, :8] = torch.arange(8)
    kept.page[:, 8:] = torch.arange(8, 72).view(16, 4)
    kept.length.fill_(192)
    q = torch.randn(16, HEADS, D)
    plan = serving.plan(attention, kept, q=q, prefixes=prefixes)
    plan.update(torch.arange(17))
    for tile in plan.tiles:
        tensors = {**tile.tensors, "o": plan.out[0]}
        for node in tile.graph.nodes:
            assert isinstance(node, Kernel)
            found = node.recorded(tensors)
            assert isinstance(found.kernel, Printed)
            interpret.interpret(found.kernel.plan, found.given.tensors, found.given.numbers, found.given.sizes)
    return sum(read), plan.out[0][:16].clone()


def test_16_sequences_on_a_prefix_read_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    token = SHARED * D * 4
    each, alone = counted(monkeypatch, False)
    once, together = counted(monkeypatch, True)
    assert each == 16 * (128 + 64) * token
    assert once == (128 + 16 * 64) * token
    torch.testing.assert_close(together, alone)


def test_the_bits_of_a_sequence_follow_from_what_it_is_told_to_share() -> None:
    plan, q = made(einfuse.compile("causal", backend="cpu"), torch.float32, invariant=True)
    shared = torch.tensor([12, 12, 12, 0, 12, 4])
    with pytest.raises(ValueError, match="an invariant plan has to be told what is shared"):
        plan.update(STARTS)
    plan.update(STARTS, shared)
    all_of_them = only(plan.run(q)[: STARTS[-1]]).clone()
    torch.testing.assert_close(all_of_them, truth(plan, q)[0].float(), rtol=1e-5, atol=1e-5)
    for b, (start, rows) in enumerate(zip(STARTS.tolist(), ROWS.tolist(), strict=False)):
        alone = torch.where(torch.arange(7) > b, rows, 0)
        plan.update(alone, shared)
        mine = torch.cat((q[start : start + rows], torch.zeros(11 - rows, HEADS, D)))
        assert torch.equal(only(plan.run(mine))[:rows], all_of_them[start : start + rows])


def test_each_sequence_may_share_with_none() -> None:
    plan, q = made(einfuse.compile("causal", backend="torch"))
    plan.update(STARTS, torch.tensor([4, 8, 0, 12, 12, 8]))
    torch.testing.assert_close(plan.run(q)[: STARTS[-1]], truth(plan, q)[0], rtol=1e-9, atol=1e-9)


def test_pages_are_compared_where_nothing_is_told() -> None:
    page, full = PAGES.numpy(), (LENGTH // P).numpy()
    shared, leader = lists.found(page, full, ROWS.numpy() > 0)
    assert shared.tolist() == [3, 3, 0, 0, 3, 0]
    assert leader[[0, 1, 4]].tolist() == [0, 0, 0]
    on_a_device = lists.found(PAGES, LENGTH // P, ROWS > 0)  # the same operations on tensors
    assert [x.tolist() for x in on_a_device] == [shared.tolist(), leader.tolist()]
    many, few = torch.arange(8).expand(3, 8).clone(), torch.tensor([8, 8, 1])
    many[2, 1:] = 9  # two of eight pages save more than three of one
    assert lists.found(many.numpy(), few.numpy(), few.numpy() > 0)[0].tolist() == [8, 8, 0]


def test_lists_are_the_same_on_a_device_and_on_the_host() -> None:
    plan, _ = made(einfuse.compile("causal", backend="torch"))
    plan.update(STARTS)
    (first, *_) = plan.tiles
    wanted = {n: first.tensors[n].clone() for n in (first.form.listed, first.form.members)}
    pages, leader = lists.found(PAGES, LENGTH // P, ROWS > 0)
    for tile in plan.tiles:
        tile._listed, tile._numbers = torch.full_like(tile.listed, -1), torch.arange(tile.listed.shape[1])
    assert isinstance(first, lists.Prefixes)
    first._members, first._each = torch.empty_like(wanted[first.form.members]), torch.arange(7)
    first.update(lists.Step(STARTS, LENGTH, pages * P, leader))
    assert torch.equal(first._members, wanted[first.form.members])
    read = [SEQUENCE, TOKENS]
    assert torch.equal(first._listed[read], wanted[first.form.listed][read])


@pytest.mark.parametrize(
    ("shared", "reason"),
    [
        ([12, 12, 0, 0, 12], r"shared must have the shape \[6\], found \(5,\)"),
        ([12, 12, 0, 0, 6, 0], "sequence 4 shares 6 of 20 tokens, which are to be whole pages of 4, .* of sequence 4"),
        ([0, 24, 0, 0, 0, 0], "sequence 1 shares 24 of 22 tokens"),
        ([16, 16, 0, 0, 0, 0], "sequence 1 shares 16 of 22 tokens, .* the same as those of sequence 0"),
    ],
)
def test_what_is_not_shared_is_named(shared: list[int], reason: str) -> None:
    plan, _ = made(einfuse.compile("causal", backend="torch"))
    with pytest.raises(ValueError, match=reason):
        plan.update(STARTS, torch.tensor(shared))


def test_what_takes_several_passes_is_refused() -> None:
    with pytest.raises(SpecError, match="entmax15_items cannot be split: it takes 11 passes"):
        made(einfuse.compile("entmax15", backend="torch"))


def test_only_a_plan_with_prefixes_is_told_of_them() -> None:
    plan, _ = made(einfuse.compile("causal", backend="torch"), prefixes=False)
    with pytest.raises(ValueError, match="causal: what is shared is for a plan with prefixes=True"):
        plan.update(STARTS, torch.zeros(6, dtype=torch.int64))
