"""Leaves only what a kernel needs: contractions, scores, reductions over the folded rank, row scalars and outputs.

    s[i, j] = qk[i, j] / 8 where j <= i                      s[i, j] = qk[i, j] / 8 where j <= i
    m[i] = max[j] s[i, j]                                    m[i] = max[j] s[i, j] where j <= i
    p[i, j] = exp(s[i, j] - m[i])                     ->     l[i] = sum[j] exp(s[i, j] - m[i]) where j <= i
    l[i] = sum[j] p[i, j]                                    o[i, e] = sum[j] exp(s[i, j] - m[i]) / l[i] * v[j, e] where j <= i
    a[i, j] = p[i, j] / l[i]
    o[i, e] = sum[j] a[i, j] * v[j, e]

A pointwise statement that reads a statistic of the folded rank and spans that rank is written into its readers, so that
`online_fuse` sees the whole map; so is one without a sequence rank (its gradient is then a sum over rows of an input's, not a
statement that all rows must wait for). Every other one stays, under its own name. Statements that no output needs are dropped.
What the ``where`` of a reduction says of features becomes part of its map: loops and tiles know sequence ranks alone. So does what it
says of computed pairs: those are known only inside the fold. A reduction over several features becomes one inside the other.

A reduction over positions that keeps pairs of other positions is refused here: no kernel holds a value for all pairs.
"""

from __future__ import annotations

from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.definitions import Definitions
from einfuse.ir.errors import SpecError
from einfuse.ir.nested import nested
from einfuse.ir.nodes import Cascade, Einsum, Expr, Flat
from einfuse.ir.passes import infer_space, relocate
from einfuse.ir.reducers import Reducer
from einfuse.ir.rewrite import prune


def fold_ranks(cascade: Cascade) -> tuple[str, ...]:
    """The sequence ranks (no feature, not ambient) that some statement reduces over, in order of first reduction; and those that an
    output has beside the one that programs own."""
    whole = {r.name for r in cascade.ranks if not r.is_sequence} | set(cascade.over)
    over = [r for x in cascade.body for r in x.over if r not in whole]
    for x in cascade.einsums:
        rows = [r for r in x.ranks if r not in (*whole, *over)] if x.target in cascade.outs else []
        over += rows[1:]
    return tuple(dict.fromkeys(over))


def run(cascade: Flat) -> Flat:
    """Infers spaces itself."""
    cascade = relocate.run(infer_space.run(cascade))
    folded = set(fold_ranks(cascade))
    sequence = {r.name for r in cascade.ranks if r.is_sequence} - set(cascade.over)
    statistics: set[str] = set()  # reductions over a folded rank and what is computed from them
    inlined = Definitions()
    body: list[Einsum] = []
    for x in cascade.body:
        x = replace(x, map=inlined.into(x.map), mask=None if x.mask is None else inlined.into(x.mask))
        if folded & set(x.over) or (ex.reads(x.map) | ex.reads(x.mask)) & statistics:
            statistics.add(x.target)
        pair = x.target in statistics and bool(folded & set(x.ranks))
        if not x.red and (pair or not sequence & set(x.ranks)) and x.target not in cascade.outs:
            inlined.add(x)
        else:
            body.append(x)
    features = {r.name for r in cascade.ranks if not r.is_sequence} - set(cascade.over)
    pairs = {x.target for x in body if folded & set(x.ranks)}
    body = [_unmasked(x, features, pairs, folded, cascade.outs) for x in body]
    taken = {t.name for t in cascade.inputs} | {x.target for x in cascade.body}
    out = prune(replace(cascade, body=tuple(y for x in body for y in nested(cascade, x, taken))))
    _held(out)
    return cascade if out == cascade else out


def _held(cascade: Flat) -> None:
    """Raises SpecError for a reduction over positions whose value a kernel would have to hold for all pairs of two other ranks.

    A program holds rows of the rank that it owns; another rank beside it has to be of a known size, and no loop may go along it.
    """
    sequence = {r.name: r for r in cascade.ranks if r.is_sequence and r.name not in cascade.over}
    looped = set(fold_ranks(cascade))
    for x in cascade.body:
        reduced = [r for r in x.over if r in sequence]
        kept = [sequence[r] for r in x.ranks if r in sequence]
        if not reduced or len(kept) < 2:
            continue
        if {r.name for r in kept} & looped or sum(isinstance(r.size, str) for r in kept) > 1:
            pair = " and ".join(r.name for r in kept)
            last = kept[-1]
            raise SpecError(
                f"`{x.target}` reduces over {', '.join(reduced)} for every pair of {pair}: no kernel holds a value for all pairs",
                x.loc,
                f"reduce one of {pair} first, or have one held whole (short sequences): rank {last.name}: feature = {last.size}",
            )


def _unmasked(x: Einsum, features: set[str], pairs: set[str], folded: set[str], outs: tuple[str, ...]) -> Einsum:
    """A statement whose condition mentions neither features nor computed pairs: of a reduction, and of an output that a fold makes, those
    that do are choices of its map; what a fold computes on the way needs none, as what reads it has the condition too."""
    made = bool(x.red) or (x.target in outs and bool(folded & set(x.ranks)))
    of_features = [p for p in ex.conjuncts(x.mask) if ex.indices(p) & features] if made else []
    of_pairs = [p for p in ex.conjuncts(x.mask) if ex.reads(p) & pairs]
    inside = not folded & set(x.over) and x.target not in outs
    if x.reducer.solves or not (of_features or of_pairs):
        return x
    mask = ex.conjunction(*(p for p in ex.conjuncts(x.mask) if p not in (*of_features, *of_pairs)))
    e = x.map
    for p in dict.fromkeys((*of_features, *(() if inside else of_pairs))):
        mine = ex.indices(p) & features
        alike = [bool(ex.indices(f) & mine if mine else ex.reads(f) & pairs) for f in _parts(e, x.reducer)]
        e = _chosen(p, e, alike if mine else _first(alike), x.reducer)
    return replace(x, map=e, mask=mask)


def _parts(e: Expr, reducer: Reducer) -> tuple[Expr, ...]:
    return ex.factors(e) if reducer.sums else (e,)


def _first(these: list[bool]) -> list[bool]:
    return [x and not any(these[:n]) for n, x in enumerate(these)]


def _chosen(p: Expr, e: Expr, these: list[bool], reducer: Reducer) -> Expr:
    """``e`` where ``p`` holds, else what the reducer ignores; of a product ``these``
    factors, or the first one, the rest stay. Where a row has no point, any of them may be infinite or no number."""
    parts, ignored = list(_parts(e, reducer)), ex.const(reducer.identity)
    for n, f in enumerate(parts):
        done = f.op == "select" and (f.args[0], f.args[2]) == (p, ignored)
        if not done and (these[n] or (n == 0 and not any(these))):
            parts[n] = ex.call("select", p, f, ignored)
    return ex.product(*parts)
