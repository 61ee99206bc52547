"""The passes of a cascade over one rank: which reads of a statistic are deferred, carried, or force another pass.

A reduction that reads an earlier statistic of the same rank can share its pass where algebra can correct for the statistic's moving;
`ir.separability` decides that by rank and constructs the correction. Nothing is changed here: `passes.online_fuse` acts on the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from einfuse.ir import expr as ex
from einfuse.ir import separability as sep
from einfuse.ir.errors import SpecError
from einfuse.ir.nodes import Cascade, Einsum, Expr, Flat, State

MAX_PASSES = 100
"""Each is a loop of the kernel, and every one is derived, printed and compiled."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How one read of a statistic by a reduction was resolved, for `einfuse passes`."""

    statistic: str
    reader: str
    how: Literal["carry", "defer", "tower", "cut"]
    detail: str
    proof: Literal["proven", "sampled", "exact"]


@dataclass(frozen=True, slots=True)
class Accumulator:
    """``post * red over j of map``; ``carry`` re-bases it; ``tower`` holds the further derivatives."""

    map: Expr
    post: Expr = ex.ONE
    carry: tuple[tuple[Literal["*", "+"], Expr], ...] = ()
    tower: tuple[Expr, tuple[Expr, ...]] | None = None


@dataclass(slots=True)
class Derivation:
    """The pass of every statistic, its accumulators, and the decisions that led there."""

    rank: str
    level: dict[str, int] = field(default_factory=dict)
    accumulators: dict[str, tuple[Accumulator, ...]] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)

    @property
    def passes(self) -> int:
        return max(self.level.values(), default=0)


def derive(cascade: Cascade, rank: str) -> Derivation:
    """Decides the passes over ``rank`` of a canonical cascade; changes nothing."""
    return _Deriver(cascade, rank).run()


def reduces(x: Einsum, rank: str) -> bool:
    return x.red is not None and rank in x.over


def count_passes(cascade: Flat, rank: str) -> int:
    """The passes over ``rank`` of a cascade as it stands (FuseMax): a statement is one level above the reductions it reads."""
    level: dict[str, int] = {}
    most = 0
    for x in cascade.body:
        reads = ex.reads(x.map) | ex.reads(x.mask)
        level[x.target] = max((level.get(n, 0) for n in reads), default=0) + (1 if reduces(x, rank) else 0)
        if rank in (*x.ranks, *x.over):
            most = max(most, level[x.target])
    return most


class _Deriver:
    def __init__(self, cascade: Cascade, rank: str) -> None:
        self.rank, self.out = rank, Derivation(rank)
        self.statements: list[Einsum] = []  # reductions over the rank, and row scalars computed from them that they read
        einsums = cascade.einsums
        needed = {n for x in einsums if reduces(x, rank) for n in ex.reads(x.map)}
        for x in reversed(einsums):  # a row scalar is a let only if a later reduction reads it
            if not reduces(x, rank) and x.target in needed:
                needed |= ex.reads(x.map)
        self.behind: dict[str, set[str]] = {}
        """For every other statement, which algebra cannot look into: the statistics that it is made from."""
        known: set[str] = set()
        for y in cascade.body:
            parts = y.lines
            read = {n for part in parts for n in ex.reads(part.map)} - {part.target for part in parts}
            found = (read & known).union(*(self.behind.get(n, set()) for n in read))
            if isinstance(y, Einsum) and (reduces(y, rank) or self._let(y, read, known, needed)):
                self.statements.append(y)
                known.add(y.target)
            elif found:
                self.behind |= dict.fromkeys((p.target for p in parts if isinstance(p, State) or p is y), found)
        self.statistic = {ex.at(x.target, x.ranks): x.target for x in self.statements}
        self.by_name = {x.target: x for x in self.statements}
        self.column = _column_names(einsums, rank)
        self.atoms = sep.Atoms(self.statistic)
        self.sampler = sep.Sampler(set())
        self.positive: set[str] = set()  # the statistics that are known to be 0 or more

    def _let(self, x: Einsum, read: set[str], known: set[str], needed: set[str]) -> bool:
        own = not x.red and self.rank not in x.ranks and x.target in needed
        return own and bool(read & known) and not read & self.behind.keys()

    def run(self) -> Derivation:
        for x in self.statements:
            if self.out.passes > MAX_PASSES:
                raise SpecError(
                    f"this takes more than {MAX_PASSES} passes over {self.rank}",
                    x.loc,
                    "repeat fewer steps: each one that needs the sums of the one before is a pass, and a loop of the kernel",
                )
            if not x.red:
                self.out.level[x.target] = max((self.out.level[n] for n in ex.reads(x.map) if n in self.out.level), default=1)
                self.out.accumulators[x.target] = ()
            else:
                self._reduction(x)
            if sep.nonnegative(x.map, frozenset(self.positive)):
                self.positive.add(x.target)
        return self.out

    # -- one reduction -------------------------------------------------------------------------------------------------

    def _reduction(self, x: Einsum) -> None:
        x = replace(x, map=self._independent(x.map))
        inner, post = self._without_free_factors(x) if x.reducer.sums else (x.map, ex.ONE)
        if post != ex.ONE:
            for name in sorted(self._statistics_in(post)):
                self.out.decisions.append(Decision(name, x.target, "defer", _short(post), "exact"))
        forced: set[str] = set()
        while True:
            mark = len(self.out.decisions)
            try:
                level, accumulators = self._plan(x, inner, post, forced)
                break
            except _Cut as cut:  # a dependence that algebra could not separate after all
                del self.out.decisions[mark:]
                forced.add(cut.statistic)
        self.out.level[x.target], self.out.accumulators[x.target] = level, accumulators

    def _independent(self, e: Expr) -> Expr:
        """``e`` with a row scalar of maxima written out where ``e`` also reads what it is made of: two names for one dependence would
        look like two."""
        while True:
            used = {read: self.statistic[read] for read in ex.walk(e) if read in self.statistic}
            made = {read: self._made_of(name) for read, name in used.items()}
            for read, name in used.items():
                others = set().union(*(m | {used[r]} for r, m in made.items() if r != read))
                if made[read] & others and all(self.by_name[n].reducer.extreme for n in made[read]):
                    e = ex.substitute(e, lambda y, read=read, name=name: self.by_name[name].map if y == read else None)  # type: ignore[misc]
                    break
            else:
                return e

    def _made_of(self, name: str) -> set[str]:
        """The reductions that a row scalar is computed from; none for a reduction itself."""
        x = self.by_name[name]
        if x.red:
            return set()
        parts = self._statistics_in(x.map)
        return {n for n in parts if self.by_name[n].red}.union(*(self._made_of(n) for n in parts))

    def _without_free_factors(self, x: Einsum) -> tuple[Expr, Expr]:
        """Splits ``map`` into what depends on the rank and what leaves the sum. Pure order statistics stay: they bound the sum."""
        over, under = self._opened(x.map)
        free = {True: [f for f in over if self._leaves(f)], False: [f for f in under if self._leaves(f)]}
        inner = ex.product(*(f for f in over if f not in free[True]))
        below = [f for f in under if f not in free[False]]
        inner = ex.call("/", inner, ex.product(*below)) if below else inner
        post = ex.product(*free[True])
        return inner, ex.call("/", post, ex.product(*free[False])) if free[False] else post

    def _opened(self, e: Expr) -> tuple[list[Expr], list[Expr]]:
        """The factors of a numerator and of a denominator; what may leave the sum stands outside of choices between it and nothing."""
        over, under = list[Expr](), list[Expr]()
        parts, below = ex.quotient(e)
        for f in parts:
            if f.op != "select" or f.args[2] != ex.ZERO:
                over.append(f)
                continue
            inside = self._opened(f.args[1])
            stay = [[g for g in side if not self._leaves(g)] for side in inside]
            over += [g for g in inside[0] if g not in stay[0]]
            under += [g for g in inside[1] if g not in stay[1]]
            over.append(ex.call("select", f.args[0], ex.fraction(*stay), f.args[2]))
        return over, [*under, *below]

    def _leaves(self, factor: Expr) -> bool:
        if self._on_rank(factor):
            return False
        used = self._statistics_in(factor)
        return not used or any(self._deferrable(n) for n in used)

    def _on_rank(self, e: Expr) -> bool:
        return self.rank in ex.indices(e) or bool(ex.reads(e) & self.column)

    def _statistics_in(self, e: Expr) -> set[str]:
        return {self.statistic[x] for x in ex.walk(e) if x in self.statistic}

    def _plan(self, x: Einsum, inner: Expr, post: Expr, forced: set[str]) -> tuple[int, tuple[Accumulator, ...]]:
        deps = [n for n in self.by_name if n in self._statistics_in(inner)]
        shifted = {e.name for e in ex.walk(inner) if e.op == "load" and e.name in self.by_name and e not in self.statistic}
        shifted |= set().union(*(self.behind.get(n, set()) for n in ex.reads(x.map)))
        level = self.out.level
        lowest = max(
            [level[n] for n in (*deps, *self._statistics_in(post))] + [level[n] + 1 for n in shifted | self._asked(x)] + [1]
        )
        deps = [d for d in deps if level[d] == lowest]  # the others are complete: constants of the row
        self._start({ex.at(d, self.by_name[d].ranks): d for d in deps})
        f = None
        if deps:  # where algebra cannot look, every statistic that is read must be complete
            try:
                f = self._seen(inner) if sep.within_reach(inner) else None
            except KeyError:  # a function without algebra
                f = None
            forced = forced if f is not None else {*forced, *deps}
        ranks = {d: self._rank(f, d) for d in deps} if f is not None else {}
        additive = {d for d in deps if f is not None and x.reducer.extreme and self._rank(sep.exponential(f), d) == 1}
        other_space = {d for d in deps if self._spaces(d) - {x.mask}}
        cut = {d for d in deps if d in forced | other_space or not self._separable(x, d, f, ranks, additive)}
        if cut:
            lowest = max(lowest, *(level[d] + 1 for d in cut))
        for d in sorted(cut):
            self.out.decisions.append(
                Decision(d, x.target, "cut", f"no correction of finite rank moves {x.target} with {d}", "exact")
            )
        live = [d for d in deps if level[d] == lowest]
        accumulators = [(f, Accumulator(inner, post))]
        for d in sorted(live, key=lambda d: self._turn(f, d)):
            accumulators = [new for old in accumulators for new in self._resolve(x, d, *old, additive)]
        return lowest, tuple(a for _, a in accumulators)

    def _asked(self, x: Einsum) -> set[str]:
        """The statistics that the condition of a reduction needs: which points exist must be known before the fold."""
        reads = ex.reads(x.mask)
        return (reads & self.by_name.keys()).union(*(self.behind.get(n, set()) for n in reads))

    def _start(self, statistics: dict[Expr, str]) -> None:
        """Symbols and samples for one reduction."""
        self.atoms = sep.Atoms(statistics, frozenset(self.positive))
        self.sampler = sep.Sampler({self.atoms.symbol(read) for read, name in statistics.items() if name in self.positive})

    def _seen(self, e: Expr) -> Any:
        """``e`` over symbols, with what is known of them told to the sampler."""
        f = self.atoms.to_sympy(e)
        for part, symbol in self.atoms.symbols.items():
            if part not in self.atoms.statistics:
                if symbol.is_nonnegative:
                    self.sampler.positive.add(symbol)
                if not self._on_rank(part):
                    self.sampler.row.add(symbol)
        return f

    def _turn(self, f: Any, d: str) -> int:
        """When a dependence is dealt with: what leaves the sum first (it may split it), then carries, then towers (they fix the map)."""
        return 2 if self._polynomial(f, d) else 0 if self._deferrable(d) else 1

    def _deferrable(self, name: str) -> bool:
        """Does a sum go into this statistic? Then its factor waits for the end; order statistics exist for range alone."""
        reductions = self._made_of(name) or {name}
        return any(not self.by_name[n].reducer.extreme for n in reductions)

    def _spaces(self, name: str) -> set[Expr | None]:
        """The points that a statistic is made of: its own, or for a row scalar those of the statistics that it reads."""
        x = self.by_name[name]
        if x.red:
            return {x.mask}
        return {space for n in ex.reads(x.map) & self.by_name.keys() for space in self._spaces(n)}

    def _separable(self, x: Einsum, d: str, f: Any, ranks: dict[str, int], additive: set[str]) -> bool:
        if x.reducer.extreme:
            return d in additive or (ranks.get(d, 99) == 1 and ex.at(d, self.by_name[d].ranks) in self._positive_factor(x))
        return x.reducer.sums and (ranks.get(d, 99) <= sep.MAX_RANK or self._polynomial(f, d))

    def _positive_factor(self, x: Einsum) -> set[Expr]:
        """Statistics that scale the map of a max by a provably positive factor (a max of products carries only those)."""
        over, under = ex.quotient(x.map)
        return {f for f in (*over, *under) if f in self.statistic and self.atoms.symbol(f) in self.sampler.positive} | {
            s for f in (*over, *under) if sep.nonnegative(f) for s in ex.walk(f) if s in self.statistic
        }

    def _polynomial(self, f: Any, d: str) -> bool:
        return f is not None and not self.by_name[d].red and sep.tower(self.sampler, f, self._symbol(d)) is not None

    def _symbol(self, name: str) -> Any:
        return self.atoms.symbol(ex.at(name, self.by_name[name].ranks))

    def _rank(self, f: Any, d: str) -> int:
        return self.sampler.rank(f, self._symbol(d))

    # -- one dependence --------------------------------------------------------------------------------------------------

    def _resolve(self, x: Einsum, name: str, f: Any, acc: Accumulator, additive: set[str]) -> Iterable[tuple[Any, Accumulator]]:
        """The accumulators that replace ``acc`` once its dependence on statistic ``name`` is dealt with."""
        d = self._symbol(name)
        if f is None or d not in f.free_symbols:
            return [(f, acc)]
        if acc.tower is not None:
            raise _Cut(name)  # the derivatives were taken of a map that still held this statistic
        try:
            if name in additive:
                return [self._carry(x, name, f, acc, "+")]
            red = self.by_name[name].red
            if red is None and (derivatives := sep.tower(self.sampler, f, d)):
                self.out.decisions.append(Decision(name, x.target, "tower", f"{len(derivatives)} derivatives", "proven"))
                maps = tuple(self.atoms.to_expr(g) for g in derivatives[1:])
                return [(f, replace(acc, tower=(ex.at(name, self.by_name[name].ranks), maps)))]
            terms = sep.rank_one_terms(self.sampler, f, d)
            parts = [(g, acc if len(terms) == 1 else replace(acc, map=self.atoms.to_expr(g))) for g in terms]
            return [self._moved(x, name, g, part) if d in g.free_symbols else (g, part) for g, part in parts]
        except sep.NotSeparable:
            raise _Cut(name) from None

    def _moved(self, x: Einsum, name: str, g: Any, acc: Accumulator) -> tuple[Any, Accumulator]:
        """A quotient re-bases only where its divisor cannot be 0: the factor ``m`` of a sum waits for the end, ``exp(-m)`` is carried."""
        waits = self._deferrable(name) or self.sampler.vanishes(g, self._symbol(name))
        return self._defer(x, name, g, acc) if waits else self._carry(x, name, g, acc)

    def _carry(self, x: Einsum, name: str, g: Any, acc: Accumulator, how: Literal["*", "+"] = "*") -> tuple[Any, Accumulator]:
        """The correction of the partial sum when the statistic moves: a quotient (or difference) free of the element."""
        d = self._symbol(name)
        new = sep.prime(d)
        if d in self.sampler.positive:
            self.sampler.positive.add(new)
        for keep in self._kept(g, d):
            if how == "+":
                factor = sep.tidy(g.subs(d, new) - g)
            else:
                h = self.sampler.at_point(g, d, keep)
                factor = sep.tidy(h.subs(d, new) / h)
            moved = g + factor if how == "+" else g * factor
            if not factor.free_symbols - {d, new} - self.sampler.row and self.sampler.holds(g.subs(d, new), moved):
                break
        else:
            raise sep.NotSeparable(f"the correction of {x.target} for {name} failed its numeric check")
        proof: Literal["proven", "sampled"] = "proven" if sep.proven(g.subs(d, new), moved) else "sampled"
        read = ex.at(name, self.by_name[name].ranks)
        correction = self.atoms.to_expr(factor, {new: replace(read, op="new")})
        self.out.decisions.append(Decision(name, x.target, "carry", _short(correction), proof))
        return g, replace(acc, carry=(*acc.carry, (how, correction)))

    def _kept(self, g: Any, d: Any) -> tuple[set[Any], ...]:
        """Which symbols of the row may stand in a factor of ``d``: none if that suffices."""
        row = self.sampler.row & g.free_symbols - {d}
        return (set(), row) if row else (set(),)

    def _defer(self, x: Einsum, name: str, g: Any, acc: Accumulator) -> tuple[Any, Accumulator]:
        """The factor of the statistic that leaves the sum, applied once when both are complete."""
        d = self._symbol(name)
        for keep in self._kept(g, d):
            h = self.sampler.at_point(g, d, keep)
            inner, post = sep.tidy(g.subs(d, 1)), sep.tidy(h / h.subs(d, 1))
            if self.sampler.holds(g, inner * post):
                break
        else:
            raise sep.NotSeparable(f"the factor of {x.target} in {name} failed its numeric check")
        proof: Literal["proven", "sampled"] = "proven" if sep.proven(g, inner * post) else "sampled"
        factor = self.atoms.to_expr(post)
        self.out.decisions.append(Decision(name, x.target, "defer", _short(factor), proof))
        return inner, replace(acc, map=self.atoms.to_expr(inner), post=ex.call("*", acc.post, factor))


class _Cut(Exception):  # noqa: N818  # control flow
    def __init__(self, statistic: str) -> None:
        self.statistic = statistic


def _column_names(einsums: Sequence[Einsum], rank: str) -> set[str]:
    """Statements that span the rank: reading one is depending on it, whatever the indices."""
    return {x.target for x in einsums if rank in x.ranks}


def _short(e: Expr) -> str:
    from einfuse.ir.text import show_expr

    return show_expr(e)
