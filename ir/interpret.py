"""The semantics of the IR: a cascade evaluated over torch tensors, point by point as written.

It is the oracle of every test (run it in float64), and since it is made of torch operations, autograd through it is the oracle
of every derived backward. A masked point is never evaluated: where a statement has a mask, its map is computed at the list of live
points only, so nothing that an inf or a NaN does there can be seen, in values or in gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade, Einsum, Expr, Fold, Range, Scalar, State
from einfuse.ir.passes.infer_space import run as infer_space

POINTS = "*"  # the one dimension of a list of points


@dataclass(frozen=True, slots=True)
class Block:
    """A value over some ranks, in the cascade's rank order, whose first point has the coordinates ``base``."""

    data: Tensor
    dims: tuple[str, ...]
    base: tuple[int, ...] = ()


def _floor_divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode="floor")


def _number(a: Tensor) -> Tensor:
    return a if a.is_floating_point() else a.to(torch.get_default_dtype())


def _mixed(x: Tensor) -> Tensor:
    """32 bits held in 64; products wrap, and their low 32 bits are right."""
    x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def _hashed(key: Tensor, counter: Tensor) -> Tensor:
    first = _mixed((key.to(torch.int64) ^ 0x9E3779B9) & 0xFFFFFFFF)
    return _mixed((first ^ counter.to(torch.int64)) & 0xFFFFFFFF) & 0x7FFFFFFF


TORCH: dict[str, Callable[..., Tensor]] = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": lambda a, b: torch.div(a, b),
    "//": _floor_divide,
    "%": torch.remainder,
    "hash": _hashed,
    "^": lambda a, b: torch.pow(_number(a), b),
    "neg": torch.neg,
    "abs": torch.abs,
    "max": lambda a, b: torch.maximum(*_same(a, b)),
    "min": lambda a, b: torch.minimum(*_same(a, b)),
    "sign": torch.sign,
    "stop": torch.Tensor.detach,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "log": torch.log,
    "log2": torch.log2,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": lambda a: torch.clamp(a, min=0) + torch.log1p(torch.exp(-torch.abs(a))),
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "floor": lambda a: torch.floor(a).to(torch.int64),
    "float": _number,
    "int": lambda a: a.to(torch.int64),
    "<": torch.lt,
    "<=": torch.le,
    ">": torch.gt,
    ">=": torch.ge,
    "==": torch.eq,
    "!=": torch.ne,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "select": lambda c, a, b: torch.where(c, *_same(a, b)),
}

_REDUCE: dict[str, Callable[[Tensor, list[int]], Tensor]] = {
    "sum": lambda x, axes: x.sum(axes),
    "max": lambda x, axes: x.amax(axes),
    "min": lambda x, axes: x.amin(axes),
    "any": lambda x, axes: x.bool().any(dim=axes[0]) if len(axes) == 1 else x.bool().flatten(axes[0]).any(-1),
    "prod": lambda x, axes: x.flatten(axes[0]).prod(-1),
}
COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
    "any": torch.logical_or,
    "prod": torch.mul,
}


def _same(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def interpret(
    cascade: Cascade,
    inputs: Mapping[str, Tensor | Scalar],
    sizes: Mapping[str, int],
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Evaluates ``cascade``; ``inputs`` holds tensors and host numbers by name, ``sizes`` every symbolic size.

    Returns the outputs, each with the ambient ranks first, in floats of ``dtype``. Differentiable in every float input.
    """
    return _Interpreter(cascade, inputs, dict(sizes), dtype).run()


def evaluate_indices(
    cascade: Cascade,
    index: Sequence[Expr],
    ranks: Sequence[str],
    inputs: Mapping[str, Tensor | Scalar],
    sizes: Mapping[str, int],
    window: Mapping[str, tuple[int, int]] | None = None,
) -> list[Tensor]:
    """Index expressions at every point of ``ranks`` (inside ``window``): tensors that broadcast against those axes, in that order.

    They may read ``inputs`` that the cascade itself does not: a table's gradient needs its place only when it is added up.
    """
    run = _Interpreter(
        cascade, {t.name: inputs[t.name] for t in cascade.inputs if t.name in inputs}, dict(sizes), torch.float64
    )
    run.inputs |= {n: torch.as_tensor(x, device=run.device) for n, x in inputs.items() if n not in run.inputs}
    span = {r: (0, n) for r, n in run.extent.items()} | dict(window or {})
    held = run._sorted(ranks)
    return [run._aligned(run._dense(e, {}, span), held).permute([held.index(r) for r in ranks]) for e in index]


class _Interpreter:
    def __init__(
        self, cascade: Cascade, inputs: Mapping[str, Tensor | Scalar], sizes: dict[str, int], dtype: torch.dtype
    ) -> None:
        cascade = infer_space(cascade)
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
            wanted = {"float": dtype, "int": torch.int64, "bool": torch.bool}[t.dtype]
            self.inputs[t.name] = data.to(wanted)

    # -- the whole -------------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Tensor]:
        """The outputs, tile by tile; ambient points one by one where a fold's range depends on them."""
        span = {r: (0, n) for r, n in self.extent.items()}
        pieces = [span]
        if any(ex.indices(e) & set(self.cascade.over) for f in self._folds() for r in f.ranges for e in _bounds(r)):
            for rank in self.cascade.over:
                pieces = [{**s, rank: (k, k + 1)} for s in pieces for k in range(self.extent[rank])]
        for rank, block in self.cascade.tile:
            starts = range(0, self.extent[rank], block)
            pieces = [{**s, rank: (k, min(k + block, self.extent[rank]))} for s in pieces for k in starts]
        whole = {name: self._empty(name) for name in self.cascade.outs}
        for piece in pieces:
            env = self._body(self.cascade.body, {}, piece)
            for name, out in whole.items():
                value = env[name]
                window = tuple(slice(*piece[d]) for d in value.dims)
                whole[name] = value.data if len(pieces) == 1 else _put(out, window, value.data)
        return {name: self._as_written(name, out) for name, out in whole.items()}

    def _as_written(self, name: str, out: Tensor) -> Tensor:
        """Axes in the order of the spec: the ambient ranks, then the statement's own."""
        wanted = (*self.cascade.over, *self._ranks_of(name))
        held = self._sorted(wanted)
        return out if wanted == held else out.permute([held.index(d) for d in wanted])

    def _folds(self) -> list[Fold]:
        return [x for x in self.cascade.body if isinstance(x, Fold)]

    def _empty(self, name: str) -> Tensor:
        dims = self._sorted((*self.cascade.over, *self._ranks_of(name)))
        return torch.zeros([self.extent[d] for d in dims], dtype=self.dtype, device=self.device)

    def _ranks_of(self, name: str) -> tuple[str, ...]:
        for x in self.cascade.body:
            for y in (x, *x.body) if isinstance(x, Fold) else (x,):
                if not isinstance(y, Fold) and y.target == name:
                    return y.ranks
        raise AssertionError(f"no statement {name}")

    def _sorted(self, dims: Sequence[str]) -> tuple[str, ...]:
        return tuple(sorted(set(dims), key=self.order.__getitem__))

    # -- statements ------------------------------------------------------------------------------------------------------

    def _body(
        self, body: Sequence[Einsum | State | Fold], env: dict[str, Block], span: dict[str, tuple[int, int]]
    ) -> dict[str, Block]:
        env = dict(env)
        for x in body:
            if isinstance(x, Fold):
                env |= self._fold(x, env, span)
            else:
                assert isinstance(x, Einsum), "a state stands only in a fold"
                env[x.target] = self._einsum(x, env, span)
        return env

    def _einsum(self, x: Einsum, env: dict[str, Block], span: dict[str, tuple[int, int]]) -> Block:
        if x.red == "solve":
            return self._solved(x, env, span)
        return self._reduced(x.red, x.ranks, x.over, x.map, x.mask, env, span)

    def _reduced(
        self,
        red: str | None,
        ranks: tuple[str, ...],
        over: tuple[str, ...],
        e: Expr,
        mask: Expr | None,
        env: dict[str, Block],
        span: dict[str, tuple[int, int]],
    ) -> Block:
        dims = self._sorted((*self.cascade.over, *ranks))
        base = tuple(span[d][0] for d in dims)
        if red == "sum" and len(ex.factors(e)) > 1:
            return Block(self._contraction(dims, over, e, mask, env, span), dims, base)
        every = self._sorted((*dims, *over))
        identity = ex.MONOIDS[red] if red else 0.0
        data = self._expanded(self._masked(e, mask, every, env, span, identity), every, span)
        if not red:
            return Block(data, dims, base)
        data = data.to(self.dtype) if red == "sum" else data  # also of whole numbers, which no mask has made floats yet
        axes = [every.index(r) for r in over]
        if any(data.shape[a] == 0 for a in axes):
            shape = [n for a, n in enumerate(data.shape) if a not in axes]
            return Block(torch.full(shape, identity, dtype=data.dtype, device=data.device), dims, base)
        order = [*(a for a in range(data.ndim) if a not in axes), *axes]
        data = data.permute(order)
        return Block(_REDUCE[red](data, list(range(data.ndim - len(axes), data.ndim))), dims, base)

    def _contraction(
        self,
        dims: tuple[str, ...],
        over: tuple[str, ...],
        e: Expr,
        mask: Expr | None,
        env: dict[str, Block],
        span: dict[str, tuple[int, int]],
    ) -> Tensor:
        """A sum of products by torch.einsum: the mask is applied to the factors that share its ranks, and to all of them at once
        where another factor is not finite, so that 0 * inf cannot leak."""
        parts = list(ex.factors(e))
        if mask is not None:
            bound = self._dims(mask, env)
            inside = [p for p in parts if self._dims(p, env) & bound and not self._plain(p)]
            outside = [p for p in parts if p not in inside]
            if not inside or not all(bool(torch.isfinite(self._dense(p, env, span).data).all()) for p in outside):
                inside, outside = parts, []
            every = self._sorted(tuple(bound.union(*(self._dims(p, env) for p in inside))))
            blocks = [self._masked(ex.product(*inside), mask, every, env, span, 0.0)] + [
                self._dense(p, env, span) for p in outside
            ]
        else:
            blocks = [self._dense(p, env, span) for p in parts]
        letter = {d: chr(ord("a") + n) for n, d in enumerate(self._sorted((*dims, *over)))}
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

    def _masked(
        self,
        e: Expr,
        mask: Expr | None,
        dims: tuple[str, ...],
        env: dict[str, Block],
        span: dict[str, tuple[int, int]],
        identity: float,
    ) -> Block:
        """``e`` over ``dims``, with ``identity`` at the points that do not exist (never evaluated)."""
        if mask is None:
            return self._dense(e, env, span)
        live = self._expanded(self._dense(mask, env, span), dims, span)
        points = live.nonzero(as_tuple=True)
        coordinates = {d: p + span[d][0] for d, p in zip(dims, points, strict=True)}
        value = self._value(e, env, lambda r: Block(coordinates[r], (POINTS,)) if r in coordinates else None).data
        out = torch.full(
            live.shape, identity, dtype=value.dtype if value.is_floating_point() else self.dtype, device=live.device
        )
        return Block(out.index_put(points, value.expand(len(points[0])).to(out.dtype)), dims)

    def _dense(self, e: Expr, env: dict[str, Block], span: dict[str, tuple[int, int]]) -> Block:
        return self._value(e, env, lambda r: Block(torch.arange(*span[r], device=self.device), (r,)), span)

    def _expanded(self, b: Block, dims: tuple[str, ...], span: dict[str, tuple[int, int]]) -> Tensor:
        return self._aligned(b, dims).expand([span[d][1] - span[d][0] for d in dims])

    # -- expressions -----------------------------------------------------------------------------------------------------

    def _aligned(self, b: Block, dims: tuple[str, ...]) -> Tensor:
        return b.data[tuple(slice(None) if d in b.dims else None for d in dims)]

    def _value(
        self,
        e: Expr,
        env: dict[str, Block],
        coordinate: Callable[[str], Block | None],
        span: dict[str, tuple[int, int]] | None = None,
        new: Mapping[str, Block] | None = None,
    ) -> Block:
        if e.op == "const":
            kind = None if isinstance(e.value, bool | int) else self.dtype
            return Block(torch.tensor(e.value, dtype=kind, device=self.device), ())
        if e.op == "size":
            return Block(torch.tensor(self._size(e.name, span), device=self.device), ())
        if e.op == "index":
            block = coordinate(e.name)
            assert block is not None, f"no coordinate for rank {e.name}"
            return block
        if e.op in ("load", "new"):
            return self._load(e, new if e.op == "new" and new is not None else env, coordinate, span, env, new)
        args = [self._value(a, env, coordinate, span, new) for a in e.args]
        dims = self._sorted([d for a in args for d in a.dims])
        data = [self._aligned(a, dims) for a in args]
        if e.op in (
            "/",
            "exp",
            "exp2",
            "log",
            "log2",
            "log1p",
            "sqrt",
            "rsqrt",
            "tanh",
            "sigmoid",
            "softplus",
            "erf",
            "sin",
            "cos",
            "float",
            "^",
        ):
            data = [d if d.is_floating_point() else d.to(self.dtype) for d in data]
        return Block(TORCH[e.op](*data), dims)

    def _size(self, name: str, span: dict[str, tuple[int, int]] | None) -> int:
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
        span: dict[str, tuple[int, int]] | None,
        env: dict[str, Block],
        new: Mapping[str, Block] | None,
    ) -> Block:
        if e.name in source:
            held = source[e.name]
            args = {d: ex.index(d) for d in held.dims} | dict(zip(self._explicit(e.name, held), e.args, strict=True))
            indexes, data, base = [args[d] for d in held.dims], held.data, held.base
        else:
            data, indexes = self.inputs[e.name], list(e.args)
            base = (0,) * data.ndim
        ranks = [a.name for a in indexes if a.op == "index"]
        if span is not None and len(set(ranks)) == len(indexes):
            if all(span[r][1] - o <= n for r, o, n in zip(ranks, base, data.shape, strict=True)):
                return self._slice(data, ranks, base, span)
        blocks = [self._value(a, env, coordinate, span, new) for a in indexes]
        dims = self._sorted([d for b in blocks for d in b.dims])
        if not blocks:
            return Block(data, ())
        where = [(self._aligned(b, dims) - o).clamp(0, max(n - 1, 0)) for b, o, n in zip(blocks, base, data.shape, strict=True)]
        points = torch.broadcast_tensors(*where)
        return Block(data[tuple(points)], dims)

    def _explicit(self, name: str, held: Block) -> tuple[str, ...]:
        """The ranks of a statement in the order of its written indices (its dims are in rank order, ambient ones implicit)."""
        return self._ranks_of(name)

    def _slice(self, data: Tensor, ranks: list[str], base: tuple[int, ...], span: dict[str, tuple[int, int]]) -> Block:
        for axis, (rank, start) in enumerate(zip(ranks, base, strict=True)):
            lo, hi = span[rank]
            if (lo - start, hi - start) != (0, data.shape[axis]):
                data = data.narrow(axis, lo - start, hi - lo)
        dims = self._sorted(ranks)
        return Block(data.permute([ranks.index(d) for d in dims]), dims)

    # -- folds -----------------------------------------------------------------------------------------------------------

    def _fold(self, f: Fold, env: dict[str, Block], span: dict[str, tuple[int, int]]) -> dict[str, Block]:
        if f.sequential or f.aligned or f.count:
            return self._scan(f, env, span)
        blocks = self._blocks(f, env, span)
        emitted = self._emitted(f, blocks, env, span)
        count = max(1, min(f.split, len(blocks)))
        partial: list[dict[str, Block]] = []
        for part in range(count):
            state: dict[str, Block] | None = None
            for lo, hi, mask in blocks[part::count] if f.split > 1 else blocks:
                one = self._block_states(replace(f, mask=mask), env, {**span, f.rank: (lo, hi)})
                state = one if state is None else self.merge(f, state, one, env, span)
            if state is not None:
                partial.append(state)
        if not partial:
            return self._identities(f, span) | emitted
        total = partial[0]
        for other in partial[1:]:
            total = self.merge(f, total, other, env, span)
        return total | emitted

    def _emitted(
        self, f: Fold, blocks: list[tuple[int, int, Expr | None]], env: dict[str, Block], span: dict[str, tuple[int, int]]
    ) -> dict[str, Block]:
        """The outputs that span the folded rank: written block by block, 0 where no point exists."""
        out: dict[str, Block] = {}
        for y in f.body:
            if isinstance(y, Einsum) and y.target in self.cascade.outs and f.rank in y.ranks:
                dims = self._sorted((*self.cascade.over, *y.ranks))
                whole = torch.zeros([span[d][1] - span[d][0] for d in dims], dtype=self.dtype, device=self.device)
                for lo, hi, mask in blocks:
                    inner = {**span, f.rank: (lo, hi)}
                    block = self._body(
                        [replace(z, mask=mask) if z is y else z for z in f.body if isinstance(z, Einsum)], env, inner
                    )[y.target]
                    whole[tuple(slice(lo, hi) if d == f.rank else slice(None) for d in dims)] = block.data
                out[y.target] = Block(whole, dims, tuple(span[d][0] for d in dims))
        return out

    def _blocks(self, f: Fold, env: dict[str, Block], span: dict[str, tuple[int, int]]) -> list[tuple[int, int, Expr | None]]:
        """The blocks of coordinates a fold visits, each with the mask that must be applied to it (None in full sub-ranges)."""
        extent = self.extent[f.rank]

        def bound(e: Expr) -> int:
            value = self._dense(e, env, span).data
            return int(value.flatten()[0])

        if not f.ranges:
            step = f.step or max(extent, 1)
            return [(k, min(k + step, extent), f.mask) for k in range(0, extent, step)]
        out: list[tuple[int, int, Expr | None]] = []
        for r in f.ranges:
            lo, full_lo, full_hi, hi = map(bound, (r.lo, r.full_lo, r.full_hi, r.hi))
            assert lo <= full_lo <= full_hi <= max(hi, full_hi), f"range ({lo}, {hi}) full ({full_lo}, {full_hi}) out of order"
            step = f.step or max(extent, 1)
            for start, stop, mask in ((lo, full_lo, f.mask), (full_lo, full_hi, None), (full_hi, hi, f.mask)):
                out += [(k, min(k + step, extent), mask) for k in range(start, stop, step) if k < extent]
        return out

    def _identities(self, f: Fold, span: dict[str, tuple[int, int]]) -> dict[str, Block]:
        out = {}
        for y in f.body:
            if isinstance(y, State):
                dims = self._sorted((*self.cascade.over, *y.ranks))
                shape = [span[d][1] - span[d][0] for d in dims]
                data = torch.full(shape, ex.MONOIDS[y.red], dtype=self.dtype, device=self.device)
                out[y.target] = Block(data, dims, tuple(span[d][0] for d in dims))
        return out

    def _block_states(self, f: Fold, env: dict[str, Block], span: dict[str, tuple[int, int]]) -> dict[str, Block]:
        """The states of one block alone."""
        local, out = dict(env), {}
        for y in f.body:
            if isinstance(y, State):
                out[y.target] = self._reduced(y.red, y.ranks, (f.rank,), y.map, f.mask, local, span)
                local[y.target] = _finite(out[y.target])
            else:
                value = self._einsum(y, local, span)
                local[y.target] = _finite(value) if is_let(f, y) else value
        return out

    def _view(
        self, f: Fold, states: Mapping[str, Block], env: dict[str, Block], span: dict[str, tuple[int, int]]
    ) -> dict[str, Block]:
        """The environment in which a carry sees one operand: its states, and the lets computed from them."""
        out = dict(env)
        for y in f.body:
            if isinstance(y, State) and y.target in states:
                out[y.target] = _finite(states[y.target])
            elif isinstance(y, Einsum) and is_let(f, y) and ex.reads(y.map) <= set(out) | set(self.inputs):
                out[y.target] = _finite(self._einsum(y, out, span))
        return out

    def merge(
        self, f: Fold, a: Mapping[str, Block], b: Mapping[str, Block], env: dict[str, Block], span: dict[str, tuple[int, int]]
    ) -> dict[str, Block]:
        """The monoid product of two partial states: both re-based to the merged statistics, then combined."""
        out: dict[str, Block] = {}
        views = [self._view(f, s, env, span) for s in (a, b)]
        for y in f.body:
            if not isinstance(y, State):
                continue
            merged = self._view(f, out, env, span)
            sides = [self._rebased(y, s, v, merged, span) for s, v in zip((a, b), views, strict=True)]
            out[y.target] = replace(a[y.target], data=COMBINE[y.red](*sides))
        return out

    def _rebased(
        self,
        y: State,
        side: Mapping[str, Block],
        view: dict[str, Block],
        merged: Mapping[str, Block],
        span: dict[str, tuple[int, int]],
    ) -> Tensor:
        old = side[y.target]
        if y.carry is None:
            return old.data
        moved = self._value(y.carry, view, lambda r: Block(torch.arange(*span[r], device=self.device), (r,)), span, merged)
        data = self._expanded(moved, old.dims, span)
        for name in ex.reads(y.carry) & set(side):  # a statistic still at its identity: there is nothing to re-base
            dead = replace(side[name], data=~torch.isfinite(side[name].data))
            data = (
                torch.where(self._expanded(dead, old.dims, span), old.data, data) if set(dead.dims) <= set(old.dims) else data
            )
        return data

    def _scan(self, f: Fold, env: dict[str, Block], span: dict[str, tuple[int, int]]) -> dict[str, Block]:
        """Blocks in order, one point each where there is no step: states are read above their line as carried, below it as new."""
        states = [y for y in f.body if isinstance(y, State)]
        zero = self._identities(replace(f, body=tuple(replace(y, red="sum") for y in states)), span)
        local: dict[str, Block] = {**env, **zero}
        for y in states:
            if y.init is not None:
                local[y.target] = self._held(y, y.init, zero[y.target].dims, env, span)
        step, extent = f.step or 1, self.extent[f.rank]
        moving = {f.rank, *f.aligned, *([f.count] if f.count else ())}
        emitted: dict[str, list[Block]] = {}
        blocks = list(enumerate(range(0, extent, step)))
        for n, lo in reversed(blocks) if f.reverse else blocks:
            inner = {**span, **dict.fromkeys((f.rank, *f.aligned), (lo, min(lo + step, extent)))}
            if f.count:
                inner[f.count] = (n, n + 1)
            number = {f.count: ex.const(n)} if f.count else {}
            for held in f.body:
                now = replace(held, map=ex.rename(held.map, number)) if number else held
                if isinstance(now, State):
                    local[now.target] = self._held(now, now.map, zero[now.target].dims, local, inner)
                else:
                    local[now.target] = self._einsum(now, local, inner)
                    if len(set(now.ranks) & moving) == 1:
                        emitted.setdefault(now.target, []).append(local[now.target])
        out = {y.target: local[y.target] for y in states}
        for name, parts in emitted.items():
            axis = next(n for n, d in enumerate(parts[0].dims) if d in moving)
            parts = parts[::-1] if f.reverse else parts
            out[name] = replace(parts[0], data=torch.cat([p.data for p in parts], axis))
        return out

    def _held(self, y: State, e: Expr, dims: tuple[str, ...], env: dict[str, Block], span: dict[str, tuple[int, int]]) -> Block:
        """The value of a sequential state: what does not depend on the block's one point has no axis for it."""
        value = self._dense(e, env, span)
        once = [n for n, d in enumerate(value.dims) if d not in dims]
        assert all(value.data.shape[n] == 1 for n in once), f"{y.target} is set to a value over {value.dims}"
        data = value.data[tuple(0 if n in once else slice(None) for n in range(value.data.ndim))]
        block = Block(data, tuple(d for d in value.dims if d in dims))
        return Block(self._expanded(block, dims, span).to(self.dtype), dims, tuple(span[d][0] for d in dims))

    def _solved(self, x: Einsum, env: dict[str, Block], span: dict[str, tuple[int, int]]) -> Block:
        """The equation ``u = b + m u`` row by row along its own rank, upwards where its condition asks for later rows."""
        (over,), own = x.over, own_rank(x)
        dims = self._sorted((*self.cascade.over, *x.ranks))
        rows = list(range(*span[own]))
        upwards = x.mask == ex.call(">", ex.index(over), ex.index(own))
        base, share = equation(x)
        out: dict[int, Tensor] = {}
        axis = dims.index(own)
        for row in reversed(rows) if upwards else rows:
            here = {**span, own: (row, row + 1)}
            total = self._expanded(self._dense(base, env, here), dims, here).to(self.dtype)
            known = sorted(out)
            if known:
                before = Block(
                    torch.cat([out[r] for r in known], axis), dims, tuple(known[0] if d == own else span[d][0] for d in dims)
                )
                part = Einsum(x.target, x.ranks, "sum", (over,), share, x.mask)
                inner = {**here, over: (known[0], known[-1] + 1)}
                total = total + self._einsum(part, {**env, x.target: before}, inner).data
            out[row] = total
        return Block(torch.cat([out[r] for r in rows], axis), dims, tuple(span[d][0] for d in dims))


def own_rank(x: Einsum) -> str:
    """The rank of an equation along which it reads its own other rows."""
    read = next(e for e in ex.walk(x.map) if e.op == "load" and e.name == x.target)
    return next(r for r, a in zip(x.ranks, read.args, strict=True) if a == ex.index(x.over[0]))


def equation(x: Einsum) -> tuple[Expr, Expr]:
    """The free part and the part that reads the unknown itself of a ``solve``, which are joined by one ``+``."""
    assert x.red == "solve", f"{x.target} is no equation"
    assert x.map.op == "+", "an equation is a sum"
    assert x.target not in ex.reads(x.map.args[0]), "its first part is free of the unknown"
    return x.map.args[0], x.map.args[1]


def is_let(f: Fold, y: Einsum) -> bool:
    """A scalar of the running statistics inside a fold: no fold rank, no reduction, reads a state or another let."""
    known = {z.target for z in f.body if isinstance(z, State) or (not z.red and f.rank not in z.ranks)}
    return not y.red and f.rank not in y.ranks and bool(ex.reads(y.map) & known)


def _finite(b: Block) -> Block:
    """A reference that is finite while a statistic is still its identity."""
    return (
        replace(b, data=torch.where(torch.isfinite(b.data), b.data, torch.zeros_like(b.data)))
        if b.data.is_floating_point()
        else b
    )


def _put(out: Tensor, window: tuple[slice, ...], data: Tensor) -> Tensor:
    out[window] = data.to(out.dtype) if data.is_floating_point() else data
    return out


def _bounds(r: Range) -> tuple[Expr, ...]:
    return (r.lo, r.hi, r.full_lo, r.full_hi)
