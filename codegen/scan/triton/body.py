"""`Body`: the text of a scan's kernel under construction: its lines, and what each value is called.

Padding (features beyond their size, points of a short last block) holds no defined value: what sums over it asks for it `clean`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from einfuse.codegen.plan import Value
from einfuse.codegen.plan.scan import ScanPlan
from einfuse.codegen.scan.triton.layout import Layout
from einfuse.codegen.triton.body import STORAGE
from einfuse.codegen.triton.names import identifier
from einfuse.ir import DType, Scalar
from einfuse.ir.rewrite import fresh


@dataclass(slots=True)
class Body:
    """Prints into ``lines``; ``helpers`` are the functions the text calls, ``choices`` the values that are 0 or 1."""

    plan: ScanPlan
    layout: Layout
    lines: list[str] = field(default_factory=list)
    indent: int = 1
    names: dict[str, str] = field(default_factory=dict)
    literals: dict[str, Scalar] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    helpers: set[str] = field(default_factory=set)
    choices: set[str] = field(default_factory=set)

    def line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def define(self, v: Value) -> str:
        """A name for the value."""
        self.names[v.name] = fresh(f"v_{identifier(v.name)}", self.taken)
        return self.names[v.name]

    @property
    def real(self) -> str:
        return "tl.float64" if self.plan.compute == "f64" else "tl.float32"

    def type(self, dtype: DType) -> str:
        return {"float": self.real, "int": "tl.int32", "bool": "tl.int1"}[dtype]

    # -- values as text ----------------------------------------------------------------------------------------------------------

    def ref(self, v: Value) -> str:
        return literal(self.literals[v.name]) if v.name in self.literals else self.names[v.name]

    def view(self, v: Value, dims: tuple[str, ...]) -> str:
        """The value with an axis for each of ``dims``."""
        text = self.ref(v)
        if not v.dims or v.dims == dims:
            return text
        return f"{text}[{', '.join(':' if d in v.dims else 'None' for d in dims)}]"

    def whole(self, v: Value, dims: tuple[str, ...]) -> str:
        """The value at every point of ``dims``."""
        if v.dims == dims and v.name not in self.literals:
            return self.ref(v)
        return f"{self.zeros(dims)} + {self.view(v, dims)}"

    def zeros(self, dims: tuple[str, ...]) -> str:
        shape = ", ".join(str(self.layout.width(d)) for d in dims)
        return f"tl.zeros([{shape}], {self.real})" if dims else f"tl.full([], 0.0, {self.real})"

    def stored(self, text: str, storage: str) -> str:
        """A float in the type of a tensor."""
        if storage == "bf16":  # Triton's interpreter would cut it off
            self.helpers.add("_bf16")
            return f"_bf16({text})"
        return f"({text}).to({STORAGE[storage]})"

    # -- points that exist -------------------------------------------------------------------------------------------------------

    def lane(self, rank: str, dims: tuple[str, ...], what: str) -> str:
        """The coordinates of a rank (``at``), or whether they exist (``ok``), shaped for ``dims``."""
        text = f"{what}_{identifier(rank)}"
        return text if dims == (rank,) else f"{text}[{', '.join(':' if d == rank else 'None' for d in dims)}]"

    def inside(self, dims: tuple[str, ...], ranks: tuple[str, ...] | None = None) -> str | None:
        """The condition that a point of ``dims`` exists, of some of its ranks if they are given; None where every point does."""
        parts = [self.lane(r, dims, "ok") for r in (dims if ranks is None else ranks) if self.layout.padded(r)]
        return " & ".join(parts) if parts else None

    def clean(self, v: Value, ranks: tuple[str, ...], identity: str = "0.0") -> str:
        """The value with the identity in the padding of ``ranks``."""
        condition = self.inside(v.dims, ranks)
        return f"tl.where({condition}, {self.ref(v)}, {identity})" if condition else self.ref(v)


def literal(value: Scalar) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value) if value >= 0 else f"({value!r})"
