"""The semantics of the IR: a cascade evaluated over torch tensors, point by point as written.

It is the oracle of every test (run it in float64), and since it is made of torch operations, autograd through it is the oracle
of every derived backward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import assert_never

import torch
from torch import Tensor

from einfuse.ir import expr as ex
from einfuse.ir.evaluate import Block, Evaluator, Span
from einfuse.ir.meaning import TORCH
from einfuse.ir.nodes import Cascade, Einsum, Expr, Fold, Range, Scalar, State, Statement
from einfuse.ir.spaces import inferred
from einfuse.ir.statements import lets


def interpret(
    cascade: Cascade,
    inputs: Mapping[str, Tensor | Scalar],
    sizes: Mapping[str, int],
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Evaluates ``cascade``; ``inputs`` holds tensors and host numbers by name, ``sizes`` every symbolic size.

    Returns the outputs, each with the ambient ranks first, in floats of ``dtype``. Differentiable in every float input.
    """
    return Interpreter(inferred(cascade), inputs, dict(sizes), dtype).run()


def evaluate_indices(
    cascade: Cascade,
    index: Sequence[Expr],
    ranks: Sequence[str],
    inputs: Mapping[str, Tensor | Scalar],
    sizes: Mapping[str, int],
    window: Mapping[str, tuple[int, int]] | None = None,
    device: torch.device | None = None,
) -> list[Tensor]:
    """Index expressions at every point of ``ranks`` (inside ``window``): tensors that broadcast against those axes, in that order, on a device
    (that of the inputs).

    They may read ``inputs`` that the cascade itself does not (a table's gradient needs its place only when it is added up), and statements
    without a reducer.
    """
    run = Evaluator(
        inferred(cascade), {t.name: inputs[t.name] for t in cascade.inputs if t.name in inputs}, dict(sizes), torch.float64
    )
    run.device = device or run.device
    run.inputs |= {n: torch.as_tensor(x, device=run.device) for n, x in inputs.items() if n not in run.inputs}
    span = {r: (0, n) for r, n in run.extent.items()} | dict(window or {})
    held, env = run.in_order(ranks), dict[str, Block]()
    for x in _read_by(index, cascade):
        env[x.target] = run.einsum(x, env, span)
    return [run.aligned(run.dense(e, env, span), held).permute([held.index(r) for r in ranks]) for e in index]


def _read_by(index: Sequence[Expr], cascade: Cascade) -> list[Einsum]:
    """The statements that expressions read, also through each other, in order."""
    wanted = set().union(*map(ex.reads, index))
    out: list[Einsum] = []
    for x in reversed(cascade.einsums):
        if x.target in wanted:
            assert x.red is None, f"{x.target} is computed by {x.red}"
            wanted |= ex.reads(x.map) | ex.reads(x.mask)
            out.append(x)
    return out[::-1]


class Interpreter(Evaluator):
    """A whole cascade: tile by tile, and the folds of each."""

    def run(self) -> dict[str, Tensor]:
        """The outputs, tile by tile; ambient points one by one where a fold's range depends on them."""
        span = {r: (0, n) for r, n in self.extent.items()}
        pieces = [span]
        if any(ex.indices(e) & set(self.cascade.over) for f in self.cascade.folds for r in f.ranges for e in _bounds(r)):
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
        """Axes in the order of the spec: the ambient ranks, then the statement's own; or wherever the output lies."""
        wanted = (*self.cascade.over, *self.ranks_of(name))
        if name in self.choices | self.lists:
            out = out.clamp(-1)  # in a slot without a point
        held = self.in_order(wanted)
        place = self.cascade.place(name)
        if place is not None:
            span = {r: (0, n) for r, n in self.extent.items()}
            shape = [int(self.dense(a, {}, span).data) for a in place.axes]
            at = tuple(self.expanded(self.dense(e, {}, span), held, span) for e in place.index)
            return torch.zeros(shape, dtype=out.dtype, device=self.device).index_put(at, out)
        return out if wanted == held else out.permute([held.index(d) for d in wanted])

    @property
    def choices(self) -> set[str]:
        return {x.target for x in self.cascade.einsums if x.reducer.chooses}

    def _empty(self, name: str) -> Tensor:
        dims = self.in_order((*self.cascade.over, *self.ranks_of(name)))
        return torch.zeros([self.extent[d] for d in dims], dtype=self.dtype, device=self.device)

    def _body(self, body: Sequence[Statement], env: dict[str, Block], span: Span) -> dict[str, Block]:
        env = dict(env)
        for x in body:
            match x:
                case Fold():
                    env |= self._fold(x, env, span)
                case Einsum():
                    env[x.target] = self.einsum(x, env, span)
                case _:
                    assert_never(x)
        return env

    # -- folds -----------------------------------------------------------------------------------------------------------

    def _fold(self, f: Fold, env: dict[str, Block], span: Span) -> dict[str, Block]:
        if f.ordered:
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
        self, f: Fold, blocks: list[tuple[int, int, Expr | None]], env: dict[str, Block], span: Span
    ) -> dict[str, Block]:
        """The outputs that span the folded rank: written block by block, 0 where no point exists."""
        out: dict[str, Block] = {}
        for y in f.einsums:
            if y.target in self.cascade.outs and f.rank in y.ranks:
                dims = self.in_order((*self.cascade.over, *y.ranks))
                whole = torch.zeros([span[d][1] - span[d][0] for d in dims], dtype=self.dtype, device=self.device)
                made = _made_of(y, f.body)  # of nothing that the fold adds up
                for lo, hi, mask in blocks:
                    inner = {**span, f.rank: (lo, hi)}
                    block = self._body([*made, replace(y, mask=mask)], env, inner)[y.target]
                    whole[tuple(slice(lo, hi) if d == f.rank else slice(None) for d in dims)] = block.data
                out[y.target] = Block(whole, dims, tuple(span[d][0] for d in dims))
        return out

    def _blocks(self, f: Fold, env: dict[str, Block], span: Span) -> list[tuple[int, int, Expr | None]]:
        """The blocks of coordinates a fold visits, each with the mask that must be applied to it (None in full sub-ranges)."""
        extent = self.extent[f.rank]

        def bound(e: Expr) -> int:
            value = self.dense(e, env, span).data
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

    def _identities(self, f: Fold, span: Span) -> dict[str, Block]:
        out = {}
        for y in f.states:
            dims = self.in_order((*self.cascade.over, *y.ranks))
            shape = [span[d][1] - span[d][0] for d in dims]
            data = torch.full(shape, y.reducer.identity, dtype=self.dtype, device=self.device)
            out[y.target] = Block(data, dims, tuple(span[d][0] for d in dims))
        return out

    def _block_states(self, f: Fold, env: dict[str, Block], span: Span) -> dict[str, Block]:
        """The states of one block alone."""
        local, out = dict(env), {}
        scalars = lets(f)
        for y in f.body:
            if isinstance(y, State):
                out[y.target] = self.reduced(y.reducer, y.ranks, (f.rank,), y.map, f.mask, local, span)
                local[y.target] = _finite(out[y.target])
            else:
                value = self.einsum(y, local, span)
                local[y.target] = _finite(value) if y.target in scalars else value
        return out

    def _view(self, f: Fold, states: Mapping[str, Block], env: dict[str, Block], span: Span) -> dict[str, Block]:
        """The environment in which a carry sees one operand: its states, and the lets computed from them."""
        out = dict(env)
        scalars = lets(f)
        for y in f.body:
            match y:
                case State() if y.target in states:
                    out[y.target] = _finite(states[y.target])
                case Einsum() if y.target in scalars and ex.reads(y.map) <= set(out) | set(self.inputs):
                    out[y.target] = _finite(self.einsum(y, out, span))
        return out

    def merge(
        self, f: Fold, a: Mapping[str, Block], b: Mapping[str, Block], env: dict[str, Block], span: Span
    ) -> dict[str, Block]:
        """The monoid product of two partial states: both re-based to the merged statistics, then combined."""
        out: dict[str, Block] = {}
        views = [self._view(f, s, env, span) for s in (a, b)]
        for y in f.states:
            merged = self._view(f, out, env, span)
            sides = [self._rebased(y, s, v, merged, span) for s, v in zip((a, b), views, strict=True)]
            out[y.target] = replace(a[y.target], data=TORCH[y.reducer.combine](*sides))
        return out

    def _rebased(
        self,
        y: State,
        side: Mapping[str, Block],
        view: dict[str, Block],
        merged: Mapping[str, Block],
        span: Span,
    ) -> Tensor:
        old = side[y.target]
        if y.carry is None:
            return old.data
        moved = self.value(y.carry, view, lambda r: Block(torch.arange(*span[r], device=self.device), (r,)), span, merged)
        data = self.expanded(moved, old.dims, span)
        for name in ex.reads(y.carry) & set(side):  # a statistic still at its identity, from which no correction leads
            dead = replace(side[name], data=~torch.isfinite(side[name].data))
            if set(dead.dims) <= set(old.dims):
                data = torch.where(self.expanded(dead, old.dims, span) & ~torch.isfinite(data), old.data, data)
        return data

    def _scan(self, f: Fold, env: dict[str, Block], span: Span) -> dict[str, Block]:
        """Blocks in order, one point each where there is no step: states are read above their line as carried, below it as new."""
        states = f.states
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
                    local[now.target] = self.einsum(now, local, inner)
                    if len(set(now.ranks) & moving) == 1:
                        emitted.setdefault(now.target, []).append(local[now.target])
        out = {y.target: local[y.target] for y in states}
        if not blocks:  # a scan of no points gives out what has none
            out |= {y.target: self._without_points(y, span) for y in f.body if len(set(y.ranks) & moving) == 1}
        for name, parts in emitted.items():
            axis = next(n for n, d in enumerate(parts[0].dims) if d in moving)
            parts = parts[::-1] if f.reverse else parts
            out[name] = replace(parts[0], data=torch.cat([p.data for p in parts], axis))
        return out

    def _without_points(self, y: Einsum | State, span: Span) -> Block:
        dims = self.in_order((*self.cascade.over, *y.ranks))
        return Block(torch.zeros([span[d][1] - span[d][0] for d in dims], dtype=self.dtype, device=self.device), dims)

    def _held(self, y: State, e: Expr, dims: tuple[str, ...], env: dict[str, Block], span: Span) -> Block:
        """The value of a sequential state: what does not depend on the block's one point has no axis for it."""
        value = self.dense(e, env, span)
        once = [n for n, d in enumerate(value.dims) if d not in dims]
        assert all(value.data.shape[n] == 1 for n in once), f"{y.target} is set to a value over {value.dims}"
        data = value.data[tuple(0 if n in once else slice(None) for n in range(value.data.ndim))]
        block = Block(data, tuple(d for d in value.dims if d in dims))
        return Block(self.expanded(block, dims, span).to(self.dtype), dims, tuple(span[d][0] for d in dims))


def _made_of(y: Einsum, body: Sequence[Einsum | State]) -> list[Einsum]:
    """The statements of a fold that ``y`` is computed from, in order."""
    out: list[Einsum] = []
    wanted = set(ex.reads(y.map))
    for x in reversed(body[: body.index(y)]):
        if isinstance(x, Einsum) and x.target in wanted:
            out.insert(0, x)
            wanted |= ex.reads(x.map) | ex.reads(x.mask)
    return out


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
