"""A scan that is a linear recurrence, block by block: the quadratic form inside a block, a state between blocks.

    fold i {                                            fold i with i_2 step 64 {
      state S[d, e] = set exp(g[i]) * S + k * v           G[i] = sum[i_2] g[i_2] where i_2 <= i
      o[i, e] = sum[d] q * S                       ->     A[i, i_2] = sum[d] q[i, d] * k[i_2, d] where i_2 <= i
    }                                                     P[i, i_2] = A * exp(G[i] - G[i_2]) where i_2 <= i
                                                          o[i, e] = exp(G[i]) * (sum[d] q * S) + sum[i_2] P * v[i_2, e]
                                                          state S[d, e] = set exp(T) * S + sum[i] k * exp(H[i]) * v
                                                        }

with T the sum of g over the block and H[i] what is left of it after i, so that no exponent is positive where g is not (`ir.chunks.decay`).
A decay of features is cut in halves, so that pairs are products again. Where the update reads the carried state itself (delta rules), these
reads u solve a triangular system in the block (the UT transform: Yang et al., NeurIPS 2024), ``u[i] = b[i] + sum over r < i of M[i, r] u[r]``,
and are then writes like any other. What a point reads of a state: `ir.chunks.reads`. Nothing is known by name: see `ir.recurrence`.
"""

from __future__ import annotations

from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.chunks.block import Block
from einfuse.ir.chunks.decay import Decay, added_up
from einfuse.ir.chunks.demand import guarded
from einfuse.ir.chunks.reads import Read, Reads
from einfuse.ir.errors import SpecError
from einfuse.ir.expr import call
from einfuse.ir.nested import nested
from einfuse.ir.nodes import Blocked, Einsum, Expr, Fold, Scan, State
from einfuse.ir.recurrence import NotLinearError, Update, clean, expand, inline, log_decay, update
from einfuse.ir.rewrite import prune

BLOCK = 64
BLOCK_OF_FEATURES = 16
"""Points of a block with a decay per feature, which takes a product for each size of halves, or with inputs over two features at each point."""


def run(cascade: Scan, step: int | None = None) -> Blocked:
    """The chunked form of a scan; point by point (step 1) where the recurrence is not linear.

    A scan that comes in blocks (from `reassociate`) says the same in parts of these.
    """
    if isinstance(cascade, Blocked):
        fold = cascade.fold
        most = min(step or fold.step, fold.step)
        return Blocked.of(cascade, replace(fold, step=next(n for n in range(most, 0, -1) if fold.step % n == 0)))
    whole = _whole(cascade)
    try:
        return _chunked(whole, step)
    except NotLinearError:
        return Blocked.of(whole, replace(whole.fold, step=1))


def obstacle(cascade: Scan) -> str | None:
    """Why a scan has no chunked form; None where it has one."""
    try:
        _chunked(_whole(cascade), None)
    except NotLinearError as reason:
        return str(reason)
    return None


def _whole(cascade: Scan) -> Scan:
    """Every statement inside the scan: those before and after it go along its rank as well."""
    scan = cascade.fold
    before, after = cascade.around(scan)
    states = {y.target for y in scan.states}
    for x in (*before, *after):
        if scan.rank in x.over:
            raise SpecError(f"{x.target} reduces over `{scan.rank}`, which a scan of the same attention goes along", x.loc)
        if x in after and (ex.reads(x.map) & states or scan.rank not in x.ranks):
            raise SpecError(
                f"{x.target} needs the final state, and no kernel runs after the scan", x.loc, "compute it from the output"
            )
    lines = (*before, *scan.body, *after)
    taken = {t.name for t in cascade.inputs} | {x.target for x in lines}
    inside: list[Einsum | State] = []
    for y in lines:
        inside += [y] if isinstance(y, State) else nested(cascade, y, taken, scan.rank)
    whole = Scan.of(cascade, replace(scan, body=tuple(inside)))
    whole = Scan.of(whole, guarded(whole, whole.fold))
    needed = prune(whole)
    return needed if isinstance(needed, Scan) else whole  # no output needs a state


def _chunked(cascade: Scan, step: int | None) -> Blocked:
    """The cascade of one scan in blocks. Raises NotLinearError."""
    scan = cascade.fold
    block = Block(cascade, scan)
    reads = _reads(block, scan)
    block.step = step or (BLOCK_OF_FEATURES if reads.halved or _has_cubes(block) else BLOCK)
    done: set[str] = set()
    for y in scan.body:
        if isinstance(y, State):
            done.add(y.target)
        else:
            _statement(reads, y, done)
    states = [_state(reads, y) for y in reads.states.values()]
    fold = replace(scan, body=(*block.ordered(), *states), step=block.step, aligned=(block.other.name,))
    return prune(Blocked.of(replace(cascade, ranks=block.ranks), fold))


def _reads(block: Block, scan: Fold) -> Reads:
    """The states of a scan with what their updates are, and the decays of those that keep anything added up."""
    states = {y.target: y for y in scan.states}
    pointwise = {y.target: y for y in scan.einsums if y.red is None}
    updates: dict[str, Update] = {}
    decays: dict[str, Decay] = {}
    for name, state in states.items():
        found = updates[name] = update(scan, state)
        direct = ex.reads(found.decay).union(*(ex.reads(f) for parts in found.writes for f in parts)) & set(states)
        if direct:
            raise NotLinearError(f"the update of {name} needs the state {', '.join(sorted(direct))} at every point")
        decay = inline(found.decay, {n: y for n, y in pointwise.items() if not ex.reads(found.decay) & set(states)})
        if not ex.is_const(found.decay, 0):
            if len(ex.indices(decay) & set(state.ranks)) > 1:
                raise NotLinearError(f"every entry of {name} has a decay of its own, so that point by point is less work")
            decays[name] = added_up(block, name, log_decay(decay))
    return Reads(block, states, updates, decays)


def _has_cubes(block: Block) -> bool:
    """Is anything read that differs from point to point and over two features?"""
    loads = [e for y in block.scan.einsums for e in ex.walk(y.map) if e.op == "load"]
    found = [ex.indices(e) - block.ambient for e in loads]
    return any(block.i in own and len(own) > 2 for own in found)


# -- statements ------------------------------------------------------------------------------------------------------------------


def _statement(reads: Reads, y: Einsum, done: set[str]) -> None:
    """A statement of the scan in terms of the states at the start of the block; those in ``done`` stand above it."""
    block, states = reads.block, reads.states
    read = {n for n in ex.reads(y.map) | ex.reads(y.mask) if n in states}
    if not read:
        block.body.append(y)
        return
    if ex.reads(y.mask):
        raise NotLinearError(f"{y.target} reads a state under a condition")
    if not y.reducer.sums or y.mask is not None:
        block.body.append(replace(y, map=_materialised(reads, y.map, done)))
        return
    total: Expr | None = None
    unknown: list[Expr] = []
    for term in expand(y.map, lambda e: bool(ex.reads(e) & read)):
        parts = clean(term)
        held = [p for p in parts if ex.reads(p) & read]
        if len(held) != 1 or held[0] != ex.at(held[0].name, states[held[0].name].ranks):
            raise NotLinearError(f"{y.target} is not linear in the state")
        weights = tuple(p for p in parts if p is not held[0])
        share, own = reads.split(Read(y.target, states[held[0].name], weights, y.over, held[0].name in done))
        total = share if total is None else call("+", total, share)
        unknown += own
    assert total is not None, "a statement that reads a state has a product that does"
    value = Einsum(y.target, y.ranks, None, (), total, None, y.loc)
    block.body.append(_solved(block, value, unknown) if unknown else value)


def _solved(block: Block, y: Einsum, coefficients: list[Expr]) -> Einsum:
    """``y`` as the known part of a triangular system, with these coefficients of what it is at earlier points."""
    i, other, earlier = block.i, block.other.name, block.other_is("<")
    base = block.named(f"{y.target}_known", set(y.ranks), None, (), y.map)
    share = coefficients[0]
    for more in coefficients[1:]:
        share = call("+", share, more)
    matrix = block.named(f"{y.target}_matrix", {i, other}, None, (), share, earlier)
    there = ex.load(y.target, *(ex.index(other if r == i else r) for r in y.ranks))
    return replace(y, red="solve", over=(other,), map=Expr("+", (base, Expr("*", (matrix, there)))), mask=earlier)


def _materialised(reads: Reads, e: Expr, done: set[str]) -> Expr:
    """``e`` with every state it reads given as a statement over the points."""

    def definition(x: Expr) -> Expr | None:
        if x.op != "load" or x.name not in reads.states:
            return None
        state = reads.states[x.name]
        if x != ex.at(x.name, state.ranks):
            raise NotLinearError(f"the state {x.name} is read at other coordinates than its own")
        value, own = reads.split(Read(x.name, state, (), (), x.name in done))
        if own:
            raise NotLinearError(f"the update of {x.name} needs the state at every point")
        return reads.block.map(f"{x.name}_at", set(state.ranks), value)

    return ex.substitute(e, definition)


# -- states ----------------------------------------------------------------------------------------------------------------------


def _state(reads: Reads, y: State) -> State:
    """A state after the block: what is left of it, and of every write of the block."""
    block, decay = reads.block, reads.decays.get(y.target)
    if decay is None:  # of all writes of a block the last one alone is left
        raise NotLinearError(f"{y.target} keeps nothing from point to point")
    total: Expr = call("*", decay.over("T"), ex.at(y.target, y.ranks))
    for parts in reads.writes(y):
        groups = _grouped((*parts, decay.over("H")), block.points)
        terms = [block.map(f"{y.target}_write", ex.indices(g), g) if g.op != "load" else g for g in groups]
        kept = set(y.ranks) & set().union(*map(ex.indices, terms))
        share = block.named(f"{y.target}_new", kept, "sum", (block.i,), ex.product(*terms))
        total = call("+", total, share)
    return replace(y, map=total)


def _grouped(parts: tuple[Expr, ...], points: frozenset[str]) -> list[Expr]:
    """Factors of the same features multiplied; factors of none go to the first group."""
    groups: dict[frozenset[str], list[Expr]] = {}
    loose: list[Expr] = []
    for p in parts:
        features = frozenset(ex.indices(p) - points)
        (groups.setdefault(features, []) if features else loose).append(p)
    if not groups:
        return [ex.product(*loose)]
    first, *others = groups.values()
    return [ex.product(*first, *loose), *(ex.product(*g) for g in others)]
