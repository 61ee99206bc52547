"""Single statements of a cascade, evaluated over windows of their ranks: expressions, masks, reductions and equations.

A masked point is never evaluated: where a statement has a mask, its map is computed at the list of live points only, so nothing that an
inf or a NaN does there can be seen, in values or in gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from einfuse.ir import expr as ex
from einfuse.ir.functions import FUNCTIONS
from einfuse.ir.meaning import TORCH
from einfuse.ir.nodes import Cascade, Einsum, Expr, Scalar
from einfuse.ir.ranking import best, members
from einfuse.ir.reducers import MISSING, Reducer
from einfuse.ir.rewrite import lists, statements
from einfuse.ir.statements import equation, own_rank

POINTS = "*"  # the one dimension of a list of points


@dataclass(frozen=True, slots=True)
class Block:
    """A value over some ranks, in the cascade's rank order, whose first point has the coordinates ``base``."""

    data: Tensor
    dims: tuple[str, ...]
    base: tuple[int, ...] = ()


Span = dict[str, tuple[int, int]]
"""The window of coordinates of every rank: the first one, and the one after the last."""


class Evaluator:
    """The inputs of a run, and what a statement makes of them inside a window."""

    def __init__(
        self, cascade: Cascade, inputs: Mapping[str, Tensor | Scalar], sizes: dict[str, int], dtype: torch.dtype
    ) -> None:
        self.cascade, self.dtype = cascade, dtype
        self.sizes = sizes
        self.extent = {r.name: r.size if isinstance(r.size, int) else sizes[r.size] for r in cascade.ranks}
        self.order = {r.name: n for n, r in enumerate(sorted(cascade.ranks, key=lambda r: r.name not in cascade.over))}
        self.order[POINTS] = len(self.order)
        self.inputs: dict[str, Tensor] = {}
        tensors = [x for x in inputs.values() if isinstance(x, Tensor)]
        self.device = tensors[0].device if tensors else torch.device("cpu")
        for t in cascade.inputs:
            value = inputs[t.name] if t.name in inputs else t.default
            if value is None:
                continue  # found missing where it is read
            data = value if isinstance(value, Tensor) else torch.tensor(value, device=self.device)
            if t.listed is not None:
                data = members(data, int(self.dense(t.axes[-1], {}, {}).data))
            wanted = {"float": dtype, "int": torch.int64, "bool": torch.bool}[t.dtype]
            self.inputs[t.name] = data.to(wanted)

    @functools.cached_property
    def lists(self) -> set[str]:
        """The statements whose entries are looked for."""
        return lists(self.cascade)

    def ranks_of(self, name: str) -> tuple[str, ...]:
        """The ranks of a statement in the order of its written indices (ambient ones are implicit)."""
        return next(x.ranks for x in statements(self.cascade) if x.target == name)

    def in_order(self, dims: Sequence[str]) -> tuple[str, ...]:
        """Distinct ranks as blocks have them: the ambient ones first, then as the cascade declares them."""
        return tuple(sorted(set(dims), key=self.order.__getitem__))

    # -- statements ------------------------------------------------------------------------------------------------------

    def einsum(self, x: Einsum, env: dict[str, Block], span: Span) -> Block:
        if x.reducer.solves:
            return self._solved(x, env, span)
        if x.reducer.chooses:
            return self._chosen(x, env, span)
        found = self.reduced(x.reducer, x.ranks, x.over, x.map, x.mask, env, span)
        if x.target not in self.lists or x.mask is None:
            return found
        live = self.expanded(self.dense(x.mask, env, span), found.dims, span)
        return replace(
            found, data=torch.where(live, found.data, MISSING)
        )  # an entry that does not exist is no number to be found

    def _chosen(self, x: Einsum, env: dict[str, Block], span: Span) -> Block:
        """Coordinates of the best points. Of several ranks: their row-major number."""
        rows = x.ranks[:-1] if x.reducer.slots else x.ranks
        held = self.in_order((*self.cascade.over, *rows))
        every = self.in_order((*held, *x.over))
        order = [every.index(r) for r in (*held, *x.over)]

        def along(b: Block) -> Tensor:
            return self.expanded(b, every, span).permute(order).flatten(len(held))

        value = along(self.masked(x.map, x.mask, every, env, span, 0.0))
        exists = None if x.mask is None else along(self.dense(x.mask, env, span))
        slots = span[x.ranks[-1]][1] if x.reducer.slots else 1
        at = best(value, exists, slots)
        if not x.reducer.slots:
            return Block(at[..., 0], held, tuple(span[d][0] for d in held))
        dims = self.in_order((*held, x.ranks[-1]))
        at = at.permute([(*held, x.ranks[-1]).index(d) for d in dims])
        return Block(at, dims, tuple(span[d][0] for d in dims))

    def reduced(
        self,
        reducer: Reducer,
        ranks: tuple[str, ...],
        over: tuple[str, ...],
        e: Expr,
        mask: Expr | None,
        env: dict[str, Block],
        span: Span,
    ) -> Block:
        dims = self.in_order((*self.cascade.over, *ranks))
        base = tuple(span[d][0] for d in dims)
        if reducer.sums and len(ex.factors(e)) > 1:
            return Block(self._contraction(dims, over, e, mask, env, span), dims, base)
        every = self.in_order((*dims, *over))
        data = self.expanded(self.masked(e, mask, every, env, span, reducer.identity), every, span)
        if reducer.tensors is None:
            return Block(data, dims, base)
        data = data.to(self.dtype) if reducer.sums else data  # also of whole numbers, which no mask has made floats yet
        axes = [every.index(r) for r in over]
        if any(data.shape[a] == 0 for a in axes):
            shape = [n for a, n in enumerate(data.shape) if a not in axes]
            return Block(torch.full(shape, reducer.identity, dtype=data.dtype, device=data.device), dims, base)
        order = [*(a for a in range(data.ndim) if a not in axes), *axes]
        data = data.permute(order)
        return Block(reducer.tensors(data, list(range(data.ndim - len(axes), data.ndim))), dims, base)

    def _contraction(
        self,
        dims: tuple[str, ...],
        over: tuple[str, ...],
        e: Expr,
        mask: Expr | None,
        env: dict[str, Block],
        span: Span,
    ) -> Tensor:
        """A sum of products by torch.einsum: the mask is applied to the factors that share its ranks, and to all of them at once
        where another factor is not finite, so that 0 * inf cannot leak."""
        parts = list(ex.factors(e))
        if mask is not None:
            bound = self._dims(mask, env)
            inside = [p for p in parts if self._dims(p, env) & bound and not self._plain(p)]
            outside = [p for p in parts if p not in inside]
            if not inside or not all(bool(torch.isfinite(self.dense(p, env, span).data).all()) for p in outside):
                inside, outside = parts, []
            every = self.in_order(tuple(bound.union(*(self._dims(p, env) for p in inside))))
            blocks = [self.masked(ex.product(*inside), mask, every, env, span, 0.0)] + [
                self.dense(p, env, span) for p in outside
            ]
        else:
            blocks = [self.dense(p, env, span) for p in parts]
        letter = {d: chr(ord("a") + n) for n, d in enumerate(self.in_order((*dims, *over)))}
        missing = [d for d in (*dims, *over) if not any(d in b.dims for b in blocks)]
        blocks += [Block(torch.ones(span[d][1] - span[d][0], dtype=self.dtype, device=self.device), (d,)) for d in missing]
        sources = ",".join("".join(letter[d] for d in b.dims) for b in blocks)
        return torch.einsum(f"{sources}->{''.join(letter[d] for d in dims)}", *(b.data.to(self.dtype) for b in blocks))

    def _plain(self, e: Expr) -> bool:
        """Does ``e`` read nothing but an input at its own coordinates (so that leaving it unmasked costs nothing)?"""
        return e.op == "const" or (e.op == "load" and e.name in self.inputs and all(a.op != "load" for a in e.args))

    def _dims(self, e: Expr, env: dict[str, Block]) -> set[str]:
        out = ex.indices(e)
        for name in ex.reads(e) | ex.names(e, "new"):
            if name in env:
                out |= {d for d in env[name].dims if d in self.cascade.over}
        return out

    def masked(
        self,
        e: Expr,
        mask: Expr | None,
        dims: tuple[str, ...],
        env: dict[str, Block],
        span: Span,
        identity: float,
    ) -> Block:
        """``e`` over ``dims``, with ``identity`` at the points that do not exist (never evaluated)."""
        if mask is None:
            return self.dense(e, env, span)
        live = self.expanded(self.dense(mask, env, span), dims, span)
        points = live.nonzero(as_tuple=True)
        coordinates = {d: p + span[d][0] for d, p in zip(dims, points, strict=True)}
        value = self.value(e, env, lambda r: Block(coordinates[r], (POINTS,)) if r in coordinates else None).data
        kept = value.is_floating_point() or identity == 0  # an int or a truth value has a 0, and no infinity
        out = torch.full(live.shape, identity, dtype=value.dtype if kept else self.dtype, device=live.device)
        return Block(out.index_put(points, value.expand(len(points[0])).to(out.dtype)), dims)

    def dense(self, e: Expr, env: dict[str, Block], span: Span) -> Block:
        """``e`` at every point of the window."""
        return self.value(e, env, lambda r: Block(torch.arange(*span[r], device=self.device), (r,)), span)

    def expanded(self, b: Block, dims: tuple[str, ...], span: Span) -> Tensor:
        """The values of ``b`` over all of ``dims``."""
        return self.aligned(b, dims).expand([span[d][1] - span[d][0] for d in dims])

    def _solved(self, x: Einsum, env: dict[str, Block], span: Span) -> Block:
        """The equation ``u = b + m u`` row by row along its own rank, upwards where its condition asks for later rows."""
        (over,), own = x.over, own_rank(x)
        dims = self.in_order((*self.cascade.over, *x.ranks))
        rows = list(range(*span[own]))
        upwards = x.mask == ex.call(">", ex.index(over), ex.index(own))
        base, share = equation(x)
        out: dict[int, Tensor] = {}
        axis = dims.index(own)
        for row in reversed(rows) if upwards else rows:
            here = {**span, own: (row, row + 1)}
            total = self.expanded(self.dense(base, env, here), dims, here).to(self.dtype)
            known = sorted(out)
            if known:
                before = Block(
                    torch.cat([out[r] for r in known], axis), dims, tuple(known[0] if d == own else span[d][0] for d in dims)
                )
                part = Einsum(x.target, x.ranks, "sum", (over,), share, x.mask)
                inner = {**here, over: (known[0], known[-1] + 1)}
                total = total + self.einsum(part, {**env, x.target: before}, inner).data
            out[row] = total
        return Block(torch.cat([out[r] for r in rows], axis), dims, tuple(span[d][0] for d in dims))

    # -- expressions -----------------------------------------------------------------------------------------------------

    def aligned(self, b: Block, dims: tuple[str, ...]) -> Tensor:
        """The values of ``b`` with an axis for each of ``dims``, of one entry where it does not depend on it."""
        if b.dims == dims:
            return b.data
        return b.data[tuple(slice(None) if d in b.dims else None for d in dims)]

    def value(
        self,
        e: Expr,
        env: dict[str, Block],
        coordinate: Callable[[str], Block | None],
        span: Span | None = None,
        new: Mapping[str, Block] | None = None,
    ) -> Block:
        if e.op == "const":
            kind = None if isinstance(e.value, bool | int) else self.dtype
            assert isinstance(e.value, bool | int | float), "a constant is a number"
            return Block(torch.full((), e.value, dtype=kind, device=self.device), ())
        if e.op == "size":
            return Block(torch.full((), self._size(e.name, span), device=self.device), ())
        if e.op == "index":
            block = coordinate(e.name)
            assert block is not None, f"no coordinate for rank {e.name}"
            return block
        if e.op == "in":
            return self._member(e, env, coordinate, span, new)
        if e.op in ("load", "new"):
            return self._load(e, new if e.op == "new" and new is not None else env, coordinate, span, env, new)
        args = [self.value(a, env, coordinate, span, new) for a in e.args]
        dims = self.in_order([d for a in args for d in a.dims])
        data = [self.aligned(a, dims) for a in args]
        if FUNCTIONS[e.op].special:
            data = [d if d.is_floating_point() else d.to(self.dtype) for d in data]
        return Block(TORCH[e.op](*data), dims)

    def _member(
        self,
        e: Expr,
        env: dict[str, Block],
        coordinate: Callable[[str], Block | None],
        span: Span | None,
        new: Mapping[str, Block] | None,
    ) -> Block:
        """Is a number among the entries of a list? They are read along an axis of their own, behind all others."""
        element, *prefix = (self.value(a, env, coordinate, span, new) for a in e.args)
        if e.name in env:
            held, ranks = env[e.name], self.ranks_of(e.name)
            by_rank = dict(zip(ranks[:-1], prefix, strict=True))
            ambient = [self.value(ex.index(d), env, coordinate, span) for d in held.dims if d not in ranks]
            axes = [d for d in held.dims if d not in ranks] + list(ranks)
            data = held.data.permute([held.dims.index(d) for d in axes])
            prefix = [*ambient, *(by_rank[r] for r in ranks[:-1])]
        else:
            data = self.inputs[e.name]
        dims = self.in_order([d for b in (element, *prefix) for d in b.dims])
        where = [self.aligned(b, dims).clamp(0, max(n - 1, 0)) for b, n in zip(prefix, data.shape, strict=False)]
        entries = data[tuple(torch.broadcast_tensors(*where))] if where else data
        return Block((entries == self.aligned(element, dims)[..., None]).any(-1), dims)

    def _size(self, name: str, span: Span | None) -> int:
        rank, _, end = name.partition(".")
        if end:
            assert span is not None, f"{name} is known only where whole blocks are evaluated"
            return span[rank][end == "hi"]
        return self.sizes[name]

    def _load(
        self,
        e: Expr,
        source: Mapping[str, Block],
        coordinate: Callable[[str], Block | None],
        span: Span | None,
        env: dict[str, Block],
        new: Mapping[str, Block] | None,
    ) -> Block:
        if e.name in source:
            held = source[e.name]
            args = {d: ex.index(d) for d in held.dims} | dict(zip(self.ranks_of(e.name), e.args, strict=True))
            indexes, data, base = [args[d] for d in held.dims], held.data, held.base
        else:
            data, indexes = self.inputs[e.name], list(e.args)
            base = (0,) * data.ndim
        ranks = [a.name for a in indexes if a.op == "index"]
        if span is not None and len(set(ranks)) == len(indexes):
            if all(span[r][1] - o <= n for r, o, n in zip(ranks, base, data.shape, strict=True)):
                return self._slice(data, ranks, base, span)
        blocks = [self.value(a, env, coordinate, span, new) for a in indexes]
        dims = self.in_order([d for b in blocks for d in b.dims])
        if not blocks:
            return Block(data, ())
        where = [(self.aligned(b, dims) - o).clamp(0, max(n - 1, 0)) for b, o, n in zip(blocks, base, data.shape, strict=True)]
        points = torch.broadcast_tensors(*where)
        return Block(data[tuple(points)], dims)

    def _slice(self, data: Tensor, ranks: list[str], base: tuple[int, ...], span: Span) -> Block:
        for axis, (rank, start) in enumerate(zip(ranks, base, strict=True)):
            lo, hi = span[rank]
            if (lo - start, hi - start) != (0, data.shape[axis]):
                data = data.narrow(axis, lo - start, hi - lo)
        dims = self.in_order(ranks)
        return Block(data.permute([ranks.index(d) for d in dims]), dims)
