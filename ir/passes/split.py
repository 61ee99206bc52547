"""Cuts the folds of a cascade into parts that run side by side, and merges their states: decoding, and any call with few tiles.

    fold j { state m[i] = max s[i, j]; state l[i] = sum exp(s[i, j] - m[i]) carry l[i] * exp(m[i] - m'[i]) }

    over b, h, part                                        over b, h
    fold j range (part * n, (part + 1) * n) { ... }   ->   fold part {
    out m, l                                                 state m[i] = max m_part[b, h, part, i]
                                                             state l[i] = sum l_part[b, h, part, i] * exp(m_part[b, h, part, i] - m[i])
                                                               carry l[i] * exp(m[i] - m'[i])
                                                           }

The merge is the carry law of the states, read as a fold: no operator of its own. Only a cascade with one fold can be split (a second
pass would need the first one's statistics complete, which is a barrier between kernels).
"""

from __future__ import annotations

from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.errors import SpecError
from einfuse.ir.expr import call
from einfuse.ir.nodes import Cascade, Einsum, Expr, Fold, Range, Rank, State, Tensor
from einfuse.ir.rewrite import fresh, statements

PART = "part"
PARTS = "Parts"


def splittable(cascade: Cascade) -> bool:
    """One fold in closed form, associative states, nothing emitted from inside the loop."""
    folds = [x for x in cascade.body if isinstance(x, Fold)]
    if len(folds) != 1 or folds[0].tabulated or not folds[0].ranges:
        return False
    emitted = any(isinstance(y, Einsum) and y.target in cascade.outs for y in folds[0].body)
    return not emitted and all(y.red != "set" for y in folds[0].body if isinstance(y, State))


def run(cascade: Cascade) -> tuple[Cascade, Cascade]:
    """The partial cascade (over one ambient rank more) and the merging one, of a scheduled cascade that is `splittable`."""
    if not splittable(cascade):
        raise SpecError(
            f"{cascade.name} cannot be split: it has more than one pass, or writes from inside its loop", cascade.loc
        )
    taken = {r.name for r in cascade.ranks} | {x.target for x in statements(cascade)} | {t.name for t in cascade.inputs}
    part = fresh(PART, taken)
    at = next(n for n, x in enumerate(cascade.body) if isinstance(x, Fold))
    fold = cascade.body[at]
    assert isinstance(fold, Fold), "found above"
    states = [y for y in fold.body if isinstance(y, State)]
    return _partial(cascade, at, fold, part, states), _merging(cascade, at, fold, part, states, taken)


def _partial(c: Cascade, at: int, fold: Fold, part: str, states: list[State]) -> Cascade:
    extent = ex.size(c.rank(fold.rank).size)
    # a part is a whole number of steps, so that full blocks stay aligned
    stride = call("*", ex.size(PARTS), ex.const(fold.step))
    steps = call("//", call("+", extent, call("-", stride, ex.ONE)), stride)
    width = call("*", steps, ex.const(fold.step))
    first = call("*", ex.index(part), width)
    last = call("+", first, width)

    def inside(e: Expr) -> Expr:
        return call("min", call("max", e, first), last)

    ranges = tuple(Range(inside(r.lo), inside(r.hi), inside(r.full_lo), inside(r.full_hi)) for r in fold.ranges)
    mask = ex.conjunction(fold.mask, call("<", ex.index(fold.rank), last))
    body = (*c.body[:at], replace(fold, ranges=ranges, mask=mask))
    ranks = (*c.ranks, Rank(part, "batch", PARTS))
    return replace(
        c, name=f"{c.name}_partial", over=(*c.over, part), ranks=ranks, body=body, outs=tuple(y.target for y in states)
    )


def _merging(c: Cascade, at: int, fold: Fold, part: str, states: list[State], taken: set[str]) -> Cascade:
    held = {y.target: fresh(f"{y.target}_{part}", taken) for y in states}
    over = (*map(ex.index, c.over), ex.index(part))
    lets = [y for y in fold.body if isinstance(y, Einsum) and fold.rank not in y.ranks and not y.red]

    def partial(e: Expr) -> Expr:
        """An expression of the old values, in one part's values: lets are seen through, re-based values are the states themselves."""

        def one(x: Expr) -> Expr | None:
            if x.op == "new":
                return replace(x, op="load")
            if x.op == "load" and x.name in held:
                return ex.load(held[x.name], *over, *x.args)
            let = next((y for y in lets if x.op == "load" and y.target == x.name), None)
            return None if let is None else _finite(partial(let.map))

        return ex.substitute(e, one)

    body: list[Einsum | State] = []
    for y in fold.body:
        if isinstance(y, State):
            own = ex.at(y.target, y.ranks)
            body.append(replace(y, map=partial(y.carry if y.carry is not None else own)))
        elif y in lets:
            body.append(y)
    live = _live(states, held, over)
    merged = Fold(
        part, tuple(body), live, 1, (Range(ex.ZERO, ex.size(PARTS), ex.ZERO, ex.ZERO if live is not None else ex.size(PARTS)),)
    )
    sizes = {r.name: ex.size(r.size) for r in c.ranks} | {part: ex.size(PARTS)}
    tensors = [Tensor(held[y.target], tuple(sizes[r] for r in (*c.over, part, *y.ranks))) for y in states]
    ranks = (*c.ranks, Rank(part, "batch", PARTS))
    out = replace(
        c, name=f"{c.name}_merge", ranks=ranks, inputs=(*c.inputs, *tensors), body=(*c.body[:at], merged, *c.body[at + 1 :])
    )
    return out


def _finite(e: Expr) -> Expr:
    """A scalar of statistics, 0 where a part saw too few points to have one."""
    return call("select", call("==", call("-", e, e), ex.const(0.0)), e, ex.const(0.0))


def _live(states: list[State], held: dict[str, str], over: tuple[Expr, ...]) -> Expr | None:
    """The parts that saw a point: a maximum still at its identity would re-base the others by inf - inf."""
    for y in states:
        if y.red in ("max", "min"):
            return call("!=", ex.load(held[y.target], *over, *map(ex.index, y.ranks)), ex.const(ex.MONOIDS[y.red]))
    return None
