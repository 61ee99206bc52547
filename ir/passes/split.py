"""Cuts a cascade of one pass into parts of its keys, and derives the operators that put the parts together again.

    m[i] = max[j] s[i, j]                              partial, over b, h, part:  the same where bounds[part, 0] <= j < bounds[part, 1]
    l[i] = sum[j] exp(s[i, j] - m[i])          ->      merge:     m[i] = max[part] m_part[part, i]
    o[i, e] = sum[j] exp(s - m) / l * v                           l[i] = sum[part] l_part[part, i] * exp(m_part[part, i] - m[i])
                                                                  ...
                                                       finalise:  o[i, e] = o_0[i, e] / l[i]

The merge is the carry law of the fused fold's states with the parts in the place of blocks. All four are cascades like any other: they
are fused, scheduled, compiled and differentiated by the same passes. A second pass would need the first one's statistics complete, a
barrier between kernels, so only cascades of one pass can be split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.errors import SpecError
from einfuse.ir.expr import call
from einfuse.ir.nodes import Cascade, Einsum, Expr, Flat, Fold, Rank, Scalar, State, Tensor
from einfuse.ir.passes import canonicalise, online_fuse, stages
from einfuse.ir.references import floored, reviving, vanishes
from einfuse.ir.rewrite import flat, fresh, prune, statements, with_used_ranks

PART = "part"
PARTS = "Parts"
BOUNDS = "bounds"


@dataclass(frozen=True, slots=True)
class Split:
    """The parts of a cascade along ``rank``. ``states`` are the outputs of ``partial`` and ``merge``; ``held`` is what each is called as
    an input of ``merge`` and ``merged`` (with an axis of parts behind the ambient ones) and of ``finalise`` (without).

    ``partial`` takes last the ``bounds`` [Parts, 2] of the parts, first key and behind the last. ``merged`` is merge and finalise in one.
    Sizes that no state tells are int parameters of the other cascades, by the names in ``sizes``.
    """

    rank: str
    states: tuple[str, ...]
    held: dict[str, str]
    partial: Flat
    merge: Flat
    finalise: Flat
    merged: Flat
    sizes: dict[str, str]


def run(cascade: Cascade) -> Split:
    """The split of a cascade as built. Raises SpecError where it takes more than one pass or gives out values per key.

    Neither a scan nor a cascade that chooses what it reads, or takes several kernels, can be split.
    """
    cascade = flat(cascade, f"{cascade.name} cannot be split: it is a scan, whose points come in order")
    choice = next((x for x in cascade.body if x.reducer.chooses), None)
    if choice is not None:
        raise SpecError(f"{cascade.name} cannot be split: {choice.target} is chosen among all keys", choice.loc)
    if len(stages.run(cascade)) > 1:
        raise SpecError(f"{cascade.name} cannot be split: it takes several kernels, one after the other", cascade.loc)
    fused = online_fuse.run(canonicalise.run(cascade))
    folds = fused.folds
    if len(folds) != 1:
        raise SpecError(
            f"{cascade.name} cannot be split: it takes {len(folds)} passes, and parts know their own keys only", cascade.loc
        )
    pairs = [y.target for y in folds[0].einsums if folds[0].rank in y.ranks and y.target in fused.outs]
    if pairs:
        raise SpecError(f"{cascade.name} cannot be split: it writes {', '.join(pairs)} from inside its pass", cascade.loc)
    return _Splitter(fused, folds[0]).run()


class _Splitter:
    def __init__(self, fused: Cascade, fold: Fold) -> None:
        self.c, self.fold = fused, fold
        self.states = fold.states
        names = {x.target for x in statements(fused)}
        self.taken = names | {r.name for r in fused.ranks} | {t.name for t in fused.inputs}
        self.part = fresh(PART, self.taken)
        self.held = {y.target: fresh(f"{y.target}_part", self.taken) for y in self.states}
        self.lets = [y for y in fold.einsums if fold.rank not in y.ranks and not y.red]
        self.before, after = fused.around(fold)
        self.after = tuple(x for x in after if x not in self.lets)  # the epilogue repeats those it reads

    def run(self) -> Split:
        known = [Tensor(self.held[y.target], self._axes(y)) for y in self.states]
        stacked = [Tensor(self.held[y.target], self._axes(y, parts=True)) for y in self.states]
        outs = tuple(y.target for y in self.states)
        merging = self._merging()
        merge = self._cascade("merge", stacked, merging, outs)
        merged = self._cascade("merged", stacked, (*self.before, *merging, *self.after), self.c.outs)
        finalise = self._cascade("finalise", known, self._finalising(), self.c.outs)
        sizes: dict[str, str] = {}
        merge, finalise, merged = (self._with_sizes(c, sizes) for c in (merge, finalise, merged))
        return Split(self.fold.rank, outs, self.held, self._partial(outs), merge, finalise, merged, sizes)

    # -- the parts -----------------------------------------------------------------------------------------------------------

    def _partial(self, outs: tuple[str, ...]) -> Flat:
        bounds = fresh(BOUNDS, self.taken)
        j, part = ex.index(self.fold.rank), ex.index(self.part)
        first, last = (ex.load(bounds, part, ex.const(n)) for n in (0, 1))
        inside = ex.conjunction(self.fold.mask, call("<=", first, j), call("<", j, last))
        body = [*self.before]
        for y in self.fold.body:
            if isinstance(y, State):
                body.append(Einsum(y.target, y.ranks, y.red, (self.fold.rank,), y.map, inside, y.loc))
            else:
                body.append(y)
        c = self.c
        return prune(
            replace(
                c.with_body(body),
                name=f"{c.name}_partial",
                over=(*c.over, self.part),
                ranks=(*c.ranks, Rank(self.part, "batch", PARTS)),
                inputs=(*c.inputs, Tensor(bounds, (ex.size(PARTS), ex.const(2)), "int")),
                outs=outs,
                places=(),
            )
        )

    # -- their merge ---------------------------------------------------------------------------------------------------------

    def _merging(self) -> tuple[Einsum, ...]:
        body: list[Einsum] = []
        for y in self.fold.body:
            if isinstance(y, State):
                moved, live = self._moved(y)
                body.append(Einsum(y.target, y.ranks, y.red, (self.part,), moved, live, y.loc))
            elif y in self.lets:
                body.append(y)
        return tuple(body)

    def _moved(self, y: State) -> tuple[Expr, Expr | None]:
        """A part's state at the references of the whole, and the condition that it has any: from an infinite one no difference can be taken."""
        own = self._of_part(ex.at(y.target, y.ranks))
        if y.carry is None:
            return own, call("!=", own, ex.const(y.reducer.identity)) if y.reducer.extreme else None
        dead = reviving(self.fold, y)
        held = [(self._of_part(ex.at(z.target, z.ranks)), ex.const(z.reducer.identity)) for z in dead]
        moved = self._of_part(y.carry)
        if not dead or vanishes(self.fold, y, dead):
            return moved, ex.conjunction(*(call("!=", m, infinite) for m, infinite in held))
        if not y.reducer.sums or not all(how == "*" for how in _corrections(y)):
            raise SpecError(
                f"{self.c.name} cannot be split: {y.target} may hold something while {dead[0].target} is infinite", y.loc
            )
        finite = {
            ex.at(z.target, z.ranks): call("select", call("==", m, infinite), ex.const(0.0), m)
            for z, (m, infinite) in zip(dead, held, strict=True)
        }

        def referred(e: Expr) -> Expr | None:
            """As in a kernel: parts of old values alone, such as max(m, c), are what they are."""
            old = e.op not in ex.LEAVES and not ex.names(e, "new") and bool(finite.keys() & set(ex.walk(e)))
            return self._referring(e) if old else finite.get(e)

        moved = self._of_part(ex.substitute(y.carry, referred))
        return call("select", call("==", own, ex.const(0.0)), ex.const(0.0), moved), None

    def _of_part(self, e: Expr) -> Expr:
        """An expression of the old values in one part's values: lets are seen through, re-based values are the states themselves."""
        over = (*map(ex.index, self.c.over), ex.index(self.part))

        def one(x: Expr) -> Expr | None:
            if x.op == "new":
                return replace(x, op="load")
            if x.op == "load" and x.name in self.held:
                return ex.load(self.held[x.name], *over, *x.args)
            let = next((y for y in self.lets if x.op == "load" and y.target == x.name), None)
            return None if let is None else self._referring(let.map)

        return ex.substitute(e, one)

    def _referring(self, e: Expr) -> Expr:
        """What differences are taken from, in one part's values: 0 where a part saw too few points to have a number, and no floor."""
        mine = self._of_part(e)
        return mine if floored(self.fold, e) else _finite(mine)

    def _finalising(self) -> tuple[Einsum, ...]:
        over = tuple(map(ex.index, self.c.over))

        def whole(e: Expr) -> Expr | None:
            return ex.load(self.held[e.name], *over, *e.args) if e.op == "load" and e.name in self.held else None

        body = [*self.before]
        for x in (*self.lets, *self.after):
            body.append(replace(x, map=ex.substitute(x.map, whole)))
        for y in self.states:
            if y.target in self.c.outs:
                body.append(Einsum(y.target, y.ranks, None, (), ex.load(self.held[y.target], *over, *map(ex.index, y.ranks))))
        return tuple(body)

    # -- cascades ------------------------------------------------------------------------------------------------------------

    def _axes(self, y: State, parts: bool = False) -> tuple[Expr, ...]:
        sizes = [ex.size(self.c.rank(r).size) for r in (*self.c.over, *y.ranks)]
        return (*sizes[: len(self.c.over)], *([ex.size(PARTS)] if parts else []), *sizes[len(self.c.over) :])

    def _cascade(self, suffix: str, tensors: list[Tensor], body: tuple[Einsum, ...], outs: tuple[str, ...]) -> Flat:
        c = self.c
        whole = replace(
            c.with_body(body),
            name=f"{c.name}_{suffix}",
            ranks=(*c.ranks, Rank(self.part, "key", PARTS)),
            inputs=(*c.inputs, *tensors),
            outs=outs,
            places=c.places if outs == c.outs else (),
        )
        return _needed(prune(whole), {t.name for t in tensors})

    def _with_sizes(self, c: Flat, sizes: dict[str, str]) -> Flat:
        """Sizes that no tensor tells become parameters."""
        told = {n for t in c.inputs for a in t.axes for n in ex.sizes(a)}

        def one(e: Expr) -> Expr | None:
            if e.op != "size" or e.name in told:
                return None
            sizes.setdefault(e.name, fresh(f"n_{e.name}", self.taken))
            return ex.load(sizes[e.name])

        body = tuple(
            replace(x, map=ex.substitute(x.map, one), mask=None if x.mask is None else ex.substitute(x.mask, one))
            for x in c.body
        )
        used = {n for x in body for n in ex.reads(x.map) | ex.reads(x.mask)}
        params = tuple(Tensor(p, (), "int", True) for p in sizes.values() if p in used)
        return replace(c, inputs=(*c.inputs, *params), body=body)


def _needed(c: Flat, known: set[str]) -> Flat:
    """Without the inputs and ranks that nothing reads."""
    used = known | {n for x in c.body for n in ex.reads(x.map) | ex.reads(x.mask)}
    used = used.union(*(ex.reads(e) for p in c.places for e in p.index))
    return with_used_ranks(replace(c, inputs=tuple(t for t in c.inputs if t.name in used)))


def _corrections(y: State) -> list[str]:
    """How a carry is made of the old value, from outside in; "" where it is in another way."""
    out, e = [], y.carry
    while e is not None and e != ex.at(y.target, y.ranks):
        out.append(e.op if e.op in ("*", "+") else "")
        e = e.args[0] if out[-1] else None
    return out


def _finite(e: Expr) -> Expr:
    """A scalar, 0 where it is no number."""
    return call("select", call("==", call("-", e, e), ex.const(0.0)), e, ex.const(0.0))


def constants(sizes: dict[str, str], known: Mapping[str, int]) -> dict[str, Scalar]:
    """The parameters that `Split.sizes` asks for."""
    return {p: known[n] for n, p in sizes.items()}
