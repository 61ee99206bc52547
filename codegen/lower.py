"""Lowers a scheduled cascade to a `KernelPlan`: statements become block operations in SSA form.

What is decided here, once for every back end: which sums of products are matrix products, where masks are applied (to the factor
that shares their ranks, as the reducer's identity), how a state moves when a statistic moves (evaluate at the new reference, re-base
the old value, and leave a state alone whose statistic is still an identity), and what leaves the loop because it does not change in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from einfuse.codegen import plan as kp
from einfuse.codegen.plan import Value
from einfuse.ir import (
    FUNCTIONS,
    MONOIDS,
    Cascade,
    DType,
    Einsum,
    Expr,
    Fold,
    Scalar,
    SpecError,
    State,
    call,
    conjunction,
    const,
)
from einfuse.ir import index as coordinate
from einfuse.ir import size as size_of
from einfuse.ir.expr import factors, indices, names, product, reads, walk
from einfuse.ir.passes.classify_score import operands
from einfuse.ir.passes.schedule import feature_ranks
from einfuse.ir.rewrite import fresh, within_axis
from einfuse.ir.statements import is_let
from einfuse.ir.text import show_body


def lower(cascade: Cascade, storage: Mapping[str, kp.Storage], sizes: Mapping[str, int]) -> kp.KernelPlan:
    """The kernel of ``cascade``.

    ``storage`` gives the storage dtype of every input tensor and output; ``sizes`` at least the sizes of the feature ranks, which
    become constants of the kernel. Raises SpecError for a cascade that no single kernel computes.
    """
    return _Lowering(cascade, storage, sizes).run()


@dataclass(slots=True)
class _Scope:
    """A region under construction: its operations, what they already compute, and where loop-free operations go."""

    ops: list[kp.Op] = field(default_factory=list)
    outer: _Scope | None = None
    rank: str | None = None  # the folded rank of a loop body
    known: dict[object, Value] = field(default_factory=dict)
    mine: set[str] = field(default_factory=set)  # the values that change from block to block

    def find(self, key: object) -> Value | None:
        found = self.known.get(key)
        return found if found is not None or self.outer is None else self.outer.find(key)

    def home(self, args: tuple[Value, ...], rank: str | None = None) -> _Scope:
        """The outermost scope in which an operation on ``args`` can stand."""
        if self.outer is None or rank == self.rank or any(a.name in self.mine for a in args):
            return self
        return self.outer.home(args, rank)


class _Lowering:
    def __init__(self, cascade: Cascade, storage: Mapping[str, kp.Storage], sizes: Mapping[str, int]) -> None:
        self.cascade, self.storage = cascade, storage
        self.inputs = {t.name: t for t in cascade.inputs}
        self.features = feature_ranks(cascade)
        self.static = self._static_sizes(sizes)
        folds = tuple(dict.fromkeys(x.rank for x in cascade.body if isinstance(x, Fold)))
        tile = cascade.tile[0][0] if cascade.tile else None
        self.order = ((tile,) if tile else ()) + tuple(f for f in folds if f != tile) + self.features
        self.scope = _Scope()
        self.env: dict[str, Value] = {}
        self.ranks: dict[str, tuple[str, ...]] = {}
        self.taken: set[str] = set(self.inputs)
        self.extrema: set[str] = set()  # the largest and smallest of something, row by row
        self.siblings: set[str] = set()  # names that the other phase of the fold in hand defines
        self.literals: dict[str, Scalar] = {}  # the constants by value name
        self.loaded: set[str] = set()  # values that are plain loads: 0 in the padding
        self.used_sizes: set[str] = set()
        self.used_params: dict[str, DType] = {}
        self.compute = "f64" if any(storage.get(t.name) == "f64" for t in cascade.inputs) else "f32"

    def _static_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        out: dict[str, int] = {}
        for r in self.cascade.ranks:
            if r.name in self.features:
                if isinstance(r.size, str) and r.size not in sizes:
                    raise SpecError(f"the size {r.size} of rank {r.name} must be known to build a kernel", r.loc)
                if isinstance(r.size, str):
                    out[r.size] = sizes[r.size]
        return out

    # -- the whole -----------------------------------------------------------------------------------------------------------

    def run(self) -> kp.KernelPlan:
        steps: list[kp.Region | kp.Fold] = []
        for x in self.cascade.body:
            if isinstance(x, Fold):
                outer = self.scope
                fold = self._fold(x, outer)
                steps += [tuple(outer.ops), fold]  # what the loop hoisted comes before it
                outer.ops = []
                continue
            value = self._einsum(x)
            if x.target in self.cascade.outs:
                live = None if x.mask is None else self._value(x.mask, self.env, name="live")
                value = self._masked(value, live, 0.0)
                self._store(x.target, x.ranks, value)
            self._define(x.target, x.ranks, value)
        for name in self.cascade.outs:
            if self._is_state(name):
                self._store(name, self.ranks[name], self.env[name])
        steps.append(tuple(self.scope.ops))
        return self._plan(_merged(steps))

    def _is_state(self, name: str) -> bool:
        return any(isinstance(y, State) and y.target == name for x in self.cascade.body if isinstance(x, Fold) for y in x.body)

    def _plan(self, steps: tuple[kp.Region | kp.Fold, ...]) -> kp.KernelPlan:
        c = self.cascade
        tensors = [
            kp.Arg(t.name, len(t.axes), self.storage[t.name]) for t in c.inputs if not t.param and t.name in _loaded(steps)
        ]
        tensors += [kp.Arg(n, self._axes_of(n), self.storage[n], out=True) for n in c.outs]
        tile = None
        if c.tile:
            rank, block = c.tile[0]
            tile = kp.Block(rank, self._size_name(c.rank(rank).size), block)
        for r in self.order:
            self._size_name(c.rank(r).size)
        floats = [self.storage[t.name] for t in c.inputs if t.dtype == "float" and t.name in _loaded(steps)]
        narrow = next((s for s in floats if s in ("bf16", "f16")), self.compute)
        return kp.KernelPlan(
            name=c.name,
            equations=show_body(c),
            ambient=tuple(kp.Block(r, self._size_name(c.rank(r).size), 1) for r in c.over),
            tile=tile,
            features=tuple(kp.Block(r, self._feature_size(r), self._feature_size(r)) for r in self.features),
            tensors=tuple(tensors),
            params=tuple(sorted(self.used_params.items())),
            sizes=tuple(sorted(self.used_sizes)),
            steps=steps,
            compute=self.compute,  # type: ignore[arg-type]
            narrow=narrow,  # type: ignore[arg-type]
        )

    def _axes_of(self, out: str) -> int:
        place = self.cascade.place(out)
        return len(self.cascade.over) + len(self.ranks[out]) if place is None else len(place.axes)

    def _feature_size(self, rank: str) -> int:
        n = self.cascade.rank(rank).size
        return n if isinstance(n, int) else self.static[n]

    def _size_name(self, name: int | str) -> int | str:
        if isinstance(name, str) and name in self.static:
            return self.static[name]
        if isinstance(name, str):
            self.used_sizes.add(name)
        return name

    # -- values ----------------------------------------------------------------------------------------------------------------

    def _fresh(self, base: str) -> str:
        return fresh(base, self.taken)

    def _dims(self, args: tuple[Value, ...]) -> tuple[str, ...]:
        present = {d for a in args for d in a.dims}
        return tuple(r for r in self.order if r in present)

    def _emit(
        self, key: tuple[object, ...], args: tuple[Value, ...], make: object, name: str = "t", rank: str | None = None
    ) -> Value:
        """The value of an operation: the one that exists, or a new one in the outermost scope that can hold it."""
        found = self.scope.find(key)
        if found is not None:
            return found
        home = self.scope.home(args, rank)
        new = self._fresh(name)
        while home.rank is None and new in self.siblings:  # what is hoisted is alive in the other phase as well
            new = self._fresh(name)
        op: kp.Op = make(new)  # type: ignore[operator]
        home.ops.append(op)
        out: Value = op.out  # type: ignore[union-attr]
        home.known[key] = out
        if home.rank is not None:
            home.mine.add(out.name)
        return out

    def _const(self, value: Scalar) -> Value:
        dtype: DType = "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"
        key = ("const", dtype, repr(value))
        out = self._emit(key, (), lambda n: kp.Const(Value(n, (), dtype), value), "c")
        self.literals[out.name] = value
        return out

    def _map(self, fn: str, *args: Value, name: str = "t") -> Value:
        args = self._converted(fn, args)
        dtype = self._result(fn, args)
        if fn == "/" and set(args[1].dims) < set(args[0].dims) and args[1].name not in self.extrema:
            # one reciprocal a row instead of a division an element, but not by a largest value: where that stands, the quotient is 1
            return self._map("*", args[0], self._map("/", self._const(1.0), args[1]), name=name)
        dims = self._dims(args)
        out = self._emit((fn, *args), args, lambda n: kp.Map(Value(n, dims, dtype), fn, args, name != "t"), name)
        if dims and (fn in ("max", "min") or (fn in ("stop", "copy") and args[0].name in self.extrema)):
            self.extrema.add(out.name)
        return out

    def _converted(self, fn: str, args: tuple[Value, ...]) -> tuple[Value, ...]:
        """Ints become floats where the function computes in floats."""
        kind = FUNCTIONS[fn] if fn in FUNCTIONS else None
        if kind is None or fn in ("float", "int"):
            return args
        mine = args[1:] if fn == "select" else args
        floats = kind.result == "float" or any(a.dtype == "float" for a in mine)
        if not floats or kind.takes in ("bool", "int"):
            return args
        return (*args[: len(args) - len(mine)], *(self._as_float(a) for a in mine))

    def _as_float(self, a: Value) -> Value:
        if a.dtype == "float":
            return a
        if a.name in self.literals:
            return self._const(float(self.literals[a.name]))
        return self._map("float", a)

    def _result(self, fn: str, args: tuple[Value, ...]) -> DType:
        if fn == "copy":
            return args[0].dtype
        result = FUNCTIONS[fn].result
        return args[-1].dtype if result == "same" else result  # type: ignore[return-value]

    def _value(self, e: Expr, env: Mapping[str, Value], new: Mapping[str, Value] | None = None, name: str = "t") -> Value:
        if e.op == "const":
            assert isinstance(e.value, int | float), "a constant is a number"  # bool is an int
            return self._const(e.value)
        if e.op == "index":
            return self._coordinate(e.name)
        if e.op == "size":
            return self._size(e.name)
        if e.op == "new":
            assert new is not None, "a re-based value stands only in a carry"
            return new[e.name]
        if e.op == "load":
            if e.name in env:
                if e.args != tuple(map(coordinate, self.ranks[e.name])):
                    raise SpecError(
                        f"a kernel cannot read {e.name} at other coordinates than its own", e.loc, "shift the input instead"
                    )
                return env[e.name]
            return self._load(e, env)
        return self._map(e.op, *(self._value(a, env, new) for a in e.args), name=name)

    def _coordinate(self, rank: str) -> Value:
        dims = (rank,) if rank in self.order else ()
        return self._emit(("coordinate", rank), (), lambda n: kp.Coordinate(Value(n, dims, "int"), rank), f"{rank}_at", rank)

    def _size_of(self, rank: str) -> Value:
        n = self.cascade.rank(rank).size
        return self._const(n) if isinstance(n, int) else self._size(n)

    def _size(self, name: str) -> Value:
        if name in self.static:
            return self._const(self.static[name])
        if "." not in name:
            self.used_sizes.add(name)
        return self._emit(("size", name), (), lambda n: kp.Size(Value(n, (), "int"), name), name.replace(".", "_"))

    def _load(self, e: Expr, env: Mapping[str, Value]) -> Value:
        tensor = self.inputs[e.name]
        if tensor.param:
            self.used_params[tensor.name] = tensor.dtype
            return self._emit(("param", e.name), (), lambda n: kp.Param(Value(n, (), tensor.dtype), e.name), f"{e.name}_value")
        index = tuple(self._value(a, env) for a in e.args)
        clamp = tuple(
            n for n, (a, axis) in enumerate(zip(e.args, tensor.axes, strict=True)) if not within_axis(self.cascade, a, axis)
        )
        dims = self._dims(index)
        make = lambda n: kp.Load(Value(n, dims, tensor.dtype), e.name, index, None, clamp)  # noqa: E731
        out = self._emit(("load", e.name, index, clamp), index, make, f"{e.name}_tile" if dims else f"{e.name}_here")
        self.loaded.add(out.name)
        return out

    # -- statements ------------------------------------------------------------------------------------------------------------

    def _define(self, target: str, ranks: tuple[str, ...], value: Value) -> None:
        self.env[target], self.ranks[target] = value, ranks

    def _store(self, target: str, ranks: tuple[str, ...], value: Value) -> None:
        place = self.cascade.place(target)
        index = (
            tuple(self._coordinate(r) for r in (*self.cascade.over, *ranks))
            if place is None
            else tuple(self._value(e, {}) for e in place.index)
        )
        self.scope.ops.append(kp.Store(target, index, value))

    def _einsum(self, x: Einsum) -> Value:
        """A statement that is not a reduction over a folded rank."""
        if not x.red:
            value = self._value(x.map, self.env, name=x.target)
        else:
            value = self._contract(x, x.map)
        missing = {r for r in x.ranks if r not in value.dims}
        return self._broadcast(value, missing, x.target) if missing and x.target in self.cascade.outs else value

    def _broadcast(self, value: Value, ranks: set[str], name: str) -> Value:
        """The value at every coordinate of ranks it does not depend on."""
        for r in self.order:
            if r in ranks:
                zero = self._map("*", self._coordinate(r), self._const(0))
                value = self._map("+", value, zero, name=name) if value.dtype != "bool" else value
        return value

    def _contract(self, x: Einsum, e: Expr) -> Value:
        """A reduction over feature ranks: a matrix product where two groups of factors meet only in the reduced rank."""
        assert x.red is not None
        rank = x.over[-1]
        if len(x.over) > 1:
            raise SpecError(f"{x.target} reduces over {len(x.over)} feature ranks at once", x.loc, "reduce over one at a time")
        if x.red == "sum":
            sign, parts = _signed(e)
            values = [self._value(p, self.env) for p in parts]
            outside = [v for v in values if rank not in v.dims]
            inside = [v for v in values if rank in v.dims]
            sides = operands([v.dims for v in inside], rank)
            if sides is not None:
                groups = sorted(([inside[n] for n in side] for side in sides[:2]), key=lambda g: self._position(g[0], rank))
                weights = [inside[n] for n in sides[2]]
                a, b = (
                    self._product(groups[0] + weights),
                    self._product(groups[1]),
                )  # with the tile, weights are multiplied in once
                dims = self._dims((a, b))
                dims = tuple(d for d in dims if d != rank)
                out = self._emit(
                    ("dot", a, b, rank),
                    (a, b),
                    lambda n: kp.Dot(Value(n, dims, "float"), self._float(a), self._float(b), rank),
                    x.target,
                )
            else:
                inner = self._product(inside) if inside else self._const(float(self._feature_size(rank)))
                out = self._reduce("sum", self._as_float(inner), rank, x.target) if inside else inner
            for v in outside:
                out = self._map("*", out, v)
            return self._map("neg", out) if sign < 0 else out
        return self._reduce(x.red, self._value(e, self.env), rank, x.target)

    def _float(self, v: Value) -> Value:
        assert v.dtype == "float", "operands of a product are floats"
        return v

    def _position(self, v: Value, rank: str) -> int:
        return self.order.index(next(d for d in v.dims if d != rank))

    def _product(self, values: list[Value]) -> Value:
        out = values[0]
        for v in values[1:]:
            out = self._map("*", out, v)
        return self._as_float(out)

    def _reduce(self, red: str, value: Value, rank: str, name: str) -> Value:
        if rank not in value.dims:  # constant along the rank
            value = self._broadcast(value, {rank}, name)
        dims = tuple(d for d in value.dims if d != rank)
        return self._emit(
            ("reduce", red, value, rank), (value,), lambda n: kp.Reduce(Value(n, dims, value.dtype), red, value, rank), name
        )

    # -- folds -----------------------------------------------------------------------------------------------------------------

    def _held(self, states: list[State]) -> None:
        """Raises SpecError for a state with a rank that the kernel walks along elsewhere: one block of it is never there at once."""
        looped = {f.rank for f in self.cascade.body if isinstance(f, Fold)}
        for y in states:
            for rank in y.ranks:
                if rank in looped:
                    raise SpecError(
                        f"{y.target} has to be held for every {rank}, along which other reductions go in steps",
                        y.loc,
                        f"declare {rank} as a feature rank (held whole), or give {y.target} as an input",
                    )

    def _fold(self, f: Fold, outer: _Scope) -> kp.Fold:
        states = [y for y in f.body if isinstance(y, State)]
        self._held(states)
        for y in states:
            self._define(y.target, y.ranks, Value(self._fresh(y.target), tuple(r for r in self.order if r in y.ranks), "float"))
        olds = {y.target: self.env[y.target] for y in states}
        phases: list[kp.Phase] = []
        bounds = _Scope(outer=outer)
        full = self._body(f, outer, olds, masked=False)
        names_of_full = {op.out.name for op in full[0] if not isinstance(op, kp.Store)}
        self.taken -= names_of_full  # phases are siblings: the other one uses the same names
        self.siblings = names_of_full
        masked = self._body(f, outer, olds, masked=True)
        self.taken |= names_of_full
        self.siblings = set()
        self.scope = bounds
        if f.tabulated:
            zero = self._const(0)
            phases = [kp.Phase(zero, zero, *full, "full"), kp.Phase(zero, zero, *masked, "masked")]
        for r in f.ranges:
            lo, full_lo, full_hi, hi = (self._value(e, {}) for e in (r.lo, r.full_lo, r.full_hi, r.hi))
            for start, stop, body, label in (
                (lo, full_lo, masked, "masked"),
                (full_lo, full_hi, full, "full"),
                (full_hi, hi, masked, "masked"),
            ):
                if start != stop:
                    phases.append(kp.Phase(start, stop, *body, label))
        self.scope = outer
        own = tuple(bounds.ops)
        tabulated = [x.mask for x in self.cascade.body if isinstance(x, Fold) and x.rank == f.rank and x.tabulated]
        shared = set().union(*(indices(m) for m in tabulated))  # folds over a rank share one table
        table = tuple(r for r in self.cascade.over if r in shared) if f.tabulated else ()
        self.env.update(olds)
        return kp.Fold(
            rank=f.rank,
            step=f.step,
            states=tuple(kp.State(olds[y.target], MONOIDS[y.red]) for y in states),
            bounds=own,
            phases=tuple(phases),
            tabulated=f.tabulated,
            table_ranks=table,
            size=self._size_name(self.cascade.rank(f.rank).size),
        )

    def _body(self, f: Fold, outer: _Scope, olds: dict[str, Value], masked: bool) -> tuple[kp.Region, tuple[Value, ...]]:
        """One phase's loop body and the states' next values; ``end`` is a further bound on the folded coordinate."""
        scope = _Scope(outer=outer, rank=f.rank, mine={v.name for v in olds.values()})
        self.scope = scope
        saved = dict(self.env)
        for name in olds:
            del self.env[name]
        mask = self._mask(f) if masked else None
        updates: dict[str, Value] = {}
        for y in f.body:
            if isinstance(y, State):
                self.env[y.target] = updates[y.target] = self._update(f, y, olds, updates, mask)
            else:
                value = self._einsum(y)
                if is_let(f, y):  # as the interpreter has it: a reference is finite even while nothing has been seen
                    value = self._finite(value)
                self._define(y.target, y.ranks, value)
                if y.target in self.cascade.outs and f.rank in y.ranks:
                    every = self._broadcast(value, {r for r in y.ranks if r not in value.dims}, y.target)
                    self._store(y.target, y.ranks, self._masked(every, mask, 0.0))
        self.env = saved
        self.scope = outer
        return tuple(scope.ops), tuple(updates[n] for n in olds)

    def _mask(self, f: Fold) -> Value:
        extent = self.cascade.rank(f.rank).size
        inside = call("<", coordinate(f.rank), size_of(extent))
        whole = conjunction(f.mask, inside)
        assert whole is not None, "the bound is part of the mask"
        return self._value(whole, self.env, name="live")

    def _masked(self, value: Value, mask: Value | None, identity: float) -> Value:
        return value if mask is None else self._map("select", mask, value, self._const(identity))

    def _update(self, f: Fold, y: State, olds: dict[str, Value], news: dict[str, Value], mask: Value | None) -> Value:
        """The next value of a state: its re-based old value combined with this block's share."""
        old = self._carried(f, y, olds, news)
        if y.red == "sum":
            return self._accumulate(f, y, old, mask)
        share = self._value(y.map, self.env)
        if f.rank in share.dims or mask is not None:
            share = self._masked(self._as_float(share), mask, MONOIDS[y.red])
            share = self._reduce(y.red, share, f.rank, f"{y.target}_block")
        return self._map({"max": "max", "min": "min", "any": "max", "prod": "*"}[y.red], old, share, name=f"{y.target}_new")

    def _accumulate(self, f: Fold, y: State, old: Value, mask: Value | None) -> Value:
        sign, parts = _signed(y.map)
        values = [self._as_float(self._value(p, self.env)) for p in parts]
        whole = [v for v in values if any(d in self.features for d in v.dims)]
        weights = [v for v in values if v not in whole]
        weight = self._product(weights) if weights else None
        if sign < 0:
            weight = self._map("neg", weight) if weight is not None else self._const(-1.0)
        name = f"{y.target}_new"
        if not whole:
            assert weight is not None, "a sum has a map"
            return self._map("+", old, self._row_sum(f, y, weight, mask), name=name)
        vectors = self._product(whole)
        if mask is not None:
            weight = self._masked(weight if weight is not None else self._const(1.0), mask, 0.0)
            if f.rank in vectors.dims and vectors.name not in self.loaded:  # 0 * (whatever the padding computes) must be 0
                inside = mask if set(mask.dims) <= set(vectors.dims) else None  # and so must what an empty row computes
                inside = inside or self._map("<", self._coordinate(f.rank), self._size_of(f.rank), name="inside")
                vectors = self._masked(vectors, inside, 0.0)
        matrix = weight is not None and len(weight.dims) == 2 and f.rank in weight.dims
        if matrix and len(vectors.dims) == 2 and f.rank in vectors.dims:
            assert weight is not None
            a, b = weight, vectors
            dims = tuple(d for d in self._dims((a, b)) if d != f.rank)
            key = ("dot", a, b, f.rank, old)
            return self._emit(key, (a, b, old), lambda n: kp.Dot(Value(n, dims, "float"), a, b, f.rank, old), name)
        share = self._map("*", weight, vectors) if weight is not None else vectors
        if f.rank in share.dims:
            share = self._reduce("sum", share, f.rank, f"{y.target}_block")
        else:
            share = self._map("*", share, self._const(float(f.step)))
        return self._map("+", old, share, name=name)

    def _row_sum(self, f: Fold, y: State, weight: Value, mask: Value | None) -> Value:
        weight = self._masked(weight, mask, 0.0)
        if f.rank in weight.dims:
            return self._reduce("sum", weight, f.rank, f"{y.target}_block")
        return self._map("*", weight, self._const(float(f.step)))  # constant over a full block

    def _carried(self, f: Fold, y: State, olds: dict[str, Value], news: dict[str, Value]) -> Value:
        """The old value of a state moved to the new references; a statistic still at its identity has nothing to move."""
        old = olds[y.target]
        if y.carry is None:
            return old
        env = {**self.env, **olds}
        moved_from = {z.target: z.red for z in f.body if isinstance(z, State)}
        moving = reads(y.carry) | names(y.carry, "new")
        for z in reversed(f.body):  # a let may be made of other lets
            if isinstance(z, Einsum) and z.target in moving and is_let(f, z):
                moving |= reads(z.map)
        for z in f.body:  # lets as they were before this block, and finite references of the new ones
            if isinstance(z, Einsum) and z.target in moving and is_let(f, z):
                env[z.target] = self._finite(self._value(z.map, env))
        fresh = {**news, **{n: self.env[n] for n in names(y.carry, "new") if n not in news}}
        dead: Value | None = None
        for name in sorted(reads(y.carry) & set(moved_from)):
            red = moved_from[name]
            if name != y.target and red in ("max", "min"):
                here = self._map("==", olds[name], self._const(MONOIDS[red]))
                dead = here if dead is None else self._map("or", dead, here)
        own = Expr("load", tuple(map(coordinate, y.ranks)), y.target)
        simple = y.carry.op in ("*", "+") and y.carry.args[0] == own and own not in set(walk(y.carry.args[1]))
        if dead is None:
            return self._value(y.carry, env, fresh)
        if simple:
            factor = self._value(y.carry.args[1], env, fresh)
            factor = self._map("select", dead, self._const(1.0 if y.carry.op == "*" else 0.0), factor, name="move")
            return self._map(y.carry.op, old, factor)
        return self._map("select", dead, old, self._value(y.carry, env, fresh))

    def _finite(self, v: Value) -> Value:
        zero = self._map("-", v, v)
        return self._map("select", self._map("==", zero, self._const(0.0)), v, self._const(0.0))


def _signed(e: Expr) -> tuple[int, list[Expr]]:
    """The factors of a product (divisions by single factors included) and its sign."""
    if e.op == "neg":
        sign, parts = _signed(e.args[0])
        return -sign, parts
    if e.op == "*":
        (s, a), (t, b) = _signed(e.args[0]), _signed(e.args[1])
        return s * t, a + b
    if e.op == "/":
        (s, a), (t, b) = _signed(e.args[0]), _signed(e.args[1])
        return s * t, [*a, call("/", const(1.0), product(*b))] if a != [const(1)] else [call("/", const(1.0), product(*b))]
    return 1, [e] if not factors(e)[1:] else list(factors(e))


def _merged(steps: list[kp.Region | kp.Fold]) -> tuple[kp.Region | kp.Fold, ...]:
    """Adjacent regions joined, empty ones dropped."""
    out: list[kp.Region | kp.Fold] = []
    for s in steps:
        if isinstance(s, tuple) and out and isinstance(out[-1], tuple):
            out[-1] = out[-1] + s
        elif s or isinstance(s, kp.Fold):
            out.append(s)
    return tuple(out)


def _loaded(steps: tuple[kp.Region | kp.Fold, ...]) -> set[str]:
    regions = [r for s in steps for r in ([s] if isinstance(s, tuple) else [s.bounds, *(p.body for p in s.phases)])]
    return {o.tensor for r in regions for o in r if isinstance(o, kp.Load)}
