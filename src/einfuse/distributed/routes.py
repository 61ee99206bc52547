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


def there(transport: Transport, name: str, xs: Sequence[torch.Tensor], routes: Sequence[Route]) -> list[torch.Tensor]:
    """What every tensor becomes along its route, all of them in one message to each device."""
    me = transport.rank
    parts = {
        d: [x.index_select(r.take, _on(r.takes[me][d], x)) for x, r in zip(xs, routes, strict=True)] for d in _all(transport)
    }
    shapes = {s: [(r.shape(x.shape, s, me), x.dtype) for x, r in zip(xs, routes, strict=True)] for s in _all(transport)}
    got = messages(transport, name, parts, shapes)
    out = []
    for n, (x, r) in enumerate(zip(xs, routes, strict=True)):
        shape = r.shape(x.shape, me, me)
        shape[r.put] = r.extents[me]
        y = x.new_zeros(shape)
        for s in _all(transport):
            y.index_copy_(r.put, _on(r.puts[s][me], x), got[s][n])
        out.append(y)
    return out


def back(
    transport: Transport, name: str, gs: Sequence[torch.Tensor], routes: Sequence[Route], shapes: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """The transpose of `there`: tensors of ``shapes``, sums over the devices that rows went to, in their order."""
    me = transport.rank
    parts = {
        s: [g.index_select(r.put, _on(r.puts[s][me], g)) for g, r in zip(gs, routes, strict=True)] for s in _all(transport)
    }
    wanted = {d: [(r.shape(x, me, d), g.dtype) for x, g, r in zip(shapes, gs, routes, strict=True)] for d in _all(transport)}
    got = messages(transport, f"the gradient of {name}", parts, wanted)
    out = []
    for n, (shape, g, r) in enumerate(zip(shapes, gs, routes, strict=True)):
        y = torch.zeros(tuple(shape), dtype=torch.promote_types(g.dtype, torch.float32), device=g.device)
        for d in _all(transport):
            y.index_add_(r.take, _on(r.takes[me][d], g), got[d][n].to(y.dtype))
        out.append(y.to(g.dtype))
    return out


def summed(transport: Transport, name: str, xs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Sums over all devices, in their order and so with the same bits on each: every device adds up one part of the numbers."""
    flat = torch.cat([x.flatten().to(torch.promote_types(x.dtype, torch.float32)) for x in xs]) if xs else torch.empty(0)
    parts = list(flat.tensor_split(transport.size))
    me, every = transport.rank, _all(transport)
    mine = messages(transport, name, {d: [parts[d]] for d in every}, {s: [(list(parts[me].shape), flat.dtype)] for s in every})
    total = mine[0][0]
    for s in every[1:]:
        total = total + mine[s][0]
    got = messages(transport, name, {d: [total] for d in every}, {s: [(list(parts[s].shape), flat.dtype)] for s in every})
    whole = torch.cat([got[s][0] for s in every])
    pieces = whole.split([x.numel() for x in xs])
    return [p.view(x.shape).to(x.dtype) for p, x in zip(pieces, xs, strict=True)]


def messages(
    transport: Transport,
    name: str,
    parts: Mapping[int, Sequence[torch.Tensor]],
    wanted: Mapping[int, Sequence[tuple[Sequence[int], torch.dtype]]],
) -> dict[int, list[torch.Tensor]]:
    """One message to and from each device, of several tensors; what a device has for itself stays where it is."""
    me = transport.rank
    sends = {d: _bytes(p) for d, p in parts.items() if d != me}
    counts = {s: sum(torch.Size(n).numel() * t.itemsize for n, t in w) for s, w in wanted.items() if s != me}
    got = transport.exchange(name, sends, counts)
    out: dict[int, list[torch.Tensor]] = {me: list(parts[me])}
    for s, held in got.items():
        sizes = [torch.Size(n).numel() * t.itemsize for n, t in wanted[s]]
        pieces = zip(held.split(sizes), wanted[s], strict=True)
        out[s] = [_typed(piece, tuple(shape), dtype) for piece, (shape, dtype) in pieces]
    return out


def _bytes(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([p.contiguous().flatten().view(torch.uint8) for p in parts])


def _typed(piece: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return piece.clone().view(dtype).view(*shape)  # a copy, for a view of other numbers has to start where one of them may


def _on(rows: Rows, x: torch.Tensor) -> torch.Tensor:
    return rows.to(x.device)


def _all(transport: Transport) -> list[int]:
    return list(range(transport.size))
