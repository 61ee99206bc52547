"""`Body`: the C++ text of a scan's operations under construction: its lines, and where values are.

A value is a number with a name, a block in a buffer of the thread, or an expression that is written out where it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from einfuse.codegen.cpu.functions import FORMS
from einfuse.codegen.plan import Const, Coordinate, Load, Map, Value
from einfuse.codegen.plan.scan import Op, Relabel, ScanPlan
from einfuse.codegen.scan.cpu.forms import TYPES, identifier, number
from einfuse.codegen.scan.cpu.layout import Layout
from einfuse.ir.rewrite import fresh

Index = Mapping[str, str]
"""The coordinates of a point in its block, as texts by rank."""


@dataclass(slots=True)
class Body:
    """``kept`` values lie in buffers, as several readers need them, or products do."""

    plan: ScanPlan
    layout: Layout
    kept: frozenset[str]
    lines: list[str] = field(default_factory=list)
    indent: int = 3
    ops: dict[str, Op] = field(default_factory=dict)  # values that are computed where they are read
    places: dict[str, str] = field(default_factory=dict)  # numbers and buffers by value
    buffers: list[tuple[str, int]] = field(default_factory=list)
    turned: dict[str, str] = field(default_factory=dict)  # transposed copies
    taken: set[str] = field(default_factory=set)

    def line(self, text: str) -> None:
        self.lines.append("  " * self.indent + text)

    def loops(self, dims: tuple[str, ...], statement: str) -> None:
        """The statement at every point of ``dims``, the last one innermost and vectorised."""
        for k, r in enumerate(dims):
            if k == len(dims) - 1:
                self.lines.append("#pragma omp simd")
            self.line("  " * k + self.loop(r))
        self.line("  " * len(dims) + statement)

    def loop(self, rank: str) -> str:
        """The head of the loop along a rank."""
        x = f"x_{identifier(rank)}"
        return f"for (long {x} = 0; {x} < {self.layout.bound(rank)}; ++{x})"

    # -- places ------------------------------------------------------------------------------------------------------------------

    def fresh(self, name: str) -> str:
        return fresh(identifier(name), self.taken)

    def buffer(self, v: Value) -> str:
        name = self.fresh(f"v_{v.name}")
        self.buffers.append((name, self.layout.volume(v)))
        return name

    def local(self, v: Value, text: str) -> None:
        """The value as a number with a name."""
        name = self.fresh(f"c_{v.name}")
        self.line(f"const {TYPES[v.dtype]} {name} = {text};")
        self.places[v.name] = name

    def keep(self, v: Value) -> None:
        """The value in a buffer."""
        text = self.at(v, own(v.dims))
        self.places[v.name] = self.buffer(v)
        self.loops(v.dims, f"{self.element(v)} = {text};")

    def element(self, v: Value, index: Index | None = None) -> str:
        """The element of a buffer at a point, that of the loops by default."""
        index = index or own(v.dims)
        terms = [index[r] if s == 1 else f"{index[r]} * {s}" for r, s in self.layout.strides(v.dims).items()]
        return f"{self.places[v.name]}[{' + '.join(reversed(terms)) or 0}]"

    # -- values where they are read ----------------------------------------------------------------------------------------------

    def at(self, v: Value, index: Index) -> str:
        """The value at a point."""
        if v.name in self.places:
            return self.element(v, index) if v.dims or self.places[v.name].startswith("v_") else self.places[v.name]
        op = self.ops[v.name]
        match op:
            case Const(value=value):
                return number(value)
            case Coordinate(rank=rank):
                return self.coordinate(rank, index)
            case Relabel(arg=arg, moved=(old, new)):
                return self.at(arg, {**index, old: index[new]})
            case Load():
                return self.loaded(op, index)
            case Map(out=out, fn=fn, args=args):
                return FORMS[fn].number.format(*(self.at(a, index) for a in args), c=f"({TYPES[out.dtype]})")
        raise AssertionError(f"{v.name} is not there yet")

    def coordinate(self, rank: str, index: Index) -> str:
        if rank in (self.plan.count, "<part>"):
            return "part" if rank == "<part>" else "block"
        if rank == self.plan.shared and self.plan.parts > 1:
            return f"(first + {index[rank]})"
        return f"(lo + {index[rank]})" if rank in self.plan.moving else index.get(rank, f"x_{identifier(rank)}")

    def address(self, tensor: str, where: tuple[Value, ...], index: Index, clamp: tuple[int, ...] = ()) -> str:
        terms, name = [], identifier(tensor)
        for n, v in enumerate(where):
            at = self.at(v, index)
            terms.append(f"{f'inside({at}, {name}_n{n})' if n in clamp else at} * {name}_s{n}")
        return f"{name}[{' + '.join(terms) or 0}]"

    def loaded(self, op: Load, index: Index) -> str:
        return f"({TYPES[op.out.dtype]})widen({self.address(op.tensor, op.index, index, op.clamp)})"


def own(dims: tuple[str, ...]) -> dict[str, str]:
    """The point that the loops over ``dims`` are at."""
    return {r: f"x_{identifier(r)}" for r in dims}
