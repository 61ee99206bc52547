"""`parts=8` is the same bits on 1, 2, 4 and 8 devices: outputs and every gradient, of every exchange, by the kernels' own arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from devices import Derived, Meeting, Simulated, meeting, on_all, parts
from narrowed import added, gradient, only
from processes import Pool
from work import in_parts

import einfuse
from einfuse.distributed import Sharded
from einfuse.distributed.here import Axis, axes_of
from einfuse.distributed.layout import even
from einfuse.distributed.sharded import SLOTS
from einfuse.ir.passes.shard import held
from einfuse.runtime.examples import Shape, example_inputs

PARTS, N = 8, 21
"""So many positions are no multiple of the parts."""


def given(attention: einfuse.Attention) -> dict[str, Any]:
    return dict(example_inputs(attention.cascade, torch.float32, 0, Shape(1, 8, N, N, (4, 6), 2)))


def lost(outs: Any) -> torch.Tensor:
    """A loss whose gradients differ from feature to feature."""
    every = outs if isinstance(outs, tuple) else (outs,)
    return added((o * torch.sin(torch.arange(o.shape[-1]))).sum() for o in every)


def reference(attention: einfuse.Attention) -> dict[str, torch.Tensor]:
    """Outputs and gradients of one device, as written and in float64."""
    inputs = {
        n: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for n, x in given(attention).items()
    }
    leaves = {n: x.requires_grad_() for n, x in inputs.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
    found = attention.reference(**inputs, dtype=torch.float64)
    lost(found).backward()
    outs = dict(zip(attention.cascade.outs, found if isinstance(found, tuple) else (found,), strict=True))
    return {**{n: o.detach() for n, o in outs.items()}, **{f"d{n}": x.grad for n, x in leaves.items() if x.grad is not None}}


def made(
    attention: einfuse.Attention, axis: Axis, exchange: Any, devices: int, layout: bool, kept: Derived
) -> list[dict[str, torch.Tensor]]:
    """Outputs and gradients of all devices, put together in the order of positions."""
    c, meet = attention.cascade, meeting(devices)
    inputs = given(attention)
    place = held(c, axis.ranks)

    def device(rank: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        sharded = Sharded(attention, (axis,), {"seq": meet.of(rank)}, exchange, parts=PARTS)
        sharded.kept = kept
        if layout:
            plan = sharded.layout(N, "zigzag")
            sharded, rows = sharded.on(plan), plan.positions
        else:
            each = PARTS // devices
            rows = torch.cat(parts(N, torch.tensor(even(N, PARTS)).cumsum(0).tolist()[:-1])[rank * each : (rank + 1) * each])
        own: dict[str, Any] = {}
        for name, x in inputs.items():
            if isinstance(x, torch.Tensor):
                x = x.index_select(place[name], rows) if name in place else x.clone()
                x = x.requires_grad_(x.is_floating_point())
            own[name] = x
        found = sharded(**own)
        outs = dict(zip(c.outs, found if isinstance(found, tuple) else (found,), strict=True))
        lost(found).backward()
        grads = {f"d{k}": x.grad for k, x in own.items() if isinstance(x, torch.Tensor) and x.grad is not None}
        return rows, {**{k: o.detach() for k, o in outs.items()}, **grads}

    found = on_all(devices, device)
    along = {k: next((a for a, r in enumerate(axes_of(c, k)) if r in axis.ranks), None) for k in c.outs}
    along |= {f"d{k}": place.get(k) for k in inputs}
    order = torch.cat([rows for rows, _ in found]).argsort()
    return [
        {
            k: torch.cat([x[k] for _, x in found], a).index_select(a, order) if (a := along[k]) is not None else x
            for k, x in one.items()
        }
        for _, one in found
    ]


@pytest.mark.parametrize(
    ("name", "exchange", "ranks", "layout"),
    [
        ("alibi", "columns", ("i", "j"), True),
        ("entmax15", "heads", ("i", "j"), False),
        ("alibi", "states", ("j",), False),
        ("gated_delta", "prefix", ("i",), False),
    ],
)
def test_parts_are_the_same_bits_on_any_devices(name: str, exchange: Any, ranks: tuple[str, ...], layout: bool) -> None:
    attention = einfuse.compile(name, backend="cpu" if layout else "torch")  # compiled kernels once
    kept = Derived()
    (alone,), *others = [made(attention, Axis("seq", ranks), exchange, p, layout, kept) for p in (1, 2, 4)]
    truth = reference(attention)
    assert alone.keys() == truth.keys()
    for k, x in alone.items():
        torch.testing.assert_close(x.double(), truth[k], atol=1e-4, rtol=1e-4, msg=k)
    for one in (one for found in others for one in found):
        assert all(torch.equal(x, one[k]) for k, x in alone.items())


def test_parts_of_a_sequence_beside_heads() -> None:
    """Parts meet other devices of the second axis together."""
    attention = einfuse.compile("alibi", backend="torch")
    axes = (Axis("head", ("h",)), Axis("seq", ("i", "j")))
    inputs = example_inputs(attention.cascade, torch.float32, 0, Shape(1, 8, N, N, (4, 6), 2))

    kept = Derived()

    def made_by(devices: int) -> list[dict[str, torch.Tensor]]:
        along = [Meeting(2) for _ in range(devices)], [Meeting(devices) for _ in range(2)]
        cuts = [sum(even(N, 4)[: r * 4 // devices]) for r in range(1, devices)]

        def device(rank: int) -> dict[str, torch.Tensor]:
            s, h = divmod(rank, 2)
            transports = {"head": along[0][s].of(h), "seq": along[1][h].of(s)}
            rows = parts(N, cuts)[s]
            own = {n: x.chunk(2, 0 if n == "slope" else 1)[h] for n, x in inputs.items() if isinstance(x, torch.Tensor)}
            own = {n: (x if n == "slope" else x[:, :, rows]).clone().requires_grad_() for n, x in own.items()}
            sharded = Sharded(attention, axes, transports, "columns", parts=4)
            sharded.kept = kept
            o = sharded(**own)
            torch.sin(only(o)).sum().backward()
            return {"o": only(o).detach(), **{n: gradient(x) for n, x in own.items()}}

        return on_all(2 * devices, device)

    one, two = made_by(1), made_by(2)
    for h in range(2):
        for n, x in one[h].items():
            found = two[h][n] if n == "slope" else torch.cat([two[h][n], two[2 + h][n]], 2)
            assert torch.equal(x, found), n


def test_counted_bytes_are_those_between_devices() -> None:
    attention, axis, meet = einfuse.compile("alibi", backend="torch"), Axis("seq", ("i", "j")), meeting(2)
    inputs = example_inputs(attention.cascade, torch.float32, 0, Shape(1, 8, 8, 8, (4, 6), 2))

    def device(rank: int) -> None:
        own = {n: (x if n == "slope" else x[:, :, 4 * rank : 4 * rank + 4]).clone().requires_grad_() for n, x in inputs.items()}  # type: ignore[union-attr, index]
        transport = meet.of(rank)
        sharded = Sharded(attention, (axis,), {"seq": transport}, "columns", parts=4)
        here, values = sharded.asked(attention.cascade, (), own)
        count = sharded.bytes(attention.cascade, here, values, 0, "columns")
        before = sum(transport.sent)
        sharded(**own).sum().backward()  # type: ignore[union-attr]
        expected = sum(count.forward[rank]) + sum(count.backward[rank]) + 8 * SLOTS
        assert sum(transport.sent) - before == expected > 8 * SLOTS

    on_all(2, device)


@pytest.mark.parametrize(
    ("count", "ranks", "error"),
    [
        (3, {"seq": ("i", "j")}, "causal: parts=3 do not go evenly to the 2 devices of `seq`"),
        (4, {"head": ("h",)}, "causal: parts are those of one axis of positions, found none"),
        (4, {"x": ("i",), "y": ("j",)}, "causal: parts are those of one axis of positions, found x, y"),
    ],
)
def test_what_parts_cannot_be(count: int, ranks: dict[str, tuple[str, ...]], error: str) -> None:
    axes, attention = tuple(Axis(n, r) for n, r in ranks.items()), einfuse.compile("causal")
    with pytest.raises(ValueError, match=error):
        Sharded(attention, axes, {n: Simulated(Meeting(2), 0) for n in ranks}, parts=count)


def test_devices_hold_their_parts() -> None:
    meet, attention = meeting(2), einfuse.compile("causal", backend="torch")

    def device(rank: int) -> None:
        x = torch.zeros(1, 2, (5, 2)[rank], 4)
        with pytest.raises(ValueError, match=r"causal: in 2 parts devices hold \[3, 4\] entries of q, found \[5, 2\]"):
            Sharded(attention, (Axis("seq", ("i", "j")),), {"seq": meet.of(rank)}, parts=2)(x, x, x)

    on_all(2, device)


def test_processes_and_one_alone_are_the_same_bits(devices: Pool) -> None:
    inputs = example_inputs(einfuse.compile("alibi").cascade, torch.float32, 0, Shape(1, 8, 13, 13, (4, 6), 2))
    assert devices.run(in_parts, name="alibi", exchange="columns", inputs=inputs, total=13) == [True] * 3
