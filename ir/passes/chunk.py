"""A scan that is a linear recurrence, block by block: the quadratic form inside a block, a state between blocks.

    fold i {                                            fold i with i_2 step 64 {
      state S[d, e] = set exp(g[i]) * S + k * v           G[i] = sum[i_2] g[i_2] where i_2 <= i
      o[i, e] = sum[d] q * S                       ->     A[i, i_2] = sum[d] q[i, d] * k[i_2, d] where i_2 <= i
    }                                                     P[i, i_2] = A * exp(G[i] - G[i_2]) where i_2 <= i
                                                          o[i, e] = exp(G[i]) * (sum[d] q * S) + sum[i_2] P * v[i_2, e]
                                                          state S[d, e] = set exp(T) * S + sum[i] k * exp(H[i]) * v
                                                        }

with T the sum of g over the block and H[i] what is left of it after i, so that no exponent is positive where g is not. Each sum is kept
in two parts, one of multiples of 1 / 1024 (exact in any float type) and a small rest: the difference of two large sums would have
lost the digits that near points need. A decay with a
feature of its own weighs inside the sum over it. Where the update reads the carried state itself (delta rules), these reads u
solve a triangular system in the block (the UT transform: Yang et al., NeurIPS 2024), ``u[i] = b[i] + sum over r < i of M[i, r] u[r]``,
and are then writes like any other. Nothing is known by name: see `ir.recurrence`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.errors import SpecError
from einfuse.ir.expr import call
from einfuse.ir.nodes import Cascade, Einsum, Expr, Fold, Rank, State
from einfuse.ir.recurrence import LogDecay, NotLinearError, Update, clean, expand, inline, log_decay, update
from einfuse.ir.rewrite import fresh, prune

GRAIN = 1024
LEAST = 1e4
"""The coarse part of a logarithm is a multiple of 1 / GRAIN, no less than -LEAST: sums over a block are exact in 24 bits."""
BLOCK = 64
BLOCK_OF_FEATURES = 16
"""Points of a block: with a decay per feature every pair of points costs an exponential per feature, and other cubes are as large."""


def scan_of(cascade: Cascade) -> Fold | None:
    """The scan of a cascade, if it has one. Raises SpecError for more than one."""
    found = [x for x in cascade.body if isinstance(x, Fold) and x.sequential]
    if len(found) > 1:
        raise SpecError("an attention has at most one scan", found[1].loc, "carry several states in one scan")
    return found[0] if found else None


def run(cascade: Cascade, step: int | None = None) -> Cascade:
    """The chunked form of the scan of ``cascade``; point by point (step 1) where the recurrence is not linear."""
    scan = scan_of(cascade)
    if scan is None or scan.step:
        return cascade
    whole = _whole(cascade, scan)
    try:
        return _Chunker(whole, scan_of(whole) or scan).run(step)
    except NotLinearError:
        return replace(whole, body=tuple(replace(x, step=1) if isinstance(x, Fold) else x for x in whole.body))


def obstacle(cascade: Cascade) -> str | None:
    """Why the scan of ``cascade`` has no chunked form; None where it has one, or there is no scan."""
    scan = scan_of(cascade)
    if scan is None:
        return None
    whole = _whole(cascade, scan)
    try:
        _Chunker(whole, scan_of(whole) or scan).run(None)
    except NotLinearError as reason:
        return str(reason)
    return None


def _whole(cascade: Cascade, scan: Fold) -> Cascade:
    """Every statement inside the scan: those before and after it go along its rank as well."""
    at = cascade.body.index(scan)
    states = {y.target for y in scan.body if isinstance(y, State)}
    for n, x in enumerate(cascade.body):
        if isinstance(x, Fold):
            continue
        if scan.rank in x.over:
            raise SpecError(f"{x.target} reduces over `{scan.rank}`, which a scan of the same attention goes along", x.loc)
        if n > at and (ex.reads(x.map) & states or scan.rank not in x.ranks):
            raise SpecError(
                f"{x.target} needs the final state, and no kernel runs after the scan", x.loc, "compute it from the output"
            )
    before, after = cascade.body[:at], cascade.body[at + 1 :]
    body = replace(scan, body=(*before, *scan.body, *after))  # type: ignore[arg-type]  # the scan is the only fold
    return prune(replace(cascade, body=(body,)))


@dataclass(slots=True)
class _Decay:
    """What a decay adds up to inside a block, each None where it is 1 throughout: over the points up to one's own (``G``), before it
    (``G_old``), after it (``H``) and all (``T``), as coarse ``sums`` and ``rests``; ``ranks`` those of the logarithm; the numbers of
    resets likewise."""

    ranks: frozenset[str]
    sums: dict[str, Expr]
    rests: dict[str, Expr]
    resets: dict[str, Expr]


class _Chunker:
    def __init__(self, cascade: Cascade, scan: Fold) -> None:
        self.cascade, self.scan, self.i = cascade, scan, scan.rank
        own = cascade.rank(scan.rank)
        self.taken = {*(r.name for r in cascade.ranks), *(t.name for t in cascade.inputs), *(y.target for y in scan.body)}
        self.r = fresh(f"{self.i}_2", self.taken)
        self.other = Rank(self.r, own.kind, own.size, own.loc)
        self.states = {y.target: y for y in scan.body if isinstance(y, State)}
        self.updates: dict[str, Update] = {}
        self.decays: dict[str, _Decay] = {}
        self.body: list[Einsum] = []
        self.known: dict[object, str] = {}
        self.features = False

    def run(self, step: int | None) -> Cascade:
        pointwise = {y.target: y for y in self.scan.body if isinstance(y, Einsum) and y.red is None}
        for name, state in self.states.items():
            found = update(self.scan, state)
            decay = inline(found.decay, {n: y for n, y in pointwise.items() if not ex.reads(found.decay) & set(self.states)})
            self.updates[name] = found
            if not ex.is_const(found.decay, 0):
                if len(ex.indices(decay) & set(state.ranks)) > 1:
                    raise NotLinearError(f"every entry of {name} has a decay of its own, so that point by point is less work")
                self.decays[name] = self._decay(name, log_decay(decay))
        done: set[str] = set()
        for y in self.scan.body:
            if isinstance(y, State):
                done.add(y.target)
            else:
                self._statement(y, done)
        states = [self._state(y) for y in self.states.values()]
        body: tuple[Einsum | State, ...] = (*self._ordered(), *states)
        chosen = step or (BLOCK_OF_FEATURES if self.features or self._has_cubes() else BLOCK)
        fold = replace(self.scan, body=body, step=chosen, aligned=(self.r,))
        at = self.cascade.ranks.index(self.cascade.rank(self.i)) + 1
        ranks = (*self.cascade.ranks[:at], self.other, *self.cascade.ranks[at:])
        return prune(replace(self.cascade, ranks=ranks, body=(fold,)))

    def _has_cubes(self) -> bool:
        """Is anything read that differs from point to point and over two features?"""
        loads = [e for y in self.scan.body if isinstance(y, Einsum) for e in ex.walk(y.map) if e.op == "load"]
        found = [ex.indices(e) - set(self.cascade.over) for e in loads]
        return any(self.i in own and len(own) > 2 for own in found)

    # -- statements --------------------------------------------------------------------------------------------------------------

    def _named(
        self, base: str, ranks: set[str], red: str | None, over: tuple[str, ...], e: Expr, mask: Expr | None = None
    ) -> Expr:
        """A statement with this value (one for equal values), read at its own ranks."""
        order = [r.name for r in self.cascade.ranks]
        order.insert(order.index(self.i) + 1, self.r)
        held = tuple(r for r in order if r in ranks - set(self.cascade.over))
        key = (held, red, over, e, mask)
        if key not in self.known:
            self.known[key] = fresh(base, self.taken)
            self.body.append(Einsum(self.known[key], held, red, over, e, mask, self.scan.loc))
        return ex.at(self.known[key], held)

    def _there(self, e: Expr) -> Expr:
        """``e`` at the other point of a pair."""
        return ex.rename(e, {self.i: ex.index(self.r)})

    def _statement(self, y: Einsum, done: set[str]) -> None:
        """A statement of the scan in terms of the state at the start of the block."""
        read = {n for n in ex.reads(y.map) | ex.reads(y.mask) if n in self.states}
        if not read:
            self.body.append(y)
            return
        if ex.reads(y.mask):
            raise NotLinearError(f"{y.target} reads a state under a condition")
        if y.red != "sum" or y.mask is not None:
            self.body.append(replace(y, map=self._materialised(y.map, done)))
            return
        total: Expr | None = None
        unknown: list[Expr] = []
        for term in expand(y.map, lambda e: bool(ex.reads(e) & read)):
            parts = clean(term)
            held = [p for p in parts if ex.reads(p) & read]
            if len(held) != 1 or held[0] != ex.at(held[0].name, self.states[held[0].name].ranks):
                raise NotLinearError(f"{y.target} is not linear in the state")
            share, own = self._read(
                y.target, held[0].name, tuple(p for p in parts if p is not held[0]), y.over, held[0].name in done
            )
            total = share if total is None else call("+", total, share)
            unknown += own
        assert total is not None, "a statement that reads a state has a product that does"
        if not unknown:
            self.body.append(Einsum(y.target, y.ranks, None, (), total, None, y.loc))
            return
        base = self._named(f"{y.target}_known", set(y.ranks), None, (), total)
        share = unknown[0]
        for more in unknown[1:]:
            share = call("+", share, more)
        matrix = self._named(f"{y.target}_matrix", {self.i, self.r}, None, (), share, self._earlier("<"))
        me = ex.load(y.target, *(ex.index(self.r if r == self.i else r) for r in y.ranks))
        self.body.append(
            Einsum(y.target, y.ranks, "solve", (self.r,), Expr("+", (base, Expr("*", (matrix, me)))), self._earlier("<"), y.loc)
        )

    def _materialised(self, e: Expr, done: set[str]) -> Expr:
        """``e`` with every state it reads given as a statement over the points."""

        def definition(x: Expr) -> Expr | None:
            if x.op != "load" or x.name not in self.states:
                return None
            ranks = self.states[x.name].ranks
            if x != ex.at(x.name, ranks):
                raise NotLinearError(f"the state {x.name} is read at other coordinates than its own")
            value, own = self._read(x.name, x.name, (), (), x.name in done)
            if own:
                raise NotLinearError(f"the update of {x.name} needs the state at every point")
            return self._named(f"{x.name}_at", {self.i, *ranks}, None, (), value)

        return ex.substitute(e, definition)

    # -- reads ---------------------------------------------------------------------------------------------------------------------

    def _earlier(self, op: str) -> Expr:
        return call(op, ex.index(self.r), ex.index(self.i))

    def _read(
        self, name: str, state: str, weights: tuple[Expr, ...], over: tuple[str, ...], new: bool
    ) -> tuple[Expr, list[Expr]]:
        """``sum[over] weights * state`` at every point: what is known of it, and the coefficients of the unknown at earlier points."""
        y, found = self.states[state], self.updates[state]
        total = self._carried(name, y, weights, over, new)
        unknown: list[Expr] = []
        cyclic = name == found.read and not new
        for parts in found.writes if cyclic else self._writes(state):
            mine = [p for p in parts if found.read is not None and found.read in ex.reads(p)] if cyclic else []
            rest = tuple(p for p in parts if p not in mine)
            pair, after = self._pair(name, y, weights, rest, over, new)
            if mine:
                if any(ex.indices(p) & set(y.ranks) for p in after):
                    raise NotLinearError(f"{name} meets itself with a weight for every feature")
                unknown.append(ex.product(pair, *map(self._there, after)))
                continue
            kept = set().union(*(ex.indices(p) for p in (*after, pair))) - {self.r}
            e = ex.product(pair, *map(self._there, after))
            share = self._named(f"{name}_near", kept | {self.i}, "sum", (self.r,), e)
            total = call("+", total, share)
        return total, unknown

    def _writes(self, state: str) -> list[tuple[Expr, ...]]:
        """The writes of a state, those with the same factors of its first rank joined into one."""
        y = self.states[state]
        groups: dict[tuple[Expr, ...], list[tuple[Expr, ...]]] = {}
        for parts in self.updates[state].writes:
            first = tuple(p for p in parts if y.ranks and y.ranks[0] in ex.indices(p))
            groups.setdefault(first, []).append(tuple(p for p in parts if p not in first))
        out = []
        for first, rests in groups.items():
            if len(rests) == 1:
                out.append((*first, *rests[0]))
                continue
            total = ex.product(*rests[0])
            for rest in rests[1:]:
                total = call("+", total, ex.product(*rest))
            out.append((*first, self._named(f"{state}_value", ex.indices(total) | {self.i}, None, (), total)))
        return out

    def _carried(self, name: str, y: State, weights: tuple[Expr, ...], over: tuple[str, ...], new: bool) -> Expr:
        """The share of the state at the start of the block."""
        decay = self.decays.get(y.target)
        if y.target not in self.decays and ex.is_const(self.updates[y.target].decay, 0) and new:
            return ex.ZERO
        factor = self._factor(decay, "G" if new else "G_old")
        inside = decay is not None and bool(decay.ranks & set(y.ranks))
        held = ex.at(y.target, y.ranks)
        if not over:
            return ex.product(*weights, factor, held)
        parts = (*weights, factor) if inside else weights
        if inside or len(parts) > 1:  # the weights of the state are one matrix
            summed = set().union(*map(ex.indices, parts))
            parts = (self._named(f"{name}_weight", summed | {self.i}, None, (), ex.product(*parts)),)
        kept = ({self.i} | set(y.ranks) | set().union(*map(ex.indices, parts))) - set(over)
        share = self._named(f"{name}_far", kept, "sum", over, ex.product(*parts, held))
        return share if inside else call("*", factor, share)

    def _pair(
        self, name: str, y: State, weights: tuple[Expr, ...], rest: tuple[Expr, ...], over: tuple[str, ...], new: bool
    ) -> tuple[Expr, tuple[Expr, ...]]:
        """The matrix of what a point takes from an earlier one, and the factors of the write that stay outside it."""
        decay = self.decays.get(y.target)
        if decay is None and ex.is_const(self.updates[y.target].decay, 0):
            raise NotLinearError(f"{y.target} keeps nothing from point to point")
        mask = self._earlier("<=" if new else "<")  # of the matrix itself: what reads it needs none
        inside = decay is not None and bool(decay.ranks & set(over))
        move = self._move(decay, new)
        summed = tuple(p for p in rest if ex.indices(p) & set(over))
        after = tuple(p for p in rest if p not in summed)
        matrix: Expr = ex.ONE
        if over:
            parts = (*weights, *map(self._there, summed), *((move,) if inside else ()))
            if not all(any(r in ex.indices(p) for p in parts) for r in over):
                raise NotLinearError(f"{name} sums a state over a rank that it does not write")
            kept = set().union(*map(ex.indices, parts)) - set(over)
            matrix = self._named(
                f"{name}_pairs",
                kept | {self.i, self.r},
                "sum",
                over,
                ex.product(*parts),
                mask if inside or decay is None else None,
            )
        else:
            matrix = ex.product(*weights)
        if over and (inside or decay is None):
            return matrix, after
        whole = call("*", matrix, move)
        kept = ex.indices(whole)
        return self._named(f"{name}_weights", kept | {self.i, self.r}, None, (), whole, mask), after

    # -- decays --------------------------------------------------------------------------------------------------------------------

    def _decay(self, state: str, found: LogDecay) -> _Decay:
        """The statements that add up a decay inside a block."""
        ranks = ex.indices(found.log) - {self.i, *self.cascade.over}
        self.features |= bool(ranks)
        out = _Decay(frozenset(ranks), {}, {}, {})
        coarse = rest = None
        if found.log is not None:
            log = self._named(f"{state}_log", ranks | {self.i}, None, (), found.log)
            whole = call("floor", call("*", call("max", log, ex.const(-LEAST)), ex.const(float(GRAIN))))
            coarse = self._named(
                f"{state}_coarse", ranks | {self.i}, None, (), call("/", call("float", whole), ex.const(float(GRAIN)))
            )
            rest = call("-", log, coarse)
        resets = call("float", found.reset) if found.reset is not None else None
        masks = {"G": self._earlier("<="), "G_old": self._earlier("<"), "H": self._earlier(">")}
        for kind, e, table in (("", coarse, out.sums), ("_rest", rest, out.rests), ("_resets", resets, out.resets)):
            if e is None:
                continue
            if e is resets and ex.indices(e) - {self.i, *self.cascade.over}:
                raise NotLinearError("a reset differs from feature to feature")
            mine = ex.indices(e) - {self.i, *self.cascade.over}
            value = self._named(f"{state}_log{kind}", mine | {self.i}, None, (), e) if e.op != "load" else e
            for name, mask in masks.items():
                table[name] = self._named(f"{state}_{name}{kind}", mine | {self.i}, "sum", (self.r,), self._there(value), mask)
            table["T"] = self._named(f"{state}_T{kind}", mine, "sum", (self.i,), value)
        return out

    def _factor(self, decay: _Decay | None, which: str) -> Expr:
        """``exp`` of a sum of the decay; 0 where there was a reset."""
        if decay is None:
            return ex.ONE
        value = call("exp", call("+", decay.sums[which], decay.rests[which])) if decay.sums else ex.const(1.0)
        if not decay.resets:
            return value
        return call("select", call("==", decay.resets[which], ex.const(0.0)), value, ex.const(0.0))

    def _move(self, decay: _Decay | None, new: bool) -> Expr:
        """The decay from the other point of a pair to one's own."""
        if decay is None:
            return ex.ONE
        which = "G" if new else "G_old"
        value: Expr = ex.const(1.0)
        if decay.sums:
            parts = [call("-", t[which], self._there(t["G"])) for t in (decay.sums, decay.rests)]
            value = call("exp", call("+", *parts))
        if not decay.resets:
            return value
        return call("select", call("==", decay.resets[which], self._there(decay.resets["G"])), value, ex.const(0.0))

    # -- states --------------------------------------------------------------------------------------------------------------------

    def _state(self, y: State) -> State:
        decay, found = self.decays.get(y.target), self.updates[y.target]
        keeps = not ex.is_const(found.decay, 0)
        total: Expr = call("*", self._factor(decay, "T"), ex.at(y.target, y.ranks)) if keeps else ex.ZERO
        factor = self._factor(decay, "H")
        for parts in self._writes(y.target):
            parts = (*parts, factor) if decay is not None else parts
            groups = _grouped(parts, {self.i, *self.cascade.over})
            terms = [
                self._named(f"{y.target}_write", ex.indices(g) | {self.i}, None, (), g) if g.op != "load" else g for g in groups
            ]
            share = self._named(
                f"{y.target}_new", set(y.ranks) & set().union(*map(ex.indices, terms)), "sum", (self.i,), ex.product(*terms)
            )
            total = call("+", total, share)
        return replace(y, map=total)

    def _ordered(self) -> list[Einsum]:
        """The statements in dependence order."""
        names = {x.target for x in self.body}
        pending, out, done = list(self.body), list[Einsum](), set[str]()
        while pending:
            ready = [x for x in pending if not ((ex.reads(x.map) | ex.reads(x.mask)) & names) - done - {x.target}]
            if not ready:
                raise NotLinearError("the states of the scan need each other")
            out += ready
            done |= {x.target for x in ready}
            pending = [x for x in pending if x.target not in done]
        return out


def _grouped(parts: tuple[Expr, ...], points: set[str]) -> list[Expr]:
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
