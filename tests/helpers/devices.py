"""Many devices in one process: a thread each, which meet wherever they exchange. What is tested is the code that devices run."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

from einfuse.distributed import Layout, Sharded
from einfuse.distributed.here import Axis, Kind, Values, axes_of
from einfuse.distributed.transport import Arrival
from einfuse.ir import Cascade, Expr, interpret
from einfuse.ir import expr as ex
from einfuse.ir.passes import shard
from einfuse.ir.rewrite import map_expressions
from einfuse.runtime import binding
from einfuse.runtime.attention import Attention
from einfuse.runtime.recent import Recent

T = TypeVar("T")
SCANS: tuple[str, ...] = ("delta", "gated_delta", "gla", "hedgehog", "joint", "linear", "mamba", "packed_linear", "performer")
SCANS += ("retention", "retnet", "rwkv6", "ssd", "window_linear", "lmu", "stack")


class Derived(Recent[Any, Any]):
    """What devices derive of one attention: one of them does, and the others wait for it."""

    def __init__(self) -> None:
        super().__init__(4096)
        self.deriving = threading.RLock()

    def made(self, key: Any, make: Callable[[], Any]) -> Any:
        with self.deriving:
            return super().made(key, make)


class Meeting:
    """Where the devices of one axis leave messages for each other."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60)
        self.left: list[tuple[str, Mapping[int, torch.Tensor]]] = [("", {})] * size

    def of(self, rank: int) -> Simulated:
        return Simulated(self, rank)


class Simulated:
    """A transport among threads. It insists that all devices make the same exchange, with messages as long as they are expected to be."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.size = meeting, rank, meeting.size
        self.sent = [0] * meeting.size

    def post(self, name: str, sends: Mapping[int, torch.Tensor], receives: Mapping[int, int]) -> Arrival:
        meeting = self.meeting
        meeting.left[self.rank] = (name, {d: x.clone() for d, x in sends.items()})
        for d, x in sends.items():
            self.sent[d] += x.numel()
        meeting.barrier.wait()
        left = list(meeting.left)
        meeting.barrier.wait()
        assert {n for n, _ in left} == {name}, f"devices meet in {sorted({n for n, _ in left})}"
        none = torch.empty(0, dtype=torch.uint8)
        got = {s: left[s][1].get(self.rank, none) for s in receives}
        assert {s: x.numel() for s, x in got.items()} == dict(receives), name
        return lambda: got


def on_all(size: int, work: Callable[[int], T]) -> list[T]:
    """What every device makes of ``work(rank)``; the first error of one is raised."""
    out: list[T | None] = [None] * size
    errors: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            out[rank] = work(rank)
        except BaseException as error:  # handed to the test
            errors.append(error)
            for m in _meetings:
                m.barrier.abort()

    threads = [threading.Thread(target=one, args=(r,)) for r in range(size)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    real = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
    if errors:
        raise (real or errors)[0]
    return out  # type: ignore[return-value]  # every one was set


_meetings: list[Meeting] = []


def meeting(size: int) -> Meeting:
    _meetings[:] = [Meeting(size)]
    return _meetings[0]


def oracle(c: Cascade, values: Values, kind: Kind = "") -> dict[str, torch.Tensor]:
    """A cascade as written, in float64.

    Of states: a statistic of no points is 0, as kernels have it, and what is not chosen is finite, for torch differentiates that too.
    """
    if kind:
        c = _of_states.made(c.digest, functools.partial(_with_no_points, c))
    tensors = {n: x for n, x in values.items() if isinstance(x, torch.Tensor)}
    sizes: Mapping[str, int] = binding.sizes(c, tensors)  # type: ignore[assignment]
    return interpret(c, values, sizes)


def _with_no_points(c: Cascade) -> Cascade:
    return map_expressions(c, lambda e: ex.substitute(ex.substitute(e, _kept_apart), _no_points))


_of_states: Recent[str, Cascade] = Recent(1024)


def _kept_apart(e: Expr) -> Expr | None:
    if e.op != "select" or sum(a.op == "const" for a in e.args[1:]) != 1:
        return None
    condition, yes, no = e.args
    dead = condition if yes.op == "const" else ex.call("not", condition)
    safe = {"exp": ex.const(0.0), "/": ex.const(1.0)}

    def one(x: Expr) -> Expr | None:
        if x.op not in safe:
            return None
        *first, last = (ex.substitute(a, one) for a in x.args)
        return ex.call(x.op, *first, ex.call("select", dead, safe[x.op], last))

    branches = [a if a.op == "const" else ex.substitute(a, one) for a in (yes, no)]
    return ex.call("select", condition, *branches)


def _no_points(e: Expr) -> Expr | None:
    if e.op != "/":
        return None
    over, under = (ex.substitute(a, _no_points) for a in e.args)
    none = ex.call("==", under, ex.const(0.0))
    return ex.call("select", none, ex.const(0.0), ex.call("/", over, ex.call("select", none, ex.const(1.0), under)))


def parts(total: int, cuts: Sequence[int]) -> list[torch.Tensor]:
    """Rows of a sequence cut at these places."""
    ends = [0, *sorted(min(c, total) for c in cuts), total]
    return [torch.arange(a, b) for a, b in itertools.pairwise(ends)]


class Whole(NamedTuple):
    """What one device makes: outputs, what they are weighed by, and the gradients of all float inputs."""

    outs: Mapping[str, torch.Tensor]
    weights: Mapping[str, torch.Tensor]
    gradients: Mapping[str, torch.Tensor]


def whole(c: Cascade, inputs: Mapping[str, Any]) -> Whole:
    leaf = {n: x.clone().requires_grad_() if _float(x) else x for n, x in inputs.items()}
    outs = oracle(c, leaf)
    generator = torch.Generator().manual_seed(1)
    weights = {n: torch.randn(x.shape, generator=generator, dtype=torch.float64) for n, x in outs.items()}
    total = sum((x * weights[n]).sum() for n, x in outs.items() if x.requires_grad)
    wanted = [n for n, x in leaf.items() if _float(x)]
    grads = torch.autograd.grad(total, [leaf[n] for n in wanted], allow_unused=True) if isinstance(total, torch.Tensor) else []
    gradients = {n: torch.zeros_like(leaf[n]) if g is None else g for n, g in zip(wanted, grads, strict=False)}
    return Whole(outs, weights, gradients)


def whole_and_parts(
    attention: Attention,
    axes: tuple[Axis, ...],
    exchange: str | None,
    inputs: Mapping[str, Any],
    rows: Mapping[str, Sequence[torch.Tensor]],
    plan: bool = False,
    kept: Derived | None = None,
    known: Whole | None = None,
) -> float:
    """The largest difference between one device and many, in outputs and in all gradients, beside the magnitudes of each.

    ``rows`` says for the size of every sharded rank what each device holds; ``plan``: it is told so. ``kept`` is
    what was derived of the attention before, ``known`` what one device makes of the inputs.
    """
    c, (axis,) = attention.cascade, axes
    size = len(next(iter(rows.values())))
    one, weights, truth = known or whole(c, inputs)
    wanted = [n for n, x in inputs.items() if _float(x)]
    held, along = shard.held(c, axis.ranks), {n: _axis(c, axis, n) for n in c.outs}
    meet, derived = meeting(size), Derived() if kept is None else kept

    def device(rank: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Simulated]:
        mine = {n: _cut(c.input(n).given[0][held[n]], x, held[n], rows, rank) if n in held else x for n, x in inputs.items()}
        own = {n: x.clone().requires_grad_() if _float(x) else x for n, x in mine.items()}
        transport = meet.of(rank)
        sharded = Sharded(attention, axes, {axis.name: transport}, exchange, evaluate=oracle)  # type: ignore[arg-type]
        sharded.kept = derived
        if plan:
            sharded = sharded.on(Layout("dealt", axis.name, tuple(next(iter(rows.values()))), transport))
        found = sharded(**own)
        outs = dict(zip(c.outs, found if isinstance(found, tuple) else (found,), strict=True))
        share = 0 * torch.stack([x.sum() for x in outs.values()]).sum()
        for n, x in outs.items():
            a = along[n]
            w = weights[n] if a is None else _cut(ex.size(c.rank(axes_of(c, n)[a]).size), weights[n], a, rows, rank)
            share = share + (x * w).sum()
        got = [torch.zeros_like(own[n]) for n in wanted]
        if share.requires_grad:
            found_ = torch.autograd.grad(share, [own[n] for n in wanted], allow_unused=True)
            got = [z if g is None else g for z, g in zip(got, found_, strict=True)]
        return outs, dict(zip(wanted, got, strict=True)), transport

    made = on_all(size, device)
    worst = 0.0
    for rank, (outs, got, _) in enumerate(made):
        for n, x in outs.items():
            a = along[n]
            expected = one[n] if a is None else _cut(ex.size(c.rank(axes_of(c, n)[a]).size), one[n], a, rows, rank)
            worst = max(worst, _distance(x, expected))
        for n, g in got.items() if truth else ():
            expected = _cut(c.input(n).given[0][held[n]], truth[n], held[n], rows, rank) if n in held else truth[n]
            worst = max(worst, _distance(g, expected, truth[n]))
    return worst


def _axis(c: Cascade, axis: Axis, name: str) -> int | None:
    return next((n for n, r in enumerate(axes_of(c, name)) if r in axis.ranks), None)


def _cut(along: Expr, x: torch.Tensor, axis: int, rows: Mapping[str, Sequence[torch.Tensor]], rank: int) -> torch.Tensor:
    return x.index_select(axis, rows[str(along.value)][rank])


def _float(x: object) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _distance(x: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor | None = None) -> float:
    assert x.shape == expected.shape, f"{tuple(x.shape)} for {tuple(expected.shape)}"
    if not x.numel():
        return 0.0
    same = (x == expected) | (x.isnan() & expected.isnan())
    size = 1 + float((expected if scale is None else scale).abs().detach().nan_to_num(posinf=0, neginf=0).max())
    return float(torch.where(same, 0.0, (x - expected).detach().abs()).nan_to_num(nan=1e9).max()) / size
