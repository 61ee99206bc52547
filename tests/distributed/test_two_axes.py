"""Heads along one axis of a mesh and the sequence along another: each axis is handled inside the one before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from devices import Derived, Meeting, Simulated, on_all, oracle, parts

import einfuse
from einfuse.distributed import Sharded
from einfuse.distributed.here import Axis
from einfuse.runtime.examples import Shape, example_inputs

HEADS, SEQUENCE, N = 2, 2, 7


def device_of(rank: int, along: tuple[Sequence[Meeting], Sequence[Meeting]]) -> dict[str, Simulated]:
    s, h = divmod(rank, HEADS)
    return {"head": along[0][s].of(h), "seq": along[1][h].of(s)}


@pytest.mark.parametrize(
    ("name", "exchange", "ranks"),
    [
        ("alibi", "columns", ("i", "j")),
        ("alibi", "heads", ("i", "j")),
        ("alibi", "states", ("j",)),
        ("alibi", None, ("i", "j")),
        ("document", "columns", ("i", "j")),
        ("retention", "prefix", ("i",)),
    ],
)
def test_four_devices_are_one(name: str, exchange: Any, ranks: tuple[str, ...]) -> None:
    attention = einfuse.compile(name)
    c, axes = attention.cascade, (Axis("head", ("h",)), Axis("seq", ranks))
    inputs = example_inputs(c, torch.float64, 0, Shape(1, 8, N, N, (4, 3), 2))
    leaves = {n: x.clone().requires_grad_(x.is_floating_point()) for n, x in inputs.items() if isinstance(x, torch.Tensor)}
    numbers = {n: x for n, x in inputs.items() if not isinstance(x, torch.Tensor)}
    whole = next(iter(oracle(c, {**leaves, **numbers}).values()))
    weight = torch.randn(whole.shape, dtype=torch.float64)
    wanted = [n for n, x in leaves.items() if x.requires_grad]
    truth = dict(zip(wanted, torch.autograd.grad((whole * weight).sum(), [leaves[n] for n in wanted]), strict=True))
    rows = parts(N, (3,))
    along = ([Meeting(HEADS) for _ in range(SEQUENCE)], [Meeting(SEQUENCE) for _ in range(HEADS)])
    sizes = {str(c.rank(r).size) for r in ranks}

    kept = Derived()

    def mine(n: str, x: torch.Tensor, s: int, h: int) -> torch.Tensor:
        """The part of an input, or of what has its axes, that a device holds."""
        for axis, a in enumerate(c.input(n).axes):
            if a.op == "size" and a.name in sizes:
                x = x.index_select(axis, rows[s])
                break
        at = [k for k, a in enumerate(c.input(n).axes) if a.value == "H" or (a.op == "//" and a.args[0].value == "H")]
        return x.chunk(HEADS, at[0])[h] if at else x

    def device(rank: int) -> None:
        s, h = divmod(rank, HEADS)
        own = {n: mine(n, x.detach(), s, h).clone().requires_grad_(x.requires_grad) for n, x in leaves.items()}
        sharded = Sharded(attention, axes, device_of(rank, along), exchange, evaluate=oracle)
        sharded.kept = kept
        found = sharded(**own, **numbers)
        o = found[0] if isinstance(found, tuple) else found
        part, w = (x.chunk(HEADS, 1)[h] for x in (whole, weight))
        if "i" in ranks:
            part, w = part.index_select(2, rows[s]), w.index_select(2, rows[s])
        torch.testing.assert_close(o, part, atol=1e-12, rtol=1e-12)
        grads = torch.autograd.grad((o * w).sum(), [own[n] for n in wanted])
        for n, g in zip(wanted, grads, strict=True):
            torch.testing.assert_close(g, mine(n, truth[n], s, h), atol=1e-12, rtol=1e-12, msg=f"{n} on {rank}")

    on_all(HEADS * SEQUENCE, device)


def test_heads_that_share_keys_stay_together() -> None:
    along = [Meeting(2)]
    q, k = torch.zeros(1, 4, 3, 2), torch.zeros(1, 2, 3, 2)

    def device(rank: int) -> str:
        sharded = Sharded(einfuse.compile("causal"), (Axis("head", ("h",)),), {"head": along[0].of(rank)}, evaluate=oracle)
        with pytest.raises(ValueError, match="devices hold") as error:
            sharded(q[:, :1] if rank == 0 else q[:, 1:], k[:, rank : rank + 1], k[:, rank : rank + 1])
        return str(error.value)

    assert set(on_all(2, device)) == {"causal: devices hold [1, 3] entries of H, and in k [1, 1] groups of 2 of them"}
