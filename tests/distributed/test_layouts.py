"""Layouts weigh work against bytes, permute what goes with positions alike, and what `explain` counts is what is sent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from devices import Derived, Meeting, Simulated, meeting, on_all, oracle, parts
from narrowed import only
from torch.utils.checkpoint import checkpoint

import einfuse
from einfuse.distributed import Sharded, schedule
from einfuse.distributed.here import Axis
from einfuse.distributed.schedule import Rates
from einfuse.distributed.sharded import SLOTS
from einfuse.runtime.examples import Shape, example_inputs

N, DEVICES = 32768, 8
SEQUENCE = (Axis("seq", ("i", "j")),)


def one_of(name: str, devices: int, rank: int = 0) -> Sharded:
    return Sharded(einfuse.compile(name), SEQUENCE, {"seq": Simulated(Meeting(devices), rank)})


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
    scan = Sharded(einfuse.compile("gla"), (Axis("seq", ("i",)),), {"seq": Simulated(Meeting(2), 0)})
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
        sharded = Sharded(attention, SEQUENCE, {"seq": meet.of(rank)}, "columns", evaluate=oracle)
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
        ("alibi", "rows_back", ("i", "j")),
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
        sharded = Sharded(attention, (axis,), {"seq": transport}, exchange, evaluate=oracle)
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
        return Sharded(attention, SEQUENCE, {"seq": meet.of(rank)}, evaluate=oracle).explain(x, x, x)

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


PLAIN = """attention plain over b {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, i, d]
  in k[b, j, d]
  in v[b, j, e]
  s[i, j] = sum[d](q * k)
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}"""


def test_few_rows_go_to_many_columns() -> None:
    """And many rows stay where they are: what moves is what has fewer bytes, forward and backward each. There are no heads to exchange."""
    attention, kept = einfuse.compile(PLAIN), Derived()

    def taken(queries: int) -> str:
        meet, k = meeting(2), torch.zeros(1, 6, 64, dtype=torch.bfloat16, requires_grad=True)
        q = torch.zeros(1, queries, 64, dtype=torch.bfloat16, requires_grad=True)

        def device(rank: int) -> str:
            sharded = Sharded(attention, SEQUENCE, {"seq": meet.of(rank)}, evaluate=oracle)
            sharded.kept = kept
            return sharded.explain(q, k, k)

        return on_all(2, device)[0]

    # 6 keys of 256 bytes come; back go as many bytes of gradients, or 5 queries with their output gradients and three statistics
    one, five, six = map(taken, (1, 5, 6))
    assert "along it: rows\n  columns: no fewer bytes; at most 3,072 bytes from one device, 1,536 of them backward" in one
    assert "along it: rows_back\n  columns: no fewer bytes; at most 3,072 bytes from one device, 1,536 of them backward" in five
    assert "  rows_back: taken; at most 2,876 bytes from one device, 1,340 of them backward" in five
    assert "along it: columns\n" in six
    assert "  rows_back: no fewer bytes; at most 3,144 bytes from one device, 1,608 of them backward" in six


def test_kernels_run_while_columns_and_gradients_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is sent before a kernel begins, and a backward is the same in reverse."""
    monkeypatch.setattr(schedule, "PIECES", (2,))
    attention, meet = einfuse.compile("full"), meeting(2)

    def device(rank: int) -> list[str]:
        done = list[str]()

        class Heard(Simulated):
            def post(self, name: str, *given: Any) -> Any:
                got = super().post(name, *given)
                done.append(f"sent {name}")
                return lambda: (done.append(f"got {name}"), got())[1]  # type: ignore[func-returns-value]

        def evaluate(c: Any, *given: Any) -> Any:
            done.append(c.name)
            outs = oracle(c, *given)
            [*outs.values()][-1].register_hook(lambda _: done.append(f"gradient of {c.name}"))
            return outs

        sharded = Sharded(attention, SEQUENCE, {"seq": Heard(meet, rank)}, "ahead", evaluate=evaluate)
        x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
        sharded(x, x, x).sum().backward()  # type: ignore[union-attr]  # one output
        return done[2:]  # what devices were called with

    name, partial, merged = "columns of full", "full_i_local_j_local_partial", "full_i_local_j_local_merged"
    for done in on_all(2, device):
        forward = [f"sent {name}", f"sent {name}", partial, f"got {name}", partial, f"got {name}", partial, merged]
        assert done[: len(forward)] == forward
        assert done[len(forward) :] == [
            f"gradient of {merged}",
            f"gradient of {partial}",
            f"sent the gradient of {name}",
            f"gradient of {partial}",
            f"sent the gradient of {name}",
            f"gradient of {partial}",
            f"got the gradient of {name}",
            f"got the gradient of {name}",
        ]


def test_what_is_done_sooner_is_taken() -> None:
    """Own columns first where the kernels take longer than their states, and in pieces where columns take longer than the kernels."""
    attention, x, kept = einfuse.compile("full"), torch.zeros(1, 1, 2048, 64), Derived()

    def explained(x: torch.Tensor, link: float) -> str:
        meet = meeting(2)

        def device(rank: int) -> str:
            rates = Rates(link, 1e11, 1e11, 2e10, 5e-5)
            sharded = Sharded(attention, SEQUENCE, {"seq": meet.of(rank)}, evaluate=oracle, rates=rates)
            sharded.kept = kept
            return sharded.explain(x, x, x)

        first, second = on_all(2, device)
        assert first == second
        return first

    # 2,048 columns of 512 bytes; 2,048 x 4,096 pairs of 266 operations; 2,048 states of 66 numbers, written and read by kernels of 0.05 ms
    fast = explained(x, 1e9)
    assert "along it: ahead\n  columns: later, 23.4 ms for 22.5 ms; at most 1,048,576 bytes from one device\n" in fast
    assert "    columns take 1.05 ms at 1,000,000,000 bytes a second; a forward 22.5 ms in one piece, 23.4 ms at once\n" in fast
    assert "    device 0 visits 8,388,608 pairs, 1.00 of the mean\n" in fast
    assert "a forward 106 ms in 8 pieces, 127 ms at once" in explained(x, 1e7)
    few = explained(x[:, :, :4], 1e12)
    assert "along it: columns\n" in few
    assert "  ahead: no sooner, 0.1 ms for 8.72e-05 ms; at most 2,048 bytes from one device\n" in few


def test_pieces_hide_what_can_be_hidden() -> None:
    """The slowest device counts: 1 s of its own, 2 s of others, 4 s until all is there, 0.1 s a state."""
    found = schedule.times([4.0, 0.0], [1.0, 1.0], [2.0, 0.0], [0.1, 0.1])
    assert (found.arrival, found.at_once) == (4.0, 7.0)
    assert found.pieces == pytest.approx({1: 6.1, 2: 5.1, 4: 4.6, 8: 4.35})
    assert (found.best, found.ahead) == (8, True)
    assert not schedule.times([0.1], [1.0], [1.0], [0.1]).ahead


def test_pieces_come_from_the_next_device_first() -> None:
    own = list(torch.arange(12).split(4))
    wanted = [torch.cat([own[s] for s in range(3) if s != d]) for d in range(3)]
    assert [[p.tolist() for p in pieces] for pieces in schedule.in_turn(own, wanted, 2)] == [
        [[4, 5, 6, 7], [8, 9, 10, 11]],
        [[8, 9, 10, 11], [0, 1, 2, 3]],
        [[0, 1, 2, 3], [4, 5, 6, 7]],
    ]


def test_columns_arrive_again_under_a_checkpoint() -> None:
    """What is kept for a backward is then what a device holds, and the gradients are the same bits."""
    attention = einfuse.compile("causal", backend="torch")

    def made(again: bool) -> list[tuple[int, tuple[torch.Tensor, ...]]]:
        meet = meeting(2)

        def device(rank: int) -> tuple[int, tuple[torch.Tensor, ...]]:
            own = [torch.randn(1, 2, 8, 4, generator=torch.Generator().manual_seed(rank)).requires_grad_() for _ in "qkv"]
            sharded, kept = Sharded(attention, SEQUENCE, {"seq": meet.of(rank)}, "columns"), dict[int, int]()

            def keep(x: torch.Tensor) -> torch.Tensor:
                kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
                return x

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                o = checkpoint(sharded, *own, use_reentrant=False) if again else sharded(*own)
            return sum(kept.values()), torch.autograd.grad(only(o).square().sum(), own)

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
    sharded = Sharded(attention, SEQUENCE, {"seq": Alone()})
    assert torch.equal(sharded(q, k, v), attention(q, k, v))  # type: ignore[arg-type]  # one output
    assert sharded.explain(q, k, v) == "causal: one device, nothing is sent\n"
