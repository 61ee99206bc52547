"""What the kernels of a backward need of one row alone is made once, by a kernel before them, and read by all that walk pairs.

    columns   d_s[i, j] = p[i, j] * (d_p[i, j] / l[i] + d_l[i])          d_v[j, e] = sum[i] d_o[i, e] * p[i, j] / l[i]

    prepass   inverse[i] = 1 / l[i]
    columns   d_s[i, j] = p[i, j] * (d_p[i, j] * inverse[i] + d_l[i])    d_v[j, e] = sum[i] d_o[i, e] * p[i, j] * inverse[i]

Nothing of a row is divided, and no function that is dear is taken, again for each block or pair. For GPUs, where what belongs to the folded
rank is spread over so many registers that it costs half of what a pair does.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from einfuse.ir import expr as ex
from einfuse.ir.dear import is_dear
from einfuse.ir.nodes import Einsum, Expr, Flat
from einfuse.ir.passes.backward import Backward
from einfuse.ir.rewrite import fresh, reading, taken, with_used_ranks


def run(backward: Backward) -> Backward:
    """The backward with such values as outputs of its first cascade, which is a new one where it has none for rows; or the same."""
    steps = [(c, parts) for c, parts in backward.cascades if isinstance(c, Flat)]
    if len(steps) < len(backward.cascades):
        return backward  # of a scan
    names = {n for c, _ in steps for n in taken(c)}
    rows = steps.pop(0) if steps and steps[0][0].name.endswith("_prepass") and not steps[0][1] else None
    made = _Made({n for c, _ in steps for n in c.outs}, names)
    done = [(made.cascade(c), parts) for c, parts in steps]
    if not made.values:
        return backward
    first = _prepass(rows[0] if rows else None, [c for c, _ in steps], made.values)
    read = {t.name for c, _ in done for t in c.inputs}
    first = with_used_ranks(reading(first, {}, [n for n in first.outs if n in read], first.name))
    sequence = {r.name for r in first.ranks if r.is_sequence}
    if len({r for x in first.body if x.target in first.outs for r in x.ranks} & sequence) > 1:
        return backward  # rows of two ranks would be two kernels
    return replace(backward, cascades=((first, ()), *done))


@dataclass(slots=True)
class _Made:
    """Values of rows by the expression that they stand for; ``later`` are statements that the first kernel cannot read."""

    later: set[str]
    taken: set[str]
    values: dict[Expr, tuple[str, str]] = field(default_factory=dict)  # name and rank

    def cascade(self, c: Flat) -> Flat:
        """A cascade that reads them."""
        if c.places:
            return c
        pairs = _Pairs(self, c)
        body = tuple(pairs.statement(x) for x in c.body)
        known = dict(self.values.values())
        read = [n for n in known if any(n in ex.reads(x.map) for x in body)]
        if not read:
            return c
        stated = tuple(Einsum(n, (known[n],), None, (), ex.const(1.0)) for n in read)
        return with_used_ranks(reading(replace(c, body=stated + body), dict.fromkeys(read, c.over), c.outs, c.name))

    def value(self, e: Expr, rank: str, base: str) -> Expr:
        """The value that stands for ``e``, read at its own rank."""
        if e not in self.values:
            self.values[e] = (fresh(base, self.taken), rank)
        return ex.at(self.values[e][0], (rank,))


@dataclass(slots=True)
class _Pairs:
    """Rewrites the statements of one cascade that are over pairs."""

    made: _Made
    c: Flat
    sequences: set[str] = field(init=False)
    inputs: set[str] = field(init=False)
    rows: dict[str, Expr] = field(default_factory=dict)  # what statements of one row are made of, in inputs alone

    def __post_init__(self) -> None:
        self.sequences = {r.name for r in self.c.ranks if r.is_sequence} - set(self.c.over)
        self.inputs = {t.name for t in self.c.inputs if t.dtype == "float" and not t.param} - self.made.later
        for x in self.c.body:
            if x.red is None and x.mask is None and self.row(x.map) is not None and len(x.ranks) == 1:
                self.rows[x.target] = self.of_inputs(x.map)

    def of_inputs(self, e: Expr) -> Expr:
        """The expression without statements of rows: they are written out."""
        return ex.substitute(e, lambda y: self.rows.get(y.name) if y.op == "load" else None)

    def statement(self, x: Einsum) -> Einsum:
        if len({*x.ranks, *x.over} & self.sequences) < 2:
            return x
        return replace(x, map=self.rewritten(x.map))

    def row(self, e: Expr) -> str | None:
        """The one rank of rows that a float depends on beside the ambient ones, where it is made of what a first kernel can read."""
        e = self.of_inputs(e)
        free = ex.indices(e) - set(self.c.over)
        loads = [x for x in ex.walk(e) if x.op == "load"]
        plain = all(x.name in self.inputs and all(a.op == "index" for a in x.args) for x in loads)
        return next(iter(free)) if loads and plain and len(free) == 1 and free <= self.sequences else None

    def rewritten(self, e: Expr) -> Expr:
        if e.op == "/" and (rank := self.row(e.args[1])) is not None and self.row(e.args[0]) is None:
            inverse = self.made.value(ex.call("/", ex.const(1.0), self.of_inputs(e.args[1])), rank, "inverse")
            return ex.call("*", self.rewritten(e.args[0]), inverse)
        if is_dear(e) and (rank := self.row(e)) is not None:
            return self.made.value(self.of_inputs(e), rank, "row")
        return e if e.op in ex.LEAVES else replace(e, args=tuple(map(self.rewritten, e.args)))


def _prepass(first: Flat | None, steps: list[Flat], values: dict[Expr, tuple[str, str]]) -> Flat:
    """The first cascade with these values as outputs."""
    like = first or steps[0]
    body = first.body if first else ()
    own = {x.target: x for x in body}

    def stated(e: Expr) -> Expr | None:
        return ex.at(e.name, own[e.name].ranks) if e.op == "load" and e.name in own else None

    more = tuple(Einsum(n, (rank,), None, (), ex.substitute(e, stated)) for e, (n, rank) in values.items())
    inputs = {t.name: t for c in (like, *steps) for t in c.inputs if t.name not in own}
    ranks = {r.name: r for c in (like, *steps) for r in c.ranks}
    name = first.name if first else f"{like.name.rpartition('_')[0]}_prepass"
    outs = (*(first.outs if first else ()), *(n for n, _ in values.values()))
    return replace(like, name=name, inputs=tuple(inputs.values()), ranks=tuple(ranks.values()), body=body + more, outs=outs)
