"""Cuts a cascade for devices that hold some coordinates of a rank each: what every device computes, and what it needs of the others.

    rank i: query = Nq                              rank i: query = i_rows
    in q[b, h, Nq, d]                       ->      in q[b, h, i_rows, d]                  its own rows
    in k[b, h, Nk, d]                               in k[b, h, Nk, d]                      from every device, or those columns that
    s[i, j] = ... where j <= i                      s[i, j] = ... where j <= i + i_first   some row of the device reads

Of every statement it is asked what a kernel asks as well: does it keep the rank, reduce over it, or pair it with another one? A device can
own the rows of a rank that nothing reduces over and nothing reads at other rows; where no rank is like that, the cascade is cut into
`stages`, each with rows of its own. Nothing here knows a normaliser or a mask.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.errors import SpecError
from einfuse.ir.nodes import Cascade, Einsum, Expr, Flat, Tensor
from einfuse.ir.passes import infer_space, stages, window
from einfuse.ir.passes.window import Window
from einfuse.ir.rewrite import fresh, statements
from einfuse.ir.span import Span


@dataclass(frozen=True, slots=True)
class Local(Window):
    """The window of a rank that one device holds. ``witnesses`` are inputs that nothing reads, with the size that each has: one of the whole
    that no other input has any more."""

    witnesses: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """One cascade of a sharded one, in coordinates of the whole; a device computes the rows of ``owner`` that it holds (None: everything).

    ``held`` are the inputs of which every device has its own rows, by axis; all others it has whole. ``columns`` is the other sharded rank,
    of which rows read no more than where ``need`` holds; None where all has to be there.
    """

    cascade: Cascade
    owner: str | None
    held: Mapping[str, int]
    columns: str | None = None
    need: Expr | None = None


def held(c: Cascade, ranks: Collection[str]) -> dict[str, int]:
    """The inputs with an axis along one of the ranks, and the first such axis; of ambient ranks also one along groups of it."""
    wanted = {ex.size(c.rank(r).size) for r in ranks}
    groups = {ex.size(c.rank(r).size) for r in ranks if r in c.over}

    def along(a: Expr) -> bool:
        return a in wanted or (a.op == "//" and a.args[0] in groups)

    axes = {t.name: next((n for n, a in enumerate(t.given[0]) if along(a)), None) for t in c.inputs}
    return {name: n for name, n in axes.items() if n is not None}


# -- columns: every device has its own rows, and gets what they read -------------------------------------------------------------------


def by_columns(c: Cascade, ranks: Collection[str]) -> tuple[Stage, ...]:
    """The stages of a cascade whose ``ranks`` are sharded. Raises SpecError with the statement that stands in the way."""
    found = _owned(c, ranks, held(c, ranks))
    if found is not None:
        return (found,)
    reason = _first_obstacle(c, ranks)
    if c.places or not isinstance(c, Flat) or any(x.reducer.chooses for x in c.body):
        raise reason
    try:
        cut = stages.run(c)
    except SpecError:
        raise reason from None
    known = held(c, ranks)
    out = []
    for part in cut:
        mine = {t.name: known[t.name] for t in part.inputs if t.name in known}
        stage = _owned(part, ranks, mine) or Stage(part, None, mine)
        out.append(stage)
        if stage.owner is not None:
            own = {x.target: x.ranks for x in part.einsums}
            known |= {n: (*part.over, *own[n]).index(stage.owner) for n in part.outs}
    last = [s for s in out if set(s.cascade.outs) & set(c.outs)]
    if any(s.owner is None for s in last):
        raise reason
    return tuple(out)


def _owned(c: Cascade, ranks: Collection[str], known: Mapping[str, int]) -> Stage | None:
    for r in (x.name for x in c.ranks if x.name in ranks):
        if obstacle(c, r) is None:
            others = [x for x in ranks if x != r and any(x == y.name for y in c.ranks)]
            column = others[0] if len(others) == 1 else None
            need = None if column is None else needed(c, r, column)
            return Stage(c, r, known, column if need is not None else None, need)
    return None


def _first_obstacle(c: Cascade, ranks: Collection[str]) -> SpecError:
    for r in (x.name for x in c.ranks if x.name in ranks):
        found = obstacle(c, r)
        if found is not None:
            return SpecError(f"{c.name} cannot be sharded over `{r}`: {found[0]}", found[1])
    return SpecError(f"{c.name} has no rank {' or '.join(sorted(ranks))} to shard", c.loc)


def obstacle(c: Cascade, rank: str, scanned: bool = False) -> tuple[str, Span | None] | None:
    """Why a device cannot own rows of the rank, and the statement that says so; None: it can. ``scanned``: points may come in order."""
    own = {x.target: x.ranks for x in statements(c)}
    ambient = rank in c.over
    for f in c.folds:
        if f.rank == rank and not scanned:
            return f"the points of `{rank}` come in order, each from the states of the one before", f.loc
    for x in statements(c):
        if rank in x.over:
            return f"{x.target} {'solves along' if x.reducer.solves else 'reduces over'} `{rank}`", x.loc
        for e in (y for z in x.expressions for y in ex.walk(z) if y.op in ("load", "in", "new") and y.name in own):
            args = e.args if e.op != "in" else e.args[1:]
            away = [a for r, a in zip(own[e.name], args, strict=False) if r == rank and a != ex.index(rank)]
            if away or (e.op == "in" and own[e.name][-1:] == (rank,)):
                return f"{x.target} reads {e.name} at other points of `{rank}`", x.loc
    for name in c.outs:
        if not ambient and rank not in own[name] and not (scanned and _state(c, name)):
            x = next(y for y in statements(c) if y.target == name)
            return f"the output {name} has no rank `{rank}`", x.loc
    return None


def _state(c: Cascade, name: str) -> bool:
    return any(y.target == name for f in c.folds for y in f.states)


def needed(c: Cascade, rows: str, columns: str) -> Expr | None:
    """Where a row reads a column at all, as far as coordinates and tables of numbers tell; None where columns cannot be left out.

    They cannot where an output has them, where something reads them at other places than their own, or where a coordinate is what is computed.
    """
    if not isinstance(c, Flat):
        return None
    own = {x.target: x.ranks for x in statements(c)}
    if any(columns in own[n] for n in c.outs):
        return None
    found: list[Expr] = []
    body = infer_space.run(c).body
    for x in body:
        if ((x.reducer.chooses or x.reducer.solves) and columns in (*x.over, *x.ranks)) or _away(x, own, columns):
            return None
        if columns in x.over:
            known = {rows, columns, *c.over}
            told = [p for p in ex.conjuncts(x.mask) if ex.indices(p) <= known and not ex.reads(p) & own.keys()]
            found.append(ex.conjunction(*told) or ex.TRUE)
    out: Expr = ex.FALSE
    for e in dict.fromkeys(found):
        out = ex.call("or", out, e)
    return out


def _away(x: Einsum, own: Mapping[str, tuple[str, ...]], rank: str) -> bool:
    reads = [e for y in x.expressions for e in ex.walk(y) if e.op in ("load", "in") and rank in own.get(e.name, ())]
    return any(e.op == "in" or e.args[own[e.name].index(rank)] != ex.index(rank) for e in reads)


# -- a cascade in the coordinates of one device ----------------------------------------------------------------------------------------


def run(c: Cascade, rank: str, listed: bool = False, given: Mapping[str, int] | None = None, grouped: bool = False) -> Local:
    """The cascade over some coordinates of ``rank`` (`window.run`), and inputs that tell the sizes of the whole."""
    w = window.run(c, rank, listed, given, grouped)
    told = {a.name for t in w.cascade.inputs for a in t.given[0] if a.op == "size"}
    missing = sorted((window.sizes(w.cascade) - told) & {str(c.rank(rank).size), w.rows})
    names = window.names(w.cascade)
    witnesses = tuple((fresh(f"{n}_whole", names), n) for n in missing)
    told_by = [Tensor(name, (ex.size(n),), "bool") for name, n in witnesses]
    local = replace(w.cascade, name=f"{c.name}_{rank}_local", inputs=(*w.cascade.inputs, *told_by))
    return Local(local, rank, w.rows, w.at, listed, w.cut, witnesses)
