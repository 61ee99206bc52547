"""Where rows go: of every device and every other one, which rows of a tensor the first sends and where they lie in what the second gets.

All exchanges are routes: a gather, the columns that some row reads, heads for positions, states side by side. A gradient takes the
route back, and what several devices were sent is added up, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from einfuse.distributed.transport import Transport

Rows = torch.Tensor
"""Numbers of rows, int64, on the host."""
Parts = Mapping[int, Sequence[torch.Tensor]]
Wanted = Mapping[int, Sequence[tuple[Sequence[int], torch.dtype]]]
"""Tensors for every device, and the shapes and dtypes of those from it."""


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """``takes[s][d]`` are rows along the axis ``take`` of the tensor of s, which lie at ``puts[s][d]`` along ``put`` of what d gets.

    The latter has ``extents[d]`` rows along ``put``, and 0 where nothing was sent.
    """

    take: int
    put: int
    takes: Sequence[Sequence[Rows]]
    puts: Sequence[Sequence[Rows]]
    extents: Sequence[int]

    def shape(self, like: Sequence[int], s: int, d: int) -> list[int]:
        """The shape of what goes from s to d, in all other axes that of ``like``."""
        out = list(like)
        out[self.put] = len(self.puts[s][d])
        out[self.take] = len(self.takes[s][d])
        return out

    def elements(self, like: Sequence[int], s: int, d: int) -> int:
        """How many numbers go from s to d."""
        return torch.Size(self.shape(like, s, d)).numel()


def columns(axis: int, held: Sequence[Rows], wanted: Sequence[Rows]) -> Route:
    """Every device gets the rows that it wants, in that order, from who holds them. Each row is held by one."""
    total = sum(map(len, held))
    owner, place = torch.empty(total, dtype=torch.int64), torch.empty(total, dtype=torch.int64)
    for s, rows in enumerate(held):
        owner[rows], place[rows] = s, torch.arange(len(rows))
    takes, puts = [], []
    for s in range(len(held)):
        mine = [(owner[w] == s).nonzero()[:, 0] for w in wanted]
        puts.append(mine)
        takes.append([place[w[p]] for w, p in zip(wanted, mine, strict=True)])
    return Route(axis, axis, takes, puts, [len(w) for w in wanted])


def everything(axis: int, held: Sequence[Rows]) -> Route:
    """Every device gets all rows, in their order."""
    whole = torch.arange(sum(map(len, held)))
    return columns(axis, held, [whole] * len(held))


def crosswise(take: int, put: int, mine: Sequence[Rows], theirs: Sequence[Rows]) -> Route:
    """Every device d gets its rows ``mine[d]`` along ``take``, and along ``put`` those of all devices, ``theirs[s]`` from s."""
    size = len(mine)
    return Route(take, put, [list(mine)] * size, [[theirs[s]] * size for s in range(size)], [sum(map(len, theirs))] * size)


def stacked(size: int, axis: int = 0, to: Callable[[int, int], bool] = lambda s, d: True) -> Route:
    """The one row along the axis that each device has, side by side: from s to d where ``to`` says so."""
    none, one = torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    takes = [[one if to(s, d) else none for d in range(size)] for s in range(size)]
    puts = [[torch.tensor([s]) if to(s, d) else none for d in range(size)] for s in range(size)]
    return Route(axis, axis, takes, puts, [size] * size)


# -- along a route ---------------------------------------------------------------------------------------------------------------------


def there(
    transport: Transport, name: str, xs: Sequence[Sequence[torch.Tensor]], along: Sequence[Route]
) -> Callable[[], list[list[torch.Tensor]]]:
    """Sends tensors along their routes, all of them in one message to each device; what it returns waits for what every one becomes.

    ``xs`` are those of each part that this device is; every device is as many, and routes lead from part to part.
    """
    mine, each = _parts(transport, len(xs)), len(xs)
    parts = {
        d: [
            x.index_select(r.take, _on(r.takes[s][t], x))
            for s, t in _links(mine, to)
            for x, r in zip(xs[s % each], along, strict=True)
        ]
        for d, to in _all(transport, each)
    }
    shapes = {
        d: [(r.shape(x.shape, s, t), x.dtype) for s, t in _links(of, mine) for x, r in zip(xs[t % each], along, strict=True)]
        for d, of in _all(transport, each)
    }
    got = posted(transport, name, parts, shapes)

    def arrived() -> list[list[torch.Tensor]]:
        found = got()
        out = [[x.new_zeros(_extended(r, x.shape, t)) for x, r in zip(xs[t % each], along, strict=True)] for t in mine]
        for d, of in _all(transport, each):
            pieces = iter(found[d])
            for s, t in _links(of, mine):
                for y, r in zip(out[t % each], along, strict=True):
                    y.index_copy_(r.put, _on(r.puts[s][t], y), next(pieces))
        return out

    return arrived


def back(
    transport: Transport,
    name: str,
    gs: Sequence[Sequence[torch.Tensor]],
    along: Sequence[Route],
    shapes: Sequence[Sequence[Sequence[int]]],
) -> Callable[[], list[list[torch.Tensor]]]:
    """The transpose of `there`: what it returns waits for tensors of ``shapes``, sums over the parts that rows went to, in their order."""
    mine, each = _parts(transport, len(gs)), len(gs)
    parts = {
        d: [
            g.index_select(r.put, _on(r.puts[s][t], g))
            for s, t in _links(of, mine)
            for g, r in zip(gs[t % each], along, strict=True)
        ]
        for d, of in _all(transport, each)
    }
    wanted = {
        d: [
            (r.shape(shape, s, t), g.dtype)
            for s, t in _links(mine, to)
            for shape, g, r in zip(shapes[s % each], gs[s % each], along, strict=True)
        ]
        for d, to in _all(transport, each)
    }
    got = posted(transport, f"the gradient of {name}", parts, wanted)
    dtypes, device = [[g.dtype for g in own] for own in gs], gs[0][0].device if gs[0] else None

    def arrived() -> list[list[torch.Tensor]]:
        found = got()
        out = [
            [
                torch.zeros(tuple(shape), dtype=torch.promote_types(t, torch.float32), device=device)
                for shape, t in zip(shapes[s % each], dtypes[s % each], strict=True)
            ]
            for s in mine
        ]
        for d, to in _all(transport, each):
            pieces = iter(found[d])
            for s, t in _links(mine, to):
                for y, r in zip(out[s % each], along, strict=True):
                    y.index_add_(r.take, _on(r.takes[s][t], y), next(pieces).to(y.dtype))
        return [[y.to(t) for y, t in zip(ys, own, strict=True)] for ys, own in zip(out, dtypes, strict=True)]

    return arrived


def summed(transport: Transport, name: str, xs: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    """Sums over all parts, in their order and so with the same bits on each device, which adds up one stretch of the numbers."""
    flat = [torch.cat([x.flatten().to(torch.promote_types(x.dtype, torch.float32)) for x in own]) for own in xs]
    stretches = [list(f.tensor_split(transport.size)) for f in flat]
    me, every = transport.rank, range(transport.size)
    like = (list(stretches[0][me].shape), flat[0].dtype)
    mine = messages(transport, name, {d: [own[d] for own in stretches] for d in every}, {s: [like] * len(xs) for s in every})
    first, *others = [x for s in every for x in mine[s]]
    total = first
    for x in others:
        total = total + x
    shapes = {s: [(list(stretches[0][s].shape), flat[0].dtype)] for s in every}
    got = messages(transport, name, {d: [total] for d in every}, shapes)
    whole = torch.cat([got[s][0] for s in every])
    pieces = whole.split([x.numel() for x in xs[0]])
    return [p.view(x.shape).to(x.dtype) for p, x in zip(pieces, xs[0], strict=True)]


def messages(transport: Transport, name: str, parts: Parts, wanted: Wanted) -> dict[int, list[torch.Tensor]]:
    """One message to and from each device, of several tensors; what a device has for itself stays where it is."""
    return posted(transport, name, parts, wanted)()


def posted(transport: Transport, name: str, parts: Parts, wanted: Wanted) -> Callable[[], dict[int, list[torch.Tensor]]]:
    """`messages`, begun: what it returns waits for them."""
    me = transport.rank
    sends = {d: _bytes(p) for d, p in parts.items() if d != me}
    counts = {s: sum(torch.Size(n).numel() * t.itemsize for n, t in w) for s, w in wanted.items() if s != me}
    got = transport.post(name, sends, counts)

    def arrived() -> dict[int, list[torch.Tensor]]:
        out: dict[int, list[torch.Tensor]] = {me: list(parts[me])}
        for s, held in got().items():
            sizes = [torch.Size(n).numel() * t.itemsize for n, t in wanted[s]]
            pieces = zip(held.split(sizes), wanted[s], strict=True)
            out[s] = [_typed(piece, tuple(shape), dtype) for piece, (shape, dtype) in pieces]
        return out

    return arrived


def _bytes(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([p.contiguous().flatten().view(torch.uint8) for p in parts])


def _typed(piece: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return piece.clone().view(dtype).view(*shape)  # a copy, for a view of other numbers has to start where one of them may


def _on(rows: Rows, x: torch.Tensor) -> torch.Tensor:
    return rows.to(x.device)


def _parts(transport: Transport, each: int, device: int | None = None) -> range:
    """The parts that a device is, this one or another."""
    d = transport.rank if device is None else device
    return range(d * each, (d + 1) * each)


def _all(transport: Transport, each: int) -> list[tuple[int, range]]:
    """All devices with the parts that each is."""
    return [(d, _parts(transport, each, d)) for d in range(transport.size)]


def _links(of: range, to: range) -> list[tuple[int, int]]:
    return [(s, t) for t in to for s in of]


def _extended(r: Route, like: Sequence[int], t: int) -> list[int]:
    """The shape of what a part gets."""
    shape = r.shape(like, t, t)
    shape[r.put] = r.extents[t]
    return shape
