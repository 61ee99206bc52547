"""Reverse mode on a blocked scan: the backward is a scan from the last block to the first, over the states it started from.

    fold i with i_2 step 64 {                                     fold i with i_2 count n step 64 reverse {
      o[i, e] = sum[d] q[i, d] * S[d, e] + ...                      d_q[i, d] = sum[e] d_o[i, e] * S_start[n, d, e] + ...
      state S[d, e] = set exp(T[]) * S[d, e] + ...        ->        state d_S[d, e] = set exp(T[]) * d_S[d, e] + sum[i] q * d_o
    }                                                             }

The forward scan gives out the state at the start of every block (``S_start``); everything else inside a block is computed again. Each
statement hands its adjoint on to what it reads, summed over the ranks that the read has not; the adjoint of a triangular system is
the transposed system. A difference of two prefix sums is what it is, the sum of what lies between them, and its adjoint is handed to
the summands at once: as two adjoints of prefix sums, nearly all of it would cancel and leave its rounding errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from einfuse.ir import expr as ex
from einfuse.ir.derivative import derivative
from einfuse.ir.errors import SpecError
from einfuse.ir.expr import call
from einfuse.ir.nodes import Blocked, Einsum, Expr, Fold, Rank, State, Tensor
from einfuse.ir.passes.backward import Gradient, adjoint
from einfuse.ir.rewrite import fresh, prune
from einfuse.ir.spread import spread
from einfuse.ir.statements import equation, own_rank


@dataclass(frozen=True, slots=True)
class ScanBackward:
    """``forward`` also gives out ``saved``, which ``backward`` reads; ``gradients`` are the parts that its outputs are."""

    forward: Blocked
    saved: tuple[str, ...]
    backward: Blocked
    gradients: tuple[Gradient, ...]


def run(cascade: Blocked, wanted: Iterable[str]) -> ScanBackward:
    """The backward of a blocked scan (see `chunk`) for the inputs named in ``wanted``."""
    return _Reverse(plain(cascade), set(wanted)).run()


def plain(cascade: Blocked) -> Blocked:
    """Every statement in terms of the states at the start of a block: what is read below a state's line is a statement of its own."""
    fold = cascade.fold
    taken = {*(r.name for r in cascade.ranks), *(t.name for t in cascade.inputs), *(y.target for y in fold.body)}
    now: dict[str, Expr] = {}
    body: list[Einsum] = []
    states: list[State] = []

    def current(e: Expr) -> Expr:
        return ex.substitute(e, lambda x: now.get(x.name) if x.op == "load" else None)

    for n, y in enumerate(fold.body):
        if not isinstance(y, State):
            body.append(replace(y, map=current(y.map)))
            continue
        later = [z for z in fold.body[n + 1 :] if y.target in ex.reads(z.map)]
        if not later:
            states.append(replace(y, map=current(y.map)))
            continue
        name = fresh(f"{y.target}_next", taken)
        assert fold.step == 1, "the states of a block of several points are read at its start"
        ranks = tuple(r.name for r in cascade.ranks if r.name in {fold.rank, *y.ranks})
        body.append(Einsum(name, ranks, None, (), current(y.map), None, y.loc))
        now[y.target] = ex.at(name, ranks)
        states.append(replace(y, map=now[y.target]))
    return Blocked.of(cascade, replace(fold, body=(*body, *states)))


@dataclass(slots=True)
class _Reverse:
    cascade: Blocked
    wanted: set[str]
    taken: set[str] = field(init=False)
    order: list[str] = field(init=False)
    body: list[Einsum] = field(default_factory=list)
    parts: dict[str, list[Expr]] = field(default_factory=dict)
    gradients: dict[tuple[str, tuple[Expr, ...]], list[Expr]] = field(default_factory=dict)
    known: dict[object, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.taken = {*(r.name for r in self.cascade.ranks), *(t.name for t in self.cascade.inputs)}
        self.taken |= {y.target for y in self.fold.body}

    @property
    def fold(self) -> Fold:
        return self.cascade.fold

    def run(self) -> ScanBackward:
        c, fold = self.cascade, self.fold
        einsums = fold.einsums
        states = fold.states
        count = fresh("n", self.taken)
        rank = Rank(count, "state", f"{count}_blocks")
        starts = {y.target: fresh(f"{y.target}_start", self.taken) for y in states}
        carried = {y.target: fresh(adjoint(y.target), self.taken) for y in states}
        self.order = [r.name for r in c.ranks]
        for name in c.outs:
            if name not in starts:
                out = next(x for x in einsums if x.target == name)
                self.parts[name] = [ex.at(adjoint(name), (*c.over, *out.ranks))]
        for y in states:
            self._pointwise(y.map, ex.at(carried[y.target], y.ranks), set(y.ranks), None, y)
        for x in reversed(einsums):
            self._statement(x)
        updates = [self._total(y.target, y.ranks) for y in states]
        outs, gradients, sums = self._outputs(states, carried)
        backward = self._assembled(states, starts, carried, updates, rank, outs, sums)
        saves = [Einsum(starts[y.target], (count, *y.ranks), None, (), ex.at(y.target, y.ranks)) for y in states]
        forward = Blocked.of(
            replace(c, ranks=(*c.ranks, rank), outs=(*c.outs, *starts.values())),
            replace(fold, body=(*saves, *fold.body), count=count),
        )
        return ScanBackward(forward, tuple(starts.values()), backward, gradients)

    # -- adjoints ----------------------------------------------------------------------------------------------------------------

    def _named(
        self, base: str, ranks: Iterable[str], red: str | None, over: tuple[str, ...], e: Expr, mask: Expr | None
    ) -> Expr:
        held = tuple(r for r in self.order if r in set(ranks))
        key = (held, red, over, e, mask)
        if key not in self.known:
            self.known[key] = fresh(base, self.taken)
            self.body.append(Einsum(self.known[key], held, red, over, e, mask))
        return ex.at(self.known[key], held)

    def _total(self, name: str, ranks: tuple[str, ...]) -> Expr | None:
        """The whole adjoint of a statement or state: the sum of what its readers handed on."""
        total: Expr | None = None
        for part in self.parts.get(name, []):
            total = part if total is None else call("+", total, part)
        if total is None or total.op == "load":
            return total
        return self._named(f"d_{name}", ranks, None, (), total, None)

    def _statement(self, x: Einsum) -> None:
        bar = self._total(x.target, x.ranks)
        if bar is None:
            return
        if x.red is None:
            self._pointwise(x.map, bar, set(x.ranks), x.mask, x)
        elif x.reducer.sums:
            self._pointwise(x.map, bar, {*x.ranks, *x.over}, x.mask, x)
        elif x.reducer.solves:
            self._solve(x, bar)
        elif any(self._matters(n) for n in ex.reads(x.map)):
            raise SpecError(f"the gradient through `{x.red}` inside a scan is not available", x.loc)

    def _matters(self, name: str) -> bool:
        return name in self.wanted or name in {y.target for y in self.fold.body}

    def _solve(self, x: Einsum, bar: Expr) -> None:
        """u = b + m u  gives  d_b = d_u + m^T d_b  and  d_m[i, r] = d_b[i] u[r]."""
        base, share = equation(x)
        own, (other,) = own_rank(x), x.over
        matrix = share.args[0]
        name = fresh(f"d_{x.target}_known", self.taken)
        swapped = ex.rename(matrix, {own: ex.index(other), other: ex.index(own)})
        me = ex.load(name, *(ex.index(other if r == own else r) for r in x.ranks))
        opposite = call(">" if x.mask is not None and x.mask.op == "<" else "<", ex.index(other), ex.index(own))
        self.body.append(Einsum(name, x.ranks, "solve", (other,), Expr("+", (bar, Expr("*", (swapped, me)))), opposite, x.loc))
        solved = ex.at(name, x.ranks)
        unknown = ex.load(x.target, *(ex.index(other if r == own else r) for r in x.ranks))
        self._pointwise(base, solved, set(x.ranks), None, x)
        self._hand(matrix, call("*", solved, unknown), {*x.ranks, other}, x.mask)

    def _pointwise(self, e: Expr, bar: Expr, space: set[str], mask: Expr | None, x: Einsum | State) -> None:
        """Hands ``bar * de/dread`` on to every read of ``e``."""
        held: dict[Expr, Expr] = {}  # differences of prefix sums, for the rest as good as constants
        for part in dict.fromkeys(y for y in ex.walk(e) if y.op == "-"):
            between = self._between(part)
            if between is None:
                continue
            held[ex.load(f"<{len(held)}>")] = part
            slope = derivative(e, part)
            if not ex.is_const(slope, 0):
                self._hand_between(between, call("*", bar, slope), space, mask)
        hidden = {part: name for name, part in held.items()}
        rest = ex.substitute(e, hidden.get)
        for read in dict.fromkeys(y for y in ex.walk(rest) if y.op == "load" and y not in held):
            if not self._matters(read.name):
                continue
            slope = ex.substitute(derivative(rest, read), held.get)
            if not ex.is_const(slope, 0):
                self._hand(read, call("*", bar, slope), space, mask)

    def _between(self, e: Expr) -> tuple[Einsum, Einsum] | None:
        """The two prefix sums, at one's own point and at the other one of a pair, that ``e`` is the difference of."""
        if e.op != "-" or not self.fold.aligned or any(a.op != "load" for a in e.args):
            return None
        i, r = self.fold.rank, self.fold.aligned[0]
        statements = {y.target: y for y in self.fold.einsums}
        found = [statements.get(a.name) for a in e.args]
        first, second = found
        if (
            first is None
            or second is None
            or first.map != second.map
            or first.map.op != "load"
            or first.over != (r,)
            or second.over != (r,)
        ):
            return None
        here, there = (ex.at(x.target, x.ranks) for x in (first, second))
        earlier = [call(op, ex.index(r), ex.index(i)) for op in ("<=", "<")]
        same = e.args[0] == here and e.args[1] == ex.rename(there, {i: ex.index(r)})
        return (first, second) if same and first.mask in earlier and second.mask == earlier[0] else None

    def _hand_between(self, sums: tuple[Einsum, Einsum], value: Expr, space: set[str], mask: Expr | None) -> None:
        """Hands the adjoint of a sum over ``i_2 < i_3 <= i`` to its summands."""
        i, (r, *more) = self.fold.rank, self.fold.aligned
        if not more:
            more = [fresh(f"{i}_3", self.taken)]
            at = next(n for n, x in enumerate(self.cascade.ranks) if x.name == r) + 1
            own = replace(self.cascade.rank(r), name=more[0])
            fold = replace(self.fold, aligned=(r, more[0]))
            ranks = (*self.cascade.ranks[:at], own, *self.cascade.ranks[at:])
            self.cascade = Blocked.of(replace(self.cascade, ranks=ranks), fold)
            self.order = [x.name for x in ranks]
        middle, (upper, _) = more[0], sums
        features = space & (ex.indices(upper.map) - set(self.cascade.over) - {r})
        assert upper.mask is not None, "a prefix sum has a condition"
        if mask is not None:
            value = self._named("d_moves", space, None, (), value, mask)
        for rank in sorted(space - {i, r} - features, key=self.order.index):
            value = self._named("d_moves", space - {rank}, "sum", (rank,), value, None)
        below = ex.rename(upper.mask, {r: ex.index(middle)})
        passed = self._named("d_passed", {middle, r, *features}, "sum", (i,), value, below)
        above = call("<", ex.index(r), ex.index(middle))
        share = self._named("d_between", {middle, *features}, "sum", (r,), passed, above)
        self._hand(ex.rename(upper.map, {r: ex.index(middle)}), share, {middle, *features}, None)

    def _hand(self, read: Expr, value: Expr, space: set[str], mask: Expr | None) -> None:
        """Adds ``value``, summed over what the read has not, to the adjoint of what is read."""
        ambient = set(self.cascade.over)
        names = {y.target: y.ranks for y in self.fold.body}
        if read.name not in names:
            plain = spread(self.cascade, read, space, self.taken)
            self.cascade, self.order = plain.cascade, [r.name for r in plain.cascade.ranks]
            read, value = replace(read, args=plain.args), ex.product(value, *plain.places)
        kept = ex.indices(read) - ambient
        base = f"d_{read.name}_part"
        for rank in [r for r in self.order if r in space - kept - ambient]:
            left = (ex.indices(value) | ex.indices(mask) | kept) - ambient - {rank}
            if rank not in ex.indices(value) | ex.indices(mask):
                value = call("*", value, call("float", ex.size(self.cascade.rank(rank).size)))
                continue
            value, mask = self._named(base, left, "sum", (rank,), value, mask), None
        if mask is not None:
            value = self._named(base, (ex.indices(value) | ex.indices(mask)) - ambient, None, (), value, mask)
        if read.name not in names:
            self.gradients.setdefault((read.name, read.args), []).append(value)
            return
        ranks = names[read.name]
        if not all(a.op == "index" for a in read.args):
            raise SpecError(f"the gradient through the shifted read of {read.name} is not available", read.loc)
        value = self._named(base, ex.indices(value) - ambient, None, (), value, None) if value.op != "load" else value
        back = {a.name: ex.index(r) for a, r in zip(read.args, ranks, strict=True)}
        self.parts.setdefault(read.name, []).append(ex.rename(value, back))

    # -- outputs -----------------------------------------------------------------------------------------------------------------

    def _outputs(self, states: Sequence[State], carried: dict[str, str]) -> tuple[list[str], tuple[Gradient, ...], list[State]]:
        """Gradients along the scan are statements, those without its rank are summed in states, those of initial values read the last."""
        i, (r, *_rest) = self.fold.rank, (*self.fold.aligned, "")
        outs: list[str] = []
        gradients: list[Gradient] = []
        sums: list[State] = []
        merged: dict[tuple[str, tuple[Expr, ...]], Expr] = {}
        for (name, args), values in self.gradients.items():
            here = {r: ex.index(i)}
            key = (name, tuple(ex.rename(a, here) for a in args))
            for value in values:
                moved = ex.rename(value, here)
                merged[key] = call("+", merged[key], moved) if key in merged else moved
        for (name, args), value in merged.items():
            ranks = tuple(x for x in self.order if x in (ex.indices(value) | _of(args)) - set(self.cascade.over))
            if i in ranks:
                out = fresh(f"d_{name}", self.taken) if adjoint(name) in self.taken else fresh(adjoint(name), self.taken)
                self.body.append(Einsum(out, ranks, None, (), value))
            else:
                out = fresh(f"d_{name}", self.taken)
                sums.append(State(out, ranks, "set", call("+", ex.at(out, ranks), value)))
            outs.append(out)
            gradients.append(Gradient(name, args, out, (*self.cascade.over, *ranks)))
        for y in states:
            for read in dict.fromkeys(e for e in ex.walk(y.init or ex.ZERO) if e.op == "load" and e.name in self.wanted):
                slope = derivative(y.init or ex.ZERO, read)
                if not ex.is_const(slope, 1):
                    raise SpecError(f"the gradient of the initial value of {y.target} needs it to be an input", y.loc)
                outs.append(carried[y.target])
                gradients.append(Gradient(read.name, read.args, carried[y.target], (*self.cascade.over, *y.ranks)))
        return outs, tuple(gradients), sums

    def _assembled(
        self,
        states: Sequence[State],
        starts: dict[str, str],
        carried: dict[str, str],
        updates: list[Expr | None],
        count: Rank,
        outs: list[str],
        sums: list[State],
    ) -> Blocked:
        c, fold = self.cascade, self.fold
        held = {y.target: ex.load(starts[y.target], *map(ex.index, (*c.over, count.name, *y.ranks))) for y in states}

        def start(e: Expr) -> Expr | None:
            return held.get(e.name) if e.op == "load" else None

        forward = fold.einsums
        body = [replace(y, map=ex.substitute(y.map, start)) for y in (*forward, *self.body)]
        sequence = []
        for y, new in zip(states, updates, strict=True):
            given = ex.at(f"{adjoint(y.target)}_last", (*c.over, *y.ranks)) if y.target in c.outs else None
            value = ex.substitute(new, start) if new is not None else ex.const(0.0)
            sequence.append(State(carried[y.target], y.ranks, "set", value, init=given))
        sums = [replace(y, map=ex.substitute(y.map, start)) for y in sums]
        sizes = {r.name: ex.size(r.size) for r in (*c.ranks, count)}
        inputs = list(c.inputs)
        ranks_of = {y.target: y.ranks for y in fold.body}
        for name in c.outs:
            last = f"{adjoint(name)}_last" if name in starts else adjoint(name)
            inputs.append(Tensor(last, tuple(sizes[r] for r in (*c.over, *ranks_of[name]))))
        inputs += [Tensor(starts[y.target], tuple(sizes[r] for r in (*c.over, count.name, *y.ranks))) for y in states]
        whole = replace(fold, body=(*body, *sequence, *sums), count=count.name, reverse=True)
        named = replace(
            c,
            name=f"{c.name}_backward",
            ranks=(*c.ranks, count),
            inputs=tuple(inputs),
            outs=tuple(dict.fromkeys(outs)),
        )
        out = prune(Blocked.of(named, whole))
        used = {n for y in out.fold.body for e in y.expressions for n in ex.reads(e)}
        return replace(out, inputs=tuple(t for t in out.inputs if t.param or t.name in used))


def _of(args: tuple[Expr, ...]) -> set[str]:
    return set().union(*map(ex.indices, args)) if args else set()
