"""Layouts weigh work against bytes, permute what goes with positions alike, and what `explain` counts is what is sent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from devices import Meeting, Simulated, meeting, on_all, oracle, parts
from torch.utils.checkpoint import checkpoint

import einfuse
from einfuse.distributed import Sharded
from einfuse.distributed.here import Axis
from einfuse.distributed.sharded import SLOTS
from einfuse.runtime.examples import Shape, example_inputs

N, DEVICES = 32768, 8
SEQUENCE = (Axis("seq", ("i", "j")),)


def one_of(name: str, devices: int, rank: int = 0) -> Sharded:
    return Sharded(einfuse.compile(name), SEQUENCE, {"seq": Simulated(Meeting(devices), rank)})  # type: ignore[arg-type]


def ring(columns: tuple[int, ...]) -> float:
    """What moves, as a share of the keys that a ring would move."""
    return sum(columns) / ((DEVICES - 1) * N)


def test_a_window_stays_where_it_is() -> None:
    found = one_of("sliding_window", DEVICES).layout(N, window=1024)
    assert found.kind == "contiguous"
    assert found.cost is not None
    assert ring(found.cost.columns) <= 0.05
    assert found.cost.balance < 1.05


def test_causal_work_is_balanced_by_a_zigzag() -> None:
    sharded = one_of("causal", DEVICES)
    found, plain = sharded.layout(N), sharded.layout(N, "contiguous")
    assert found.kind == "zigzag"
    assert found.cost is not None
    assert plain.cost is not None
    assert found.cost.balance < 1.01 < 1.8 < plain.cost.balance
    assert ring(found.cost.columns) <= 0.76


def test_unequal_shards_have_equal_work() -> None:
    """Where the pairs of a triangle are halved: only if it is asked for, for other layers have as much to do as a device has rows."""
    found = one_of("causal", 2).layout(N, "unequal")
    assert [len(rows) for rows in found.held] == [
        pytest.approx(N * 0.5**0.5, rel=0.01),
        pytest.approx(N * (1 - 0.5**0.5), rel=0.02),
    ]
    assert found.cost is not None
    assert found.cost.balance < 1.01
    assert torch.equal(torch.cat(found.held), torch.arange(N))


def test_documents_are_dealt() -> None:
    generator = torch.Generator().manual_seed(0)
    cuts = torch.randint(1, N, (36,), generator=generator).sort().values
    doc = torch.bucketize(torch.arange(N), cuts, right=True)[None]
    found = one_of("document", DEVICES).layout(N, doc=doc)
    assert found.kind == "dealt"
    assert found.cost is not None
    assert found.cost.balance <= 1.05


def test_what_a_mask_reads_has_to_be_given_and_scans_are_in_order() -> None:
    with pytest.raises(TypeError, match="depends on doc, which a layout has to be given"):
        one_of("document", 2).layout(16)
    scan = Sharded(einfuse.compile("gla"), (Axis("seq", ("i",)),), {"seq": Simulated(Meeting(2), 0)})  # type: ignore[arg-type]
    assert scan.layout(16).kind == "contiguous"
    with pytest.raises(ValueError, match="the points of a scan are held one after the other, not zigzag"):
        scan.layout(16, "zigzag")


@pytest.mark.parametrize("kind", ["contiguous", "zigzag", "dealt", "unequal"])
def test_tensors_go_apart_and_come_together(kind: Any) -> None:
    """Rotations by position are those of the whole, labels stay beside their tokens, and gradients come back to their places."""
    attention, n = einfuse.compile("causal"), 13
    inputs = example_inputs(attention.cascade, torch.float64, 0, Shape(2, 4, n, n, (4, 6), 2))
    q, k, v = (inputs[x].clone().requires_grad_() for x in "qkv")  # type: ignore[union-attr]
    places, labels = torch.arange(n), torch.randn(2, n, dtype=torch.float64)

    def rotated(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return x * torch.cos(0.1 * at.double())[:, None]

    def loss(o: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (o.sum((1, 3)) * y).sum()

    whole = oracle(attention.cascade, {"q": rotated(q, places), "k": rotated(k, places), "v": v})["o"]
    truth = torch.autograd.grad(loss(whole, labels), [q, k, v])
    meet = meeting(3)

    def device(rank: int) -> None:
        sharded = Sharded(attention, SEQUENCE, {"seq": meet.of(rank)}, "columns", evaluate=oracle)  # type: ignore[arg-type]
        plan = sharded.layout(n, kind)
        own = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        *mine, at, y = plan.scatter(*own, places, labels, dim=None)
        o = sharded.on(plan)(rotated(mine[0], at), rotated(mine[1], at), mine[2])
        assert isinstance(o, torch.Tensor)
        (back,) = plan.gather(o, dim=2)
        torch.testing.assert_close(back, whole)
        grads = torch.autograd.grad(loss(o, y), own)
        for g, expected in zip(grads, truth, strict=True):
            torch.testing.assert_close(g.index_select(2, plan.positions), expected.index_select(2, plan.positions))

    on_all(3, device)


def test_an_axis_that_could_be_several_is_named() -> None:
    plan = one_of("causal", 2).layout(4)
    with pytest.raises(ValueError, match=r"expected one axis of 4 positions, found the shape \(4, 4\); name it with dim="):
        plan.scatter(torch.zeros(4, 4))


@pytest.mark.parametrize(
    ("name", "exchange", "ranks"),
    [
        ("causal", "columns", ("i", "j")),
        ("document", "heads", ("i", "j")),
        ("document", "rows", ("i", "j")),
        ("sliding_window", "ahead", ("i", "j")),
        ("sliding_window", "columns", ("i", "j")),
        ("alibi", "states", ("j",)),
        ("gated_delta", "prefix", ("i",)),
        ("window_linear", "prefix", ("i",)),
    ],
)
def test_counted_bytes_are_those_of_the_call(name: str, exchange: Any, ranks: tuple[str, ...]) -> None:
    attention = einfuse.compile(name)
    c, axis, meet, n = attention.cascade, Axis("seq", ranks), meeting(3), 13
    inputs = example_inputs(c, torch.float64, 0, Shape(1, 4, n, n, (4, 6), 2))
    rows = parts(n, (2, 9))

    def device(rank: int) -> tuple[list[int], list[int], Any]:
        from einfuse.ir.passes.shard import held

        own = {}
        for name, x in inputs.items():
            if isinstance(x, torch.Tensor):
                x = x.index_select(held(c, ranks)[name], rows[rank]) if name in held(c, ranks) else x.clone()
                x = x.requires_grad_(x.is_floating_point())
            own[name] = x
        transport = meet.of(rank)
        sharded = Sharded(attention, (axis,), {"seq": transport}, exchange, evaluate=oracle)  # type: ignore[arg-type]
        here, values = sharded.asked(c, (), own)
        count = sharded.bytes(c, here, values, 0, exchange)
        before = list(transport.sent)
        outs = sharded(**own)
        forward = [a - b - (SLOTS * 8 if d != rank else 0) for d, (a, b) in enumerate(zip(transport.sent, before, strict=True))]
        before = list(transport.sent)
        sum(o.sum() for o in (outs if isinstance(outs, tuple) else (outs,))).backward()  # type: ignore[union-attr]
        return forward, [a - b for a, b in zip(transport.sent, before, strict=True)], count

    for rank, (forward, backward, count) in enumerate(on_all(3, device)):
        assert (tuple(forward), tuple(backward)) == (count.forward[rank], count.backward[rank])
        assert sum(count.forward[rank]) + sum(count.backward[rank]) > 0


def test_explain_says_what_was_taken_and_why_not_the_others() -> None:
    attention, meet = einfuse.compile("entmax15"), meeting(2)
    x = torch.zeros(1, 2, 3, 4, requires_grad=True)

    def device(rank: int) -> str:
        return Sharded(attention, SEQUENCE, {"seq": meet.of(rank)}, evaluate=oracle).explain(x, x, x)  # type: ignore[arg-type]

    first, second = on_all(2, device)
    assert first == second
    assert first.splitlines()[0] == "entmax15 over `seq`, 2 devices, i and j along it: columns"
    assert "  columns: taken; at most 192 bytes from one device" in first  # k and v
    assert (
        "    0 -> 1: 192 bytes forward, 0 backward\n    1 -> 0: 0 bytes forward, 192 backward" in first
    )  # no key of later rows
    assert "    device 0 visits 6 pairs, 0.57 of the mean\n    device 1 visits 15 pairs, 1.43 of the mean" in first
    assert "  heads: no fewer bytes; at most 384 bytes from one device" in first  # halves of q, k, v and o
    assert "  states: not possible: entmax15: states are exchanged where one rank of keys is sharded" in first
    assert "  prefix: not possible: entmax15 is no scan over `i` and `j`" in first


def test_few_rows_go_to_many_columns() -> None:
    """And many rows stay where they are: what moves is what has fewer bytes, forward and backward together."""
    attention, k = einfuse.compile("full"), torch.zeros(1, 2, 6, 4, requires_grad=True)

    def taken(queries: int) -> str:
        meet, q = meeting(2), torch.zeros(1, 2, queries, 4, requires_grad=True)

        def device(rank: int) -> str:
            return Sharded(attention, SEQUENCE, {"seq": meet.of(rank)}, evaluate=oracle).explain(q, k, k)  # type: ignore[arg-type]

        return on_all(2, device)[0]

    assert "full over `seq`, 2 devices, i and j along it: rows\n  columns: no fewer bytes; at most 768 bytes" in taken(1)
    assert "  rows: no fewer bytes" in taken(6)


def test_rows_begin_before_columns_arrive() -> None:
    attention, meet, x = einfuse.compile("full"), meeting(2), torch.randn(1, 2, 3, 4, dtype=torch.float64)

    def device(rank: int) -> list[str]:
        done = list[str]()

        class Heard(Simulated):
            def post(self, name: str, *given: Any) -> Any:
                got = super().post(name, *given)
                done.append(f"sent {name}")
                return lambda: (done.append(f"got {name}"), got())[1]  # type: ignore[func-returns-value]

        def evaluate(c: Any, *given: Any) -> Any:
            done.append(c.name)
            return oracle(c, *given)

        sharded = Sharded(attention, SEQUENCE, {"seq": Heard(meet, rank)}, "ahead", evaluate=evaluate)  # type: ignore[arg-type]
        sharded(x, x, x)
        return done

    for done in on_all(2, device):
        sent, first, got, second, merged = done[2:]
        assert (sent, got) == ("sent columns of full", "got columns of full")
        assert first == second == "full_i_local_j_local_partial"
        assert merged == "full_i_local_j_local_merged"


def test_columns_arrive_again_under_a_checkpoint() -> None:
    """What is kept for a backward is then what a device holds, and the gradients are the same bits."""
    attention = einfuse.compile("causal", backend="torch")

    def made(again: bool) -> list[tuple[int, tuple[torch.Tensor, ...]]]:
        meet = meeting(2)

        def device(rank: int) -> tuple[int, tuple[torch.Tensor, ...]]:
            own = [torch.randn(1, 2, 8, 4, generator=torch.Generator().manual_seed(rank)).requires_grad_() for _ in "qkv"]
            sharded, kept = Sharded(attention, SEQUENCE, {"seq": meet.of(rank)}, "columns"), dict[int, int]()  # type: ignore[arg-type]

            def keep(x: torch.Tensor) -> torch.Tensor:
                kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
                return x

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                o = checkpoint(sharded, *own, use_reentrant=False) if again else sharded(*own)
            return sum(kept.values()), torch.autograd.grad(o.square().sum(), own)

        return on_all(2, device)

    for (kept, expected), (less, found) in zip(made(False), made(True), strict=True):
        assert less == 3 * 2 * 8 * 4 * 4 < kept
        assert all(map(torch.equal, expected, found))


def test_one_device_makes_the_plain_call() -> None:
    class Alone:
        rank, size = 0, 1

        def post(self, *given: object) -> Any:
            raise AssertionError("nothing is exchanged")

    attention = einfuse.compile("causal", backend="torch")
    q, k, v = torch.randn(3, 1, 2, 5, 4).unbind()
    sharded = Sharded(attention, SEQUENCE, {"seq": Alone()})  # type: ignore[arg-type]
    assert torch.equal(sharded(q, k, v), attention(q, k, v))  # type: ignore[arg-type]  # one output
    assert sharded.explain(q, k, v) == "causal: one device, nothing is sent\n"
