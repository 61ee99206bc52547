"""Attentions of drawn statements: each reads inputs and what earlier ones made, at its own coordinates or at others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

from einfuse.testing.specs import words_of

_HEAD = """attention drawn over b, h {
  rank i: query; rank j: key; rank w: key = (Nk + 1) // 2; rank n: feature = 3; rank d, e: feature
"""
_INPUTS = {
    # how it is declared, and its ranks but for b and h
    "q": ("q[b, h, i, d]", "id"),
    "k": ("k[b, h // group, j, d]", "jd"),
    "v": ("v[b, h // group, j, e]", "je"),
    "bias": ("bias[b, h, i, j]", "ij"),
    "row": ("row[h, i]", "i"),
    "column": ("column[b, j]", "j"),
    "tau": ("tau[h]", ""),
    "c": ("c[b, h // group, w, d]", "wd"),
    "low": ("low[h, w]", "w"),
    "u": ("u[h, n, d]", "nd"),
    "gate": ("gate[b, h, i, n]", "in"),
    "kb": ("kb[b, j, n]", "jn"),
}
_ORDER = "nijwde"
_SEQUENCES = {"i": "Nq", "j": "Nk", "w": "(Nk + 1) // 2"}
_FUNCTIONS = (
    "{}",
    "0.5 * ({})",
    "tanh({})",
    "sigmoid({})",
    "relu({})",
    "abs({})",
    "({})^2",
    "sin({})",
    "softplus({})",
    "exp(min({}, 3))",
)
_OF_TWO = ("({}) + {}", "({}) - {}", "({}) * {}", "({}) / (1 + abs({}))", "max({}, {})", "min({}, {})")
_CONDITIONS = {
    # by the ranks that they are about
    "ij": ("j <= i", "i - j < 4", "abs(i - j) <= 2", "(i - j) % 3 == 0", "j < i", "i // 4 == j // 4"),
    "iw": ("w <= i", "w * 2 <= i", "w * 2 + 1 <= i"),
    "j": ("j < 4", "j > 0", "j % 2 == 0", "pad[b, j]"),
    "w": ("w < 3", "w > 0"),
    "i": ("i > 0",),
    "n": ("n < 2",),
}
_ELSEWHERE = {
    # where a rank is read from the point of another one
    "ii": ("max(i - 1, 0)", "min(i + 1, Nq - 1)", "i // 2", "i // 2 * 2"),
    "jj": ("max(j - 1, 0)", "min(j + 1, Nk - 1)", "j // 2", "max(j - 2, 0)"),
    "ww": ("max(w - 1, 0)", "w // 2"),
    "wj": ("j // 2",),
    "jw": ("w * 2", "min(w * 2 + 1, Nk - 1)"),
    "wi": ("min(i // 2, (Nk + 1) // 2 - 1)",),
}


@st.composite
def programs(draw: st.DrawFn) -> str:
    """A whole attention of one to seven drawn statements and the sum over keys that reads the last scores: products of rows, functions,
    conditions, sums, means and maxima over queries, keys, blocks of keys and features, read at their own points and at others."""
    return _Program(draw).text()


@dataclass
class _Program:
    draw: st.DrawFn
    lines: list[str] = field(default_factory=list)
    made: dict[str, str] = field(default_factory=dict)
    """The ranks of every statement so far."""

    def text(self) -> str:
        self.product()
        steps = (self.pointwise, self.product, self.reduced, self.summed, self.keys)
        for step in self.draw(st.lists(st.sampled_from(steps), max_size=6)):
            step()
        scores = [n for n, ranks in self.made.items() if ranks == "ij"] or [self.add("ij", "sum[d](q * k)")]
        s = scores[-1]
        weights = self.one(
            (f"softmax[j]({s})", f"sigmoid({s})", s, f"{s} / (1 + sum[j](abs({s})))", f"exp(min({s}, 3) - max[j](min({s}, 3)))")
        )
        rows = [n for n, ranks in self.made.items() if ranks in ("i", "ie")]
        late = self.one(("", *(f" + {n}" for n in rows), *(f" * (1 + tanh({n}))" for n in rows)))
        self.lines.append(f"  o[i, e] = sum[j]({weights} * v{self.one(('', ' where j % 2 == 0'))}){late}")
        shown = [n for n, ranks in self.made.items() if len(_SEQUENCES.keys() & {*ranks}) < 3]
        outs = self.one(("o", *(f"o, {n}" for n in shown)))
        body = "\n".join(self.lines)
        read = words_of(body) | {"q", "k", "v"}
        inputs = [f"  in {declared}" for name, (declared, _) in _INPUTS.items() if name in read]
        inputs += ["  in pad[b, j]: bool"] if "pad" in read else []
        return _HEAD + "\n".join([*inputs, body, f"  out {outs}"]) + "\n}\n"

    # -- statements --------------------------------------------------------------------------------------------------------

    def product(self) -> None:
        """Scores: rows of two values that have features."""
        rows = self.pick(lambda ranks: "d" in ranks and "i" in ranks)
        others = self.pick(lambda ranks: len(ranks) == 2 and "d" in ranks and "i" not in ranks)
        ranks = _union(self.ranks(rows), self.ranks(others)).replace("d", "")
        other = self.one(("k", "k[b, h // group, max(j - 1, 0), d]")) if others == "k" else others
        if len(ranks) <= 3:
            scale = self.one(("", " / sqrt(D)", " * 0.3"))
            both = self.one((f"{rows} * {other}",) * 4 + (f"min({rows}, {other})", f"abs({rows} - {other})"))
            self.add(ranks, f"sum[d]({both}){scale}", self.condition(ranks))

    def pointwise(self) -> None:
        """A function of values at a point."""
        name = self.pick(lambda ranks: not _SEQUENCES.keys().isdisjoint(ranks))
        ranks = self.ranks(name)
        if not {"d", "e"} & {*ranks} and len(ranks) < 3:
            ranks = _union(ranks, self.one(("", "i", "j")))
        value = self.applied(name)
        for made in self.draw(st.lists(st.sampled_from(_OF_TWO), min_size=1, max_size=2)):
            value = made.format(value, self.applied(self.operand(ranks)))
        chosen = self.condition(ranks)
        if chosen and self.draw(st.booleans()):
            value, chosen = f"({value} if {chosen} else {self.operand(ranks)})", ""
        self.add(ranks, value, chosen)

    def reduced(self) -> None:
        """A sum, mean or largest value along a rank: of a row of its points, some of which a condition may leave out."""
        kind = self.one(("sum", "mean", "max", "min"))
        name = self.pick(lambda ranks: len(ranks) >= 2 and not {"d", "e"} & {*ranks})
        ranks = self.ranks(name)
        over = self.one(ranks)
        inner, where = self.applied(name), self.condition(ranks)
        found = f"[{over}]({inner}{where and f' where {where}'})"
        value = {  # of no points, a mean is no number and a largest value infinite
            "sum": f"sum{found}",
            "mean": f"sum{found} / max(count{found}, 1)",
            "max": f"max(max{found}, -9)",
            "min": f"min(min{found}, 9)",
        }[kind]
        self.add(ranks.replace(over, ""), self.one((value, f"tanh(0.3 * {value})")))

    def summed(self) -> None:
        """Rows of features, added up by weights."""
        name = self.pick(lambda ranks: ranks in ("ij", "iw"))
        over = self.ranks(name)[1]
        rows = self.one(("v", "k") if over == "j" else ("c",))
        weights = self.one((name, f"softmax[{over}]({name})", f"sigmoid({name})"))
        self.add("ie" if rows == "v" else "id", f"sum[{over}]({weights} * {rows})")

    def keys(self) -> None:
        """Rows of features, made of others."""
        name = self.pick(lambda ranks: len(ranks) == 2 and "d" in ranks and "n" not in ranks)
        ranks = self.ranks(name)
        if ranks == "jd" and self.draw(st.booleans()):
            self.add("wd", f"mean[j]({name} where j // 2 == w)")
        elif name in self.made and self.draw(st.booleans()):
            self.add(ranks, f"{name} + 0.5 * {name}[{self.one(_ELSEWHERE[ranks[0] * 2])}, d]")
        else:
            self.add(ranks, self.one((f"tanh({name})", f"{name} / sqrt(sum[d]({name} * {name}) + 0.1)")))

    # -- their parts -------------------------------------------------------------------------------------------------------

    def add(self, ranks: str, value: str, where: str = "") -> str:
        name = f"t{len(self.made) + 1}"
        at = f"[{', '.join(ranks)}]" if ranks else ""
        self.lines.append(f"  {name}{at} = {value}" + (f" where {where}" if where else ""))
        self.made[name] = ranks
        return name

    def one(self, options: Sequence[str]) -> str:
        return self.draw(st.sampled_from(options))

    def ranks(self, name: str) -> str:
        return self.made[name] if name in self.made else _INPUTS[name][1]

    def pick(self, fits: Callable[[str], bool]) -> str:
        """The name of a value: what was made last comes first."""
        known = [n for n in reversed(self.made) if fits(self.made[n])][:5]
        return self.one([*known, *(n for n, (_, ranks) in _INPUTS.items() if fits(ranks))])

    def applied(self, value: str) -> str:
        return self.one(_FUNCTIONS).format(value)

    def condition(self, ranks: Collection[str]) -> str:
        """A condition about some of the ranks, or none."""
        return self.one(["", *(c for about, cs in _CONDITIONS.items() if {*about} <= {*ranks} for c in cs)])

    def operand(self, ranks: str) -> str:
        """A value that has no other ranks, here or elsewhere, or a coordinate."""
        here = [n for n, own in (*self.made.items(), *((n, r) for n, (_, r) in _INPUTS.items())) if {*own} <= {*ranks}]
        there = [f"{n}[{at}]" for n, own in self.made.items() if (at := self.elsewhere(own, ranks))]
        return self.one([*here, *there, *(f"0.1 * {r}" for r in ranks if r in "ijwn")])

    def elsewhere(self, own: str, ranks: str) -> str:
        """Points of another value from points of these ranks; none where some rank of it cannot be told from them."""
        at = []
        for r in own:
            options = [r] if r in ranks else []
            options += [x for y in ranks for x in _ELSEWHERE.get(r + y, ())]
            if not options:
                return ""
            at.append(self.one(options))
        return ", ".join(at)


def _union(a: str, b: str) -> str:
    return "".join(r for r in _ORDER if r in a or r in b)
