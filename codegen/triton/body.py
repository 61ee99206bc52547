"""The state of the printer: what is already printed, the identifiers in scope, and the lines so far.

`Ref` is what is known about a printed value; the body of a loop is printed by a child `Body`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from einfuse.codegen.plan import FLOAT8, KernelPlan, Value
from einfuse.codegen.triton.descriptors import Described
from einfuse.codegen.triton.layout import Layout
from einfuse.codegen.triton.names import Names
from einfuse.ir import DType, Scalar

STORAGE: dict[str, str] = {
    "f64": "tl.float64",
    "f32": "tl.float32",
    "bf16": "tl.bfloat16",
    "f16": "tl.float16",
    **dict.fromkeys(FLOAT8, "tl.uint8"),  # widened by `helpers`: not every GPU has these types
    "i64": "tl.int64",
    "i32": "tl.int32",
    "i16": "tl.int16",
    "i8": "tl.int8",
    "u8": "tl.uint8",
    "bool": "tl.uint8",
}
WIDTH = 120


@dataclass(frozen=True, slots=True)
class Ref:
    """A printed value: its text, ranks and type, and what is known about it.

    ``clean`` ranks have 0 in their padding. ``rank`` is set for the coordinates of a rank. ``raw`` is the text of the same
    block in its storage dtype, where it came from memory and was not changed. ``moved``: a rank, and a scalar that gives the block with the
    places inside of a block of the rank added.
    """

    text: str
    dims: tuple[str, ...]
    dtype: DType
    literal: Scalar | None = None
    clean: frozenset[str] = frozenset()
    nonnegative: bool = False
    rank: str | None = None
    raw: str | None = None
    storage: str = ""
    moved: tuple[str, str] | None = None


def number(value: Scalar, dtype: DType) -> str:
    """A literal of the given type."""
    if dtype == "float":
        value = float(value)
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    return repr(bool(value) if dtype == "bool" else int(value))


def wrapped(indent: str, head: str, args: list[str], tail: str = ")") -> list[str]:
    """``head(args)`` on one line, or an argument a line where that is too long."""
    line = f"{indent}{head}({', '.join(args)}{tail}"
    return [line] if len(line) <= WIDTH else [f"{indent}{head}(", *(f"{indent}    {a}," for a in args), f"{indent}{tail}"]


@dataclass(slots=True)
class Body:
    """Prints regions. ``bounds`` are the conditions of the existing coordinates of each rank (None: all of a block exist).

    ``walked`` names, for axes of tensors that a loop walks along, how far into the tensor its block begins. ``described`` tensors come as
    descriptors. ``packs``: the target rounds two numbers to 16 bits at once.
    """

    plan: KernelPlan
    layout: Layout
    names: Names
    helpers: set[str]
    converted: set[str]
    precision: str
    packs: bool
    upper: dict[str, str | None] = field(default_factory=dict)
    starts: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    env: dict[str, Ref] = field(default_factory=dict)
    wide: dict[str, str] = field(default_factory=dict)
    walked: dict[tuple[str, int], str] = field(default_factory=dict)
    described: Mapping[str, Described] = field(default_factory=dict)
    inlined: frozenset[str] = frozenset()
    indent: str = "    "

    # ------------------------------------------------------------------------------------------------------------ lines, scopes

    def line(self, text: str = "") -> None:
        self.lines.append(self.indent + text if text else "")

    def assign(self, name: str, text: str) -> str:
        """``name = text`` under a fresh identifier, which is returned."""
        target = self.names.fresh(name)
        self.line(f"{target} = {text}")
        return target

    def inner(self, rank: str, start: str, upper: str | None) -> Body:
        """The printer of a loop body over ``rank``, whose block begins at ``start``."""
        child = self.nested()
        child.upper, child.starts = self.upper | {rank: upper}, self.starts | {rank: start}
        return child

    def nested(self) -> Body:
        """The printer of a loop body; it writes to the same lines."""
        return replace(
            self,
            names=self.names.child(),
            env=dict(self.env),
            wide=dict(self.wide),
            walked=dict(self.walked),
            indent=self.indent + "    ",
        )

    def type(self, dtype: DType) -> str:
        real = "tl.float64" if self.plan.compute == "f64" else "tl.float32"
        return {"float": real, "int": "tl.int32", "bool": "tl.int1"}[dtype]

    def width(self, rank: str) -> str:
        """How many coordinates a block of the rank holds."""
        return self.env[f"block {rank}"].text

    def shape(self, dims: tuple[str, ...]) -> str:
        return "[" + ", ".join(map(self.width, dims)) + "]"

    # ----------------------------------------------------------------------------------------------------------- blocks as text

    def ref(self, value: Value) -> Ref:
        assert value.name in self.env, f"{value.name} is read before it is defined"
        return self.env[value.name]

    @staticmethod
    def spread(text: str, has: tuple[str, ...], dims: tuple[str, ...]) -> str:
        """A block over the ranks ``has``, shaped to broadcast against one over ``dims``."""
        if not has or has == dims:
            return text
        atom = text if text.replace(".", "_").isidentifier() or (text.endswith(")") and text.startswith("(")) else f"({text})"
        return f"{atom}[{', '.join(':' if r in has else 'None' for r in dims)}]"

    def view(self, ref: Ref, dims: tuple[str, ...]) -> str:
        return self.spread(ref.text, ref.dims, dims)

    def convert(self, ref: Ref, dtype: DType | None) -> Ref:
        """The same value as another element type."""
        if dtype is None or ref.dtype == dtype:
            return ref
        if ref.literal is not None:
            return replace(ref, text=number(ref.literal, dtype), dtype=dtype)
        text = f"{ref.text} != 0" if dtype == "bool" else f"tl.cast({ref.text}, {self.type(dtype)})"
        return replace(ref, text=f"({text})" if dtype == "bool" else text, dtype=dtype, rank=None, raw=None)

    def block(self, ref: Ref, dims: tuple[str, ...], dtype: DType) -> str:
        """``ref`` as a block of exactly the given ranks and type (what a loop carries, an accumulator)."""
        ref = self.convert(ref, dtype)
        if ref.literal is not None:
            return f"tl.full({self.shape(dims)}, {ref.text}, {self.type(dtype)})"
        return ref.text if ref.dims == dims else f"tl.broadcast_to({self.view(ref, dims)}, {self.shape(dims)})"

    def inside(self, rank: str, dims: tuple[str, ...]) -> str | None:
        """The condition that a coordinate of ``rank`` exists, shaped for ``dims``; None where every point of a block does."""
        upper = self.upper[rank]
        return f"({self.spread(self.coordinates(rank), (rank,), dims)} < {upper})" if upper else None

    def coordinates(self, rank: str) -> str:
        """The block of coordinates of a rank, computed once in each scope that it differs in."""
        return self.env[f"coordinate {rank}"].text

    def filled(self, ref: Ref, rank: str, identity: str, dims: tuple[str, ...]) -> str:
        """``ref`` over ``dims`` with ``identity`` in the padding of ``rank``; a fold's padding is the plan's affair."""
        test = None if rank in self.layout.folds else self.inside(rank, dims)
        return f"tl.where({test}, {self.view(ref, dims)}, {identity})" if test else self.view(ref, dims)

    def extent(self, size: int | str) -> str:
        """A size: a number, or one that is known at launch."""
        return str(size) if isinstance(size, int) else self.env[f"size {size}"].text

    def bind(self, value: Value, text: str, **known: object) -> None:
        """Print ``value = text`` and remember it."""
        self.env[value.name] = replace(Ref(self.assign(value.name, text), value.dims, value.dtype), **known)  # type: ignore[arg-type]
