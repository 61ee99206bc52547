"""Lowers a blocked scan to a `ScanPlan`: each statement becomes matrix products, sums along a rank, or arithmetic at every point.

Decided here for every back end: which sums of products are matrix products, where conditions go (into the factor that has their
ranks), and what is read at the other point of a pair (the same value under another name, never computed twice).
"""

from __future__ import annotations

from collections.abc import Mapping

from einfuse.codegen import plan as kp
from einfuse.codegen.lower import _Lowering, _Scope, _signed
from einfuse.codegen.plan import Value
from einfuse.codegen.scan.plan import Op, Prefix, Region, Relabel, ScanPlan, Solve, State, needed, reads
from einfuse.ir import MONOIDS, Cascade, Einsum, Expr, Fold, SpecError
from einfuse.ir import State as IrState
from einfuse.ir import index as coordinate
from einfuse.ir.expr import indices, load, rename
from einfuse.ir.statements import equation
from einfuse.ir.text import show_body


def lower(cascade: Cascade, storage: Mapping[str, kp.Storage], sizes: Mapping[str, int]) -> ScanPlan:
    """The plan of a blocked scan (see `ir.passes.chunk`).

    ``storage`` gives the storage dtype of every input tensor and output; ``sizes`` at least the sizes of the feature ranks, which
    become constants of the kernel. Raises SpecError.
    """
    return _ScanLowering(cascade, storage, sizes).plan()


class _ScanLowering(_Lowering):
    def __init__(self, cascade: Cascade, storage: Mapping[str, kp.Storage], sizes: Mapping[str, int]) -> None:
        (fold,) = cascade.body
        assert isinstance(fold, Fold), "a blocked scan is one fold"
        self.fold = fold
        super().__init__(cascade, storage, sizes)
        self.others = fold.aligned
        self.order = (fold.rank, *fold.aligned, *(r for r in self.features))
        self.states = [y for y in fold.body if isinstance(y, IrState)]

    # -- the whole -----------------------------------------------------------------------------------------------------------

    def plan(self) -> ScanPlan:
        f, c = self.fold, self.cascade
        before = self.scope
        inits = [self._shaped(self._value(y.init, {}) if y.init is not None else self._const(0.0), y) for y in self.states]
        olds = {y.target: Value(self._fresh(y.target), self._dims_of(y), "float") for y in self.states}
        self.scope = body = _Scope(outer=before, rank=f.rank, mine={v.name for v in olds.values()})
        if f.count:
            body.mine.add("<count>")
        self.env |= olds
        self.ranks |= {y.target: y.ranks for y in self.states}
        updates: dict[str, Value] = {}
        for y in f.body:
            if isinstance(y, IrState):
                value = self._value(y.map, self.env, name=f"{y.target}_next")
                if f.rank in value.dims:  # a block of one point
                    value = self._reduce("sum", self._as_float(value), f.rank, f"{y.target}_next")
                self.env[y.target] = updates[y.target] = self._shaped(value, y)
                continue
            self._define(y.target, y.ranks, self._statement(y))
            if y.target in c.outs:
                self._put(y.target, y.ranks)
        self.scope = after = _Scope(outer=before)
        self.env |= olds
        for y in self.states:
            if y.target in c.outs:
                self._put(y.target, y.ranks)
        found = [State(olds[y.target], init, updates[y.target]) for y, init in zip(self.states, inits, strict=True)]
        return self._assembled(tuple(before.ops), tuple(body.ops), tuple(after.ops), tuple(found))

    def _dims_of(self, y: Einsum | IrState) -> tuple[str, ...]:
        return tuple(r for r in self.order if r in y.ranks)

    def _shaped(self, value: Value, y: Einsum | IrState) -> Value:
        """The value at every coordinate of the ranks it is declared with, as a float."""
        value = self._as_float(value)
        return self._broadcast(value, set(y.ranks) - set(value.dims), y.target)

    def _put(self, target: str, ranks: tuple[str, ...]) -> None:
        value = self._broadcast(self.env[target], {r for r in ranks if r in self.order} - set(self.env[target].dims), target)
        self._store(target, ranks, value)

    def _assembled(self, before: Region, body: Region, after: Region, states: tuple[State, ...]) -> ScanPlan:
        f, c = self.fold, self.cascade
        for rank in (f.rank, *c.over):
            self._size_name(c.rank(rank).size)
        wanted = {v.name for s in states for v in (s.init, s.update)}
        after = needed(after, set())
        wanted |= {v.name for op in after for v in reads(op)}
        body = needed(body, wanted)
        body = _late(body, [s.update.name for s in states])
        before = needed(before, wanted | {v.name for op in body for v in reads(op)})
        every = (*before, *body, *after)
        loaded = {op.tensor for op in every if isinstance(op, kp.Load)}
        tensors = [kp.Arg(t.name, len(t.axes), self.storage[t.name]) for t in c.inputs if not t.param and t.name in loaded]
        ranks = {y.target: y.ranks for y in f.body}
        tensors += [kp.Arg(n, len(c.over) + len(ranks[n]), self.storage[n], out=True) for n in c.outs]
        floats = [self.storage[t.name] for t in c.inputs if t.dtype == "float" and t.name in loaded]
        narrow = next((s for s in floats if s in ("bf16", "f16")), self.compute)
        return ScanPlan(
            name=c.name,
            equations=show_body(c),
            ambient=tuple(kp.Block(r, self._size_name(c.rank(r).size), 1) for r in c.over),
            rank=f.rank,
            others=self.others,
            count=f.count,
            size=self._size_name(c.rank(f.rank).size),
            step=f.step,
            reverse=f.reverse,
            features=tuple(kp.Block(r, self._feature_size(r), self._feature_size(r)) for r in self.features),
            tensors=tuple(tensors),
            params=tuple(sorted(self.used_params.items())),
            sizes=tuple(sorted(self.used_sizes)),
            states=states,
            before=before,
            body=body,
            after=after,
            compute=self.compute,  # type: ignore[arg-type]
            narrow=narrow,  # type: ignore[arg-type]
        )

    # -- values ----------------------------------------------------------------------------------------------------------------

    def _value(self, e: Expr, env: Mapping[str, Value], new: Mapping[str, Value] | None = None, name: str = "t") -> Value:
        i = self.fold.rank
        there = [r for r in self.others if r in indices(e)]
        if len(there) == 1 and i not in indices(e) and not self._held_there(e):
            return self._relabelled(self._value(rename(e, {there[0]: coordinate(i)}), env, new, name), i, there[0])
        if e.op == "load" and e.name in env:
            own = tuple(map(coordinate, self.ranks[e.name]))
            if e.args == own:
                return env[e.name]
            here = {x.name: a.name for x, a in zip(own, e.args, strict=True) if a.op == "index"}
            moved = {x: a for x, a in here.items() if x != a}
            if len(here) == len(own) and len(moved) == 1 and {*moved, *moved.values()} <= {i, *self.others}:
                ((old, now),) = moved.items()
                return self._relabelled(env[e.name], old, now)
            raise SpecError(
                f"a kernel cannot read {e.name} at other coordinates than its own", e.loc, "shift the input instead"
            )
        return super()._value(e, env, new, name)

    def _held_there(self, e: Expr) -> bool:
        """Is ``e`` a statement over the other points, read at them?"""
        return e.op == "load" and e.name in self.ranks and e.args == tuple(map(coordinate, self.ranks[e.name]))

    def _relabelled(self, value: Value, old: str, now: str) -> Value:
        if old not in value.dims:
            return value
        dims = tuple(r for r in self.order if r in {now if d == old else d for d in value.dims})
        return self._emit(("relabel", value, now), (value,), lambda n: Relabel(Value(n, dims, value.dtype), value), value.name)

    def _coordinate(self, rank: str) -> Value:
        if rank in self.others:
            return self._relabelled(super()._coordinate(self.fold.rank), self.fold.rank, rank)
        if rank == self.fold.count:  # a number that changes from block to block
            make = lambda n: kp.Coordinate(Value(n, (), "int"), rank)  # noqa: E731
            return self._emit(("coordinate", rank), (Value("<count>", (), "int"),), make, f"{rank}_at", self.fold.rank)
        return super()._coordinate(rank)

    # -- statements --------------------------------------------------------------------------------------------------------------

    def _statement(self, x: Einsum) -> Value:
        if x.red == "solve":
            return self._solve(x)
        if x.red == "sum" and x.mask is not None:
            found = self._prefix(x, x.over[0], x.mask)
            if found is not None:
                return found
        mask = self._value(x.mask, self.env) if x.mask is not None else None
        if x.red is None:
            value = self._value(x.map, self.env, name=x.target)
            return value if mask is None else self._map("select", mask, self._as_float(value), self._const(0.0), name=x.target)
        (rank,) = x.over
        if x.red == "sum":
            return self._sum(x, rank, mask)
        value = self._as_float(self._value(x.map, self.env))
        value = self._masked(value, mask, MONOIDS[x.red])
        return self._reduce(x.red, value, rank, x.target)

    def _prefix(self, x: Einsum, rank: str, mask: Expr) -> Value | None:
        """A sum over all points before (or after) each one, of what does not depend on that one: running sums."""
        sides = [a.value if a.op == "index" else None for a in mask.args]
        moving = {self.fold.rank, *self.others}
        if mask.op not in ("<", "<=", ">", ">=") or rank not in sides or not set(sides) <= moving:
            return None
        (kept,) = (s for s in sides if s != rank)
        assert isinstance(kept, str), "both sides are ranks"
        if kept in indices(x.map):
            return None
        upwards = (mask.op in ("<", "<=")) == (sides[0] == rank)
        value = self._as_float(self._value(x.map, self.env))
        value = value if rank in value.dims else self._broadcast(value, {rank}, x.target)
        exclusive = mask.op in ("<", ">")
        make = lambda n: Prefix(Value(n, value.dims, "float"), value, rank, not upwards, exclusive)  # noqa: E731
        return self._relabelled(self._emit(("prefix", value, rank, upwards, exclusive), (value,), make, x.target), rank, kept)

    def _sum(self, x: Einsum, rank: str, mask: Value | None) -> Value:
        """A sum of products: a matrix product where two groups of factors meet only in the summed rank."""
        sign, parts = _signed(x.map)
        values = [self._as_float(self._value(p, self.env)) for p in parts]
        outside = [v for v in values if rank not in v.dims]
        groups: dict[tuple[str, ...], Value] = {}
        for v in values:
            if rank in v.dims:
                groups[v.dims] = self._map("*", groups[v.dims], v) if v.dims in groups else v
        if mask is not None and rank in mask.dims:
            inside = [g for g in groups if set(mask.dims) <= set(g)]
            for g in inside:  # all of them: 0 times what another one is beyond the mask must be 0
                groups[g] = self._masked(groups[g], mask, 0.0)
            if not inside:
                groups[mask.dims] = self._map("select", mask, self._const(1.0), self._const(0.0))
        alone = groups.pop((rank,), None)
        if alone is not None and groups:
            least = min(groups, key=len)
            groups[least] = self._map("*", groups[least], alone)
        elif alone is not None:
            groups[rank,] = alone
        out = self._contracted(x, rank, list(groups.values()))
        for v in outside:
            out = self._map("*", out, v)
        out = self._map("neg", out) if sign < 0 else out
        return out if mask is None or rank in mask.dims else self._masked(out, mask, 0.0)

    def _contracted(self, x: Einsum, rank: str, groups: list[Value]) -> Value:
        others = [set(g.dims) - {rank} for g in groups]
        if len(groups) == 2 and all(len(s) == 1 for s in others) and not others[0] & others[1]:
            a, b = sorted(groups, key=lambda g: self._position(g, rank))
            dims = tuple(d for d in self._dims((a, b)) if d != rank)
            return self._emit(("dot", a, b, rank), (a, b), lambda n: kp.Dot(Value(n, dims, "float"), a, b, rank), x.target)
        inner = groups[0] if groups else self._const(1.0)
        for g in groups[1:]:
            inner = self._map("*", inner, g)
        return self._reduce("sum", self._as_float(inner), rank, x.target)

    def _solve(self, x: Einsum) -> Value:
        base, share = equation(x)
        matrix, i, (r, *_) = share.args[0], self.fold.rank, self.others
        assert matrix.op == "load", "the matrix of an equation is a statement"
        transposed = matrix.args == (coordinate(r), coordinate(i))
        m = self._value(load(matrix.name, coordinate(i), coordinate(r)), self.env)
        known = self._shaped(self._value(base, self.env), x)
        make = lambda n: Solve(Value(n, known.dims, "float"), m, known, transposed)  # noqa: E731
        return self._emit(("solve", m, known, transposed), (m, known), make, x.target)


def _late(ops: tuple[Op, ...], wanted: list[str]) -> tuple[Op, ...]:
    """Every operation shortly before what needs it, so that few blocks are alive at a time; stores in their order, ``wanted`` last."""
    made = {op.out.name: op for op in ops if not isinstance(op, kp.Store)}
    out: list[Op] = []
    done: set[str] = set()

    def need(name: str) -> None:
        op = made.get(name)
        if op is None or name in done:
            return
        done.add(name)
        for v in reads(op):
            need(v.name)
        out.append(op)

    for op in ops:
        if isinstance(op, kp.Store):
            for v in reads(op):
                need(v.name)
            out.append(op)
    for name in wanted:
        need(name)
    return tuple(out)
