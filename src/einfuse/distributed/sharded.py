"""An attention over the devices of a mesh: local shards in, local shards out, gradients of both."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from einfuse.distributed import ahead, columns, programs, routes
from einfuse.distributed import layout as layouts
from einfuse.distributed import parts as splitting
from einfuse.distributed.dry import Count, Counting, counted
from einfuse.distributed.errors import ExchangeError
from einfuse.distributed.explain import explained
from einfuse.distributed.here import At, Axis, Here, Kind, Values, has_features, tensors
from einfuse.distributed.layout import PAIRS_PER_KEY, Layout, contiguous, even
from einfuse.distributed.layout import Kind as LayoutKind
from einfuse.distributed.programs import Exchange
from einfuse.distributed.schedule import RATES, Rates
from einfuse.distributed.transport import Group, Transport
from einfuse.ir import Cascade, Scalar, Scan, SpecError
from einfuse.ir import expr as ex
from einfuse.ir.passes import shard as sharding
from einfuse.runtime import binding
from einfuse.runtime.attention import Attention
from einfuse.runtime.outputs import accumulation
from einfuse.runtime.recent import Recent

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Output = torch.Tensor | tuple[torch.Tensor, ...]
SLOTS = 96
"""Numbers of the message by which devices tell each other what they were called with."""


def shard(
    attention: Attention,
    mesh: DeviceMesh,
    *,
    exchange: Exchange | None = None,
    parts: int | None = None,
    timeout: float = 60.0,
    bandwidth: float | None = None,
    **ranks: str,
) -> Sharded:
    """The attention with ranks of its spec along axes of a mesh: ``shard(attn, mesh, i="seq", j="seq", h="head")``.

    ``exchange`` names the one to take along sequence ranks; None: that which sends the fewest bytes, and "ahead" in place of "columns" where
    rows are done sooner by it. That is reckoned with ``bandwidth``, the bytes a second that a device gets from others (None: 1e9 on CPUs,
    5e10 on GPUs). Raises SpecError with the statement in the way where the attention cannot be sharded like that, before any process group
    is touched. An exchange that takes longer than ``timeout`` seconds is an ExchangeError.

    ``parts`` makes the same bits on any number of devices that goes into it: sequences are cut into so many parts of even lengths, and a
    device computes each of its own as if it had no other. What parts have in common arrives once for each.
    """
    names = mesh.mesh_dim_names or ()
    for rank, name in ranks.items():
        if name not in names:
            raise ValueError(
                f"{attention.name}: rank {rank} is to lie along {name!r}, and the mesh has the axes {', '.join(names)}"
            )
    axes = axes_of(attention.cascade, ranks)
    check(attention.cascade, axes, exchange)
    device = torch.device(mesh.device_type)
    transports = {a.name: Group(mesh.get_group(a.name), device, timeout) for a in axes}
    rates = RATES.get(mesh.device_type, RATES["cuda"])
    rates = rates if bandwidth is None else replace(rates, link=bandwidth)
    out = Sharded(attention, axes, transports, exchange, parts=parts, rates=rates)
    out.mesh = mesh
    return out


def axes_of(c: Cascade, ranks: Mapping[str, str]) -> tuple[Axis, ...]:
    """The axes with their ranks, ambient ones first: those are handled outermost. Raises SpecError for a rank that the spec has not."""
    known = {r.name for r in c.ranks}
    for r in ranks:
        if r not in known:
            raise SpecError(f"{c.name} has no rank {r}; it has {', '.join(sorted(known))}", c.loc)
    found = [Axis(name, tuple(r for r, a in ranks.items() if a == name)) for name in dict.fromkeys(ranks.values())]
    for axis in found:
        if {r in c.over for r in axis.ranks} == {True, False}:
            raise SpecError(f"{c.name}: ambient ranks and others cannot lie along one axis, {axis.name}", c.loc)
    return tuple(sorted(found, key=lambda a: a.ranks[0] not in c.over))


def check(c: Cascade, axes: Sequence[Axis], exchange: Exchange | None) -> list[list[Exchange]]:
    """The exchanges that each axis may take. Raises SpecError where there is none."""
    found = programs.legal(c, axes, exchange)
    out: list[list[Exchange]] = []
    for axis, by in zip(axes, found, strict=True):
        for r in axis.ranks:
            if all(ex.size(c.rank(r).size) not in t.given[0] for t in c.inputs):
                raise SpecError(f"{c.name} has no input along `{r}`, of which devices could hold parts", c.loc)
        out.append([e for e, error in by.items() if error is None])
    return out


class Sharded:
    """A compiled attention over devices. Called with local shards of the inputs that lie along sharded ranks, and all of the others.

    Outputs are local along the same ranks; those without them, and gradients of inputs without them, are the same on all devices.
    Every device makes every call, and every backward.
    """

    def __init__(
        self,
        attention: Attention,
        axes: tuple[Axis, ...],
        transports: Mapping[str, Transport],
        exchange: Exchange | None = None,
        evaluate: Any = None,
        parts: int | None = None,
        rates: Rates = RATES["cpu"],
    ) -> None:
        self.attention, self.exchange, self.parts, self.rates = attention, exchange, parts, rates
        self.all, self.transports, self.plan = axes, transports, None
        cut = [a.name for a in axes if a.ranks[0] not in attention.cascade.over]
        if parts is not None and len(cut) != 1:
            raise ValueError(f"{attention.name}: parts are those of one axis of positions, found {', '.join(cut) or 'none'}")
        self.at = {a.name: self._at(a) for a in axes}
        self.axes = tuple(a for a in axes if self.at[a.name].size > 1)
        self.evaluate = evaluate or self._evaluate
        self.kept: Recent[Any, Any] = Recent(1024)

    plan: Layout | None

    def _at(self, axis: Axis) -> At:
        """Where this device is along an axis: its first part, where there are more parts than devices."""
        t = self.transports[axis.name]
        if self.parts is None or axis.ranks[0] in self.attention.cascade.over:
            return At(t.rank, t.size)
        if self.parts < 1 or self.parts % t.size:
            raise ValueError(
                f"{self.attention.name}: parts={self.parts} do not go evenly to the {t.size} devices of `{axis.name}`"
            )
        return At(t.rank * (self.parts // t.size), self.parts)

    def on(self, plan: Layout) -> Sharded:
        """The same, whose devices hold what the layout says."""
        out = Sharded(self.attention, self.all, self.transports, self.exchange, self.evaluate, self.parts, self.rates)
        out.plan, out.kept, out.mesh = plan, self.kept, self.mesh
        return out

    mesh: DeviceMesh | None = None

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor | Scalar) -> Output:
        placed = self.mesh is not None and _any_placed(args, kwargs)
        if not self.axes and not placed:
            return self.attention(*args, **kwargs)
        attention, given = self.attention.variant(kwargs) if self.attention.optional else (self.attention, kwargs)
        c = attention.cascade
        if placed and self.mesh is not None:
            found, numbers = binding.arguments(c, args, given)
            mine = dtensors().local(c, self.all, self.mesh, found)
            made = self(**mine, **numbers)
            named = dict(zip(c.outs, made if isinstance(made, tuple) else (made,), strict=True))
            return _returned([*dtensors().whole(c, self.all, self.mesh, found, named).values()])
        here, inputs = self.asked(c, args, given)
        outs = splitting.run(c, self.chosen(c, here, inputs), here, self.transports, inputs)
        precision = binding.precision_of(c, tensors(inputs))
        return _returned([outs[n].to(precision) if has_features(c, n) else outs[n] for n in c.outs])

    def asked(
        self, c: Cascade, args: Sequence[torch.Tensor], kwargs: Mapping[str, torch.Tensor | Scalar]
    ) -> tuple[Here, Values]:
        """What is known of a call, and its arguments by name. Raises as a call does for those that do not fit."""
        found, numbers = binding.arguments(c, args, kwargs)
        found = binding.autocast(found)
        binding.one_dtype(c, found)
        return self.here(c, found), {**found, **numbers}

    # -- before a call -----------------------------------------------------------------------------------------------------------

    def layout(
        self,
        total: int,
        kind: LayoutKind | None = None,
        *,
        pairs_per_key: float = PAIRS_PER_KEY,
        **given: torch.Tensor | Scalar,
    ) -> Layout:
        """Who should hold which of so many positions: the kind that is named, or the one in which the slowest device is done first.

        ``given`` are the tables and numbers that masks read. Work is counted in pairs, of tiles that are visited, and a key of another device
        takes as long as ``pairs_per_key`` of them. All devices hold as many positions, but by the kind "unequal", which cuts a sequence where
        its pairs are halved. Deterministic, so every device finds the same without asking.
        """
        found = [a for a in self.all if a.ranks[0] not in self.attention.cascade.over]
        if len(found) != 1:
            raise ValueError(
                f"{self.attention.name}: a layout is one of the axis along which positions are sharded, found {len(found)}"
            )
        (axis,), transport = found, self.transports[found[0].name]
        live, tile = columns.visited(self.attention.cascade, axis, total, given)
        scan = isinstance(self.attention.cascade, Scan)
        if scan and kind not in (None, "contiguous"):
            raise ValueError(f"{self.attention.name}: the points of a scan are held one after the other, not {kind}")
        made = layouts.candidates(total, self.at[axis.name].size, live, tile, "contiguous" if scan else kind)
        costs = [layouts.cost(rows, live, tile) for _, rows in made]
        best = min(range(len(made)), key=lambda n: costs[n].time(pairs_per_key))
        return Layout(made[best][0], axis.name, made[best][1], transport, costs[best])

    def explain(self, *args: torch.Tensor, **kwargs: torch.Tensor | Scalar) -> str:
        """What a call sends: for every exchange of every axis its bytes by link, or why it cannot be taken. All devices ask together.

        The bytes are those of the program of the call itself, run without tensors.
        """
        attention, given = self.attention.variant(kwargs) if self.attention.optional else (self.attention, kwargs)
        if not self.axes:
            return f"{attention.name}: one device, nothing is sent\n"
        here, inputs = self.asked(attention.cascade, args, given)
        return explained(self, attention.cascade, here, inputs)

    # -- what a call is ----------------------------------------------------------------------------------------------------------

    def here(self, c: Cascade, found: Mapping[str, torch.Tensor]) -> Here:
        """What this device knows of a call, after asking the others how much they hold."""
        layouts: dict[str, dict[str, Sequence[routes.Rows]]] = {}
        shapes = {n: list(x.shape) for n, x in found.items()}
        training = torch.is_grad_enabled() and any(x.requires_grad for x in found.values())
        told = {}
        for axis in self.axes:
            held = sharding.held(c, axis.ranks)
            told[axis] = self._told(c, axis, {n: found[n].shape[a] for n, a in held.items()}, found)
            for n, a in held.items():
                shapes[n][a] = sum(told[axis][n])
            layouts[axis.name] = self._layout(c, axis, held, told[axis])
        whole = {n: torch.empty(shapes[n], dtype=x.dtype, device="meta") for n, x in found.items()}
        sizes: Mapping[str, int] = binding.sizes(c, whole)  # type: ignore[assignment]  # nothing is traced here
        here = Here(self.at, layouts, sizes, self.evaluate, accumulation(found.values()), training, self.kept, self.rates)
        for axis in self.axes:
            self._grouped(c, axis, here, told[axis])
        return here

    def _grouped(self, c: Cascade, axis: Axis, here: Here, counts: Mapping[str, Sequence[int]]) -> None:
        """Raises ValueError where what goes together, as heads that share keys do, is not held together."""
        for n, a in sharding.held(c, axis.ranks).items():
            along = c.input(n).given[0][a]
            if along.op == "//":
                size, by = along.args[0].name, here.extent(along.args[1])
                rows = [len(r) for r in here.layouts[axis.name][size]]
                if rows != [m * by for m in counts[n]]:
                    raise ValueError(
                        f"{c.name}: devices hold {rows} entries of {size}, and in {n} {list(counts[n])} groups of {by} of them"
                    )

    def _layout(
        self, c: Cascade, axis: Axis, held: Mapping[str, int], counts: Mapping[str, Sequence[int]]
    ) -> dict[str, Sequence[routes.Rows]]:
        """Who holds which rows of every sharded size."""
        out: dict[str, Sequence[routes.Rows]] = {}
        source: dict[str, str] = {}
        for n, a in held.items():
            along = c.input(n).given[0][a]
            if along.op != "size":
                continue
            size = along.name
            if size in source and list(counts[source[size]]) != list(counts[n]):
                raise ValueError(
                    f"{c.name}: devices hold {list(counts[source[size]])} entries of {size} in {source[size]}, and {list(counts[n])} in {n}"
                )
            source.setdefault(size, n)
            made, said = self._parts(axis, counts[n])
            each = len(made) // len(counts[n])
            holding = [sum(map(len, made[d * each : (d + 1) * each])) for d in range(len(counts[n]))]
            if holding != list(counts[n]):
                raise ValueError(f"{c.name}: {said} devices hold {holding} entries of {n}, found {list(counts[n])}")
            out.setdefault(size, self.kept.setdefault(("rows", axis.name, self.plan, tuple(counts[n])), made))
        return out

    def _parts(self, axis: Axis, counts: Sequence[int]) -> tuple[Sequence[routes.Rows], str]:
        """The rows of every part of so many entries of the devices, and what says so."""
        if self.plan is not None:
            return self.plan.rows(axis.name, sum(counts)), "by the layout"
        if self.parts is None or axis.ranks[0] in self.attention.cascade.over:
            return contiguous(counts), ""
        return contiguous(even(sum(counts), self.parts)), f"in {self.parts} parts"

    def _told(self, c: Cascade, axis: Axis, mine: Mapping[str, int], found: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
        """How many entries of every input each device holds. Raises ExchangeError where they were called differently."""
        transport = self.transports[axis.name]
        called = hashlib.sha256(
            repr((c.digest, axis, self.exchange, self.parts, self.rates, [_kind(x) for x in found.values()])).encode()
        ).digest()
        words = [int.from_bytes(called[:7], "little"), *mine.values()]
        known = ("told", axis, transport.rank, tuple(words), self.plan)
        if self.plan is not None and known in self.kept:
            return self.kept[known]  # type: ignore[no-any-return]
        assert len(words) <= SLOTS, "a spec has no more inputs than that"
        device = next(iter(found.values())).device
        message = torch.tensor(words + [0] * (SLOTS - len(words)), dtype=torch.int64, device=device)
        every = range(transport.size)
        got = routes.messages(
            transport, f"the sizes of {c.name}", {d: [message] for d in every}, {s: [([SLOTS], torch.int64)] for s in every}
        )
        told = [got[s][0].tolist() for s in every]
        for s in every:
            if told[s][0] != words[0]:
                raise ExchangeError(
                    f"{c.name}: device {s} of `{axis.name}` was called with another spec, dtypes or gradients than {transport.rank}"
                )
        out = {n: [told[s][k + 1] for s in every] for k, n in enumerate(mine)}
        self.kept[known] = out
        return out

    # -- which exchanges -----------------------------------------------------------------------------------------------------------

    def chosen(self, c: Cascade, here: Here, inputs: Values) -> list[programs.Route]:
        """The exchange of every axis: the one asked for, or of those that can be taken the one with the fewest bytes, the sooner of two."""
        key = (
            "chosen",
            c.digest,
            self.axes,
            self.exchange,
            self.rates,
            tuple(here.sizes.items()),
            here.training,
            tuple(map(id, _rows(here))),
        )
        if key not in self.kept:
            found = here.memo(("legal", c.digest, self.axes, self.exchange), lambda: check(c, self.axes, self.exchange))
            self.kept[key] = [(axis, self._least(c, n, found, here, inputs)) for n, axis in enumerate(self.axes)]
        return self.kept[key]  # type: ignore[no-any-return]

    def _least(self, c: Cascade, n: int, found: Sequence[Sequence[Exchange]], here: Here, inputs: Values) -> Exchange:
        if len(found[n]) == 1 or self.axes[n].ranks[0] in c.over:
            return found[n][0]
        sent = [e for e in found[n] if e != "ahead"]  # that sends what columns sends
        least = min(sent, key=lambda e: self.bytes(c, here, inputs, n, e, apart=True).most)
        sooner = least == "columns" and "ahead" in found[n] and ahead.planned(c, self.axes[n], here, inputs)[1].ahead
        return "ahead" if sooner else least

    def bytes(self, c: Cascade, here: Here, inputs: Values, n: int, exchange: Exchange, apart: bool = False) -> Count:
        """The bytes of every link of an axis, with that exchange there; ``apart``: with every part on a device of its own."""
        axes = [(a, exchange if k == n else "columns") for k, a in enumerate(self.axes)]
        name = self.axes[n].name
        transports = {**self.transports, name: Counting(*self.at[name])} if apart else self.transports
        return counted(c, axes, here, transports, inputs, name)

    # -- running what is local -----------------------------------------------------------------------------------------------------

    def _evaluate(self, c: Cascade, values: Values, kind: Kind) -> dict[str, torch.Tensor]:
        key = ("attention", c.digest, kind)
        if key not in self.kept:
            form = self.attention.form if kind == "" else "quadratic"
            wide, inner = kind != "", kind == "states"
            self.kept[key] = Attention(
                c,
                self.attention.backend,
                self.attention.strict,
                wide=wide,
                form="auto" if form == "linear" else form,
                inner=inner,
            )
        outs = self.kept[key](**values)
        return dict(zip(c.outs, outs if isinstance(outs, tuple) else (outs,), strict=True))


def _returned(outs: Sequence[torch.Tensor]) -> Output:
    return outs[0] if len(outs) == 1 else tuple(outs)


def _any_placed(args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
    """Whether some argument is a DTensor; their module is imported where there is one."""
    module = sys.modules.get("torch.distributed.tensor")
    kind = None if module is None else module.DTensor
    return kind is not None and (any(type(x) is kind for x in args) or any(type(x) is kind for x in kwargs.values()))


def dtensors() -> ModuleType:
    return import_module("einfuse.distributed.dtensors")


def _kind(x: torch.Tensor) -> tuple[object, ...]:
    return x.dtype, x.ndim, x.requires_grad and torch.is_grad_enabled()


def _rows(here: Here) -> list[object]:
    return [rows for sizes in here.layouts.values() for rows in sizes.values()]
