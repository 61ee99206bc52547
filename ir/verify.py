"""The rules of the IR: what must hold of every cascade, and the properties that passes require and ensure.

`verify` raises SpecError with the statement's place, and names the rule that is broken. Of every cascade:

V1   Every rank is declared once, with a known kind; a statement has no rank twice.
V2   Every name is assigned once, and read only after that.
V3   A read has one index for every axis, a function its number of operands.
V4   An expression mentions only ranks that its statement keeps, reduces over, or that are ambient.
V5   A reducer is known and has ranks to reduce over, none of which the statement keeps; the slot of a list is its last rank.
V6   A state does not keep the rank of its fold.
V7   A re-based value ``X'`` stands only in a carry, and X is an earlier state or let of the fold.
V8   A sequential state is not split.
V11  Indices and bounds are ints, conditions truth values, operands of the types that their function takes.
V12  Outputs are defined, and a place has one index for every axis.

Of a cascade with a property:

V9   ``fused``: every reduction over a sequence rank is inside a fold.
V10  ``spaced``: a statement has the conditions of everything that it reads.
V13  ``scheduled``: every fold has a step; tiles are powers of two or multiples of 16.
V15  ``flat``: there are no folds.
V16  ``canonical``: a reduction goes over one feature at a time, and its condition mentions no feature.
V17  ``ranged``: every fold has ranges, or gets them from a table at launch.
V18  ``blocked``: the cascade is one scan in blocks.

V14, the merge law, is numeric: see `ir.merging`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, assert_never

from einfuse.ir import expr as ex
from einfuse.ir.errors import SpecError
from einfuse.ir.functions import FUNCTIONS
from einfuse.ir.nodes import RANK_KINDS, Blocked, Cascade, DType, Einsum, Expr, Flat, Fold
from einfuse.ir.reducers import REDUCERS
from einfuse.ir.spaces import Spaces, conditions, given_on
from einfuse.ir.span import Span
from einfuse.ir.statements import lets

Property = Literal["spaced", "flat", "canonical", "fused", "scheduled", "ranged", "blocked"]


def verify(cascade: Cascade, *properties: Property) -> Cascade:
    """Returns the cascade if it is well formed and has the properties; raises SpecError otherwise."""
    _Verifier(cascade).run()
    for name in properties:
        _PROPERTIES[name](cascade)
    return cascade


def _require(holds: bool, rule: str, message: str, loc: Span | None = None) -> None:
    if not holds:
        raise SpecError(f"{message} ({rule})", loc)


class _Verifier:
    def __init__(self, cascade: Cascade) -> None:
        self.c = cascade
        self.ranks = {r.name for r in cascade.ranks}
        self.local: dict[str, tuple[str, ...]] = {}
        self.types: dict[str, DType] = {t.name: t.dtype for t in cascade.inputs}
        self.arity = {t.name: len(t.axes) for t in cascade.inputs}

    def run(self) -> None:
        c = self.c
        seen: set[str] = set()
        for r in c.ranks:
            _require(r.name not in seen, "V1", f"rank {r.name} is declared twice", r.loc)
            _require(r.kind in (*RANK_KINDS, "turn"), "V1", f"rank {r.name} has the unknown kind {r.kind}", r.loc)
            seen.add(r.name)
        _require(set(c.over) <= self.ranks, "V1", "an ambient rank is not declared", c.loc)
        for x in c.body:
            match x:
                case Fold():
                    self._fold(x)
                case Einsum():
                    self._einsum(x)
                case _:
                    assert_never(x)
        for name in c.outs:
            _require(name in self.local, "V12", f"the output {name} is not defined", c.loc)
        for p in c.places:
            _require(p.name in c.outs, "V12", f"{p.name} has a place, but is no output", c.loc)
            _require(len(p.axes) == len(p.index), "V12", f"the place of {p.name} has not one index for every axis", c.loc)
            for e in p.index:
                kind = self._check(e, {*c.over, *self.local[p.name]}, c.loc)
                _require(kind == "int", "V11", f"an index of {p.name} is not an integer", c.loc)

    def _einsum(self, x: Einsum, fold: Fold | None = None) -> None:
        _require(x.target not in self.local and x.target not in self.arity, "V2", f"{x.target} is assigned twice", x.loc)
        _require(len(set(x.ranks)) == len(x.ranks), "V1", f"{x.target} has a rank twice", x.loc)
        _require({*x.ranks, *x.over} <= self.ranks, "V1", f"{x.target} uses a rank that is not declared", x.loc)
        _require(not set(x.ranks) & set(x.over), "V5", f"{x.target} keeps a rank that it reduces over", x.loc)
        _require(
            bool(x.red) == bool(x.over), "V5", f"{x.target} has a reducer without ranks, or ranks without a reducer", x.loc
        )
        _require(
            x.red in (None, *REDUCERS) and not x.reducer.replaces, "V5", f"{x.target} has the unknown reducer {x.red}", x.loc
        )
        if x.reducer.solves:  # an equation reads itself
            self.local[x.target], self.types[x.target] = x.ranks, "float"
            _require(x.map.op == "+" and len(x.over) == 1, "V5", f"{x.target} is not an equation b + m * {x.target}", x.loc)
        _require(not x.reducer.slots or bool(x.ranks), "V5", f"{x.target} has no rank for its slots", x.loc)
        kept = x.ranks[:-1] if x.reducer.slots else x.ranks
        free = {*kept, *x.over, *self.c.over, *((fold.count,) if fold is not None and fold.count else ())}
        dtype = self._check(x.map, free, x.loc)
        if x.mask is not None:
            _require(
                self._check(x.mask, free, x.loc) == "bool", "V11", f"the condition of {x.target} is not a truth value", x.loc
            )
        self.local[x.target] = x.ranks
        _require(not x.reducer.chooses or dtype != "bool", "V11", f"{x.target} ranks truth values", x.loc)
        self.types[x.target] = x.reducer.gives(dtype)

    def _check(self, e: Expr, free: set[str], loc: Span | None, new: Mapping[str, tuple[str, ...]] | None = None) -> DType:
        """The type of an expression whose reads and coordinates are all in order."""
        loc = e.loc or loc
        if e.op == "index":
            _require(e.name in free, "V4", f"the rank {e.name} is neither kept nor reduced here", loc)
        if e.op in ("load", "new"):
            ranks = (new or {}).get(e.name) if e.op == "new" else self.local.get(e.name)
            _require(e.op == "load" or ranks is not None, "V7", f"{e.name}' outside a carry, or not an earlier state", loc)
            arity = len(ranks) if ranks is not None else self.arity.get(e.name)
            _require(arity is not None, "V2", f"{e.name} is read before it is defined", loc)
            _require(arity == len(e.args), "V3", f"{e.name} has {arity} axes but is read with {len(e.args)} indices", loc)
            for a in e.args:
                _require(self._check(a, free, loc, new) == "int", "V11", f"an index of {e.name} is not an integer", loc)
            return self.types[e.name]
        if e.op == "in":
            known = self.local.get(e.name)
            arity = len(known) if known is not None else self.arity.get(e.name)
            _require(arity is not None, "V2", f"{e.name} is read before it is defined", loc)
            _require(arity == len(e.args), "V3", f"a list with {arity} axes has {arity} operands, found {len(e.args)}", loc)
            _require(self.types[e.name] == "int", "V11", f"{e.name} is no list of integers", loc)
            for a in e.args:
                _require(
                    self._check(a, free, loc, new) == "int", "V11", f"what is looked for in {e.name} is not an integer", loc
                )
            return "bool"
        if e.op in ex.LEAVES:
            return ex.scalar_type(e, self.types.__getitem__)
        _require(e.op in FUNCTIONS, "V11", f"unknown function {e.op}", loc)
        types = [self._check(a, free, loc, new) for a in e.args]
        self._operands(e, types, loc)
        f = FUNCTIONS[e.op]
        return f.gives(f.values(types))

    def _operands(self, e: Expr, types: Sequence[DType], loc: Span | None) -> None:
        f = FUNCTIONS[e.op]
        _require(len(types) == f.arity, "V3", f"{e.op} takes {f.arity} operands, not {len(types)}", loc)
        if f.takes == "numeric":
            _require("bool" not in types, "V11", f"{e.op} takes numbers, not truth values", loc)
        elif f.takes in ("int", "bool"):
            _require(set(types) <= {f.takes}, "V11", f"{e.op} takes {f.takes}s, found {', '.join(types)}", loc)
        elif f.takes == "select":
            _require(types[0] == "bool", "V11", "the condition of select is not a truth value", loc)

    def _fold(self, f: Fold) -> None:
        _require(f.rank in self.ranks, "V1", f"the folded rank {f.rank} is not declared", f.loc)
        sequential = f.sequential
        _require(not (sequential and f.split > 1), "V8", "a sequential state cannot be split", f.loc)
        _require({*f.aligned, f.count or f.rank} <= self.ranks, "V1", "a rank that moves with a scan is not declared", f.loc)
        for r in f.ranges:
            for e in (r.lo, r.hi, r.full_lo, r.full_hi):
                _require(self._check(e, set(self.c.over), f.loc) == "int", "V11", "a range is not an integer", f.loc)
        if f.mask is not None:
            free = {f.rank, *self.c.over, *(r.name for r in self.c.ranks if r.is_sequence)}
            _require(self._check(f.mask, free, f.loc) == "bool", "V11", "the condition of the fold is not a truth value", f.loc)
        outside, done = dict(self.local), dict[str, tuple[str, ...]]()
        states = {y.target: y.ranks for y in f.states}
        scalars = lets(f)
        if sequential:
            self.local |= states
            self.types |= dict.fromkeys(states, "float")
        for y in f.body:
            if isinstance(y, Einsum):
                self._einsum(y, f)
                if y.target in scalars:
                    done[y.target] = y.ranks
                continue
            _require(f.rank not in y.ranks, "V6", f"the state {y.target} keeps the folded rank {f.rank}", y.loc)
            _require(sequential or y.target not in self.local, "V2", f"{y.target} is assigned twice", y.loc)
            _require(
                y.red in REDUCERS and (y.reducer.monoid or y.reducer.replaces),
                "V5",
                f"{y.target} has the unknown reducer {y.red}",
                y.loc,
            )
            moving = {f.count} if f.count else set()
            if y.init is not None:
                inner, self.local = self.local, outside
                self._check(y.init, {*y.ranks, *self.c.over}, y.loc)
                self.local = inner
            self._check(y.map, {*y.ranks, f.rank, *self.c.over, *moving}, y.loc)
            self.types[y.target] = "float"
            if y.carry is not None:
                inner = self.local
                self.local = {**inner, **states}
                self.types |= dict.fromkeys(states, "float")
                self._check(y.carry, {*y.ranks, *self.c.over}, y.loc, done)
                self.local = inner
            self.local[y.target] = done[y.target] = y.ranks
        emitted = {
            y.target: y.ranks
            for y in f.einsums
            if sequential or set(y.ranks) & set(f.aligned) or (y.target in self.c.outs and f.rank in y.ranks)
        }
        self.local = {**outside, **states, **emitted}


def _fused(c: Cascade) -> None:
    whole = {r.name for r in c.ranks if not r.is_sequence}
    for x in c.einsums:
        _require(set(x.over) <= whole, "V9", f"{x.target} still reduces over {', '.join(x.over)} outside a fold", x.loc)


def _spaced(c: Cascade) -> None:
    spaces: Spaces = {}
    for x in c.einsums:
        inherited = set(conditions(x.map, spaces))
        _require(inherited <= set(ex.conjuncts(x.mask)), "V10", f"{x.target} exists where what it reads does not", x.loc)
        spaces |= given_on(c, x)


def _scheduled(c: Cascade) -> None:
    for rank, block in c.tile:
        _require((block > 0 and block & (block - 1) == 0) or block % 16 == 0, "V13", f"the tile of {rank} is {block}", c.loc)
    for f in c.folds:
        _require(f.step > 0, "V13", f"the fold over {f.rank} has no step", f.loc)


def _flat(c: Cascade) -> None:
    if not isinstance(c, Flat):
        f = c.folds[0]
        raise SpecError(f"there is a fold over {f.rank} (V15)", f.loc)


def _canonical(c: Cascade) -> None:
    features = {r.name for r in c.ranks if not r.is_sequence} - set(c.over)
    for x in c.einsums:
        if x.red is None or x.reducer.solves:
            continue
        _require(len(features & set(x.over)) < 2, "V16", f"{x.target} reduces over several features at once", x.loc)
        _require(not ex.indices(x.mask) & features, "V16", f"the condition of {x.target} mentions a feature", x.loc)


def _ranged(c: Cascade) -> None:
    for f in c.folds:
        _require(bool(f.ranges) != f.tabulated, "V17", f"the fold over {f.rank} has neither ranges nor a table", f.loc)


def _blocked(c: Cascade) -> None:
    _require(isinstance(c, Blocked), "V18", f"{c.name} is not one scan in blocks", c.loc)


_PROPERTIES: dict[Property, Callable[[Cascade], None]] = {
    "spaced": _spaced,
    "flat": _flat,
    "canonical": _canonical,
    "fused": _fused,
    "scheduled": _scheduled,
    "ranged": _ranged,
    "blocked": _blocked,
}
