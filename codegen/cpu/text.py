"""The text of a kernel while it is written: lines with indentation, and where the values of the plan are found in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from einfuse.codegen.cpu.functions import Ref
from einfuse.codegen.cpu.names import Names
from einfuse.codegen.plan import Op
from einfuse.ir import DType


@dataclass(frozen=True, slots=True)
class Place:
    """A buffer: a pointer, the ranks it spans and its step in elements along each (text; the last one is 1 where it is vectorised)."""

    pointer: str
    dims: tuple[str, ...]
    steps: tuple[str, ...]
    dtype: DType = "float"

    @property
    def row(self) -> str:
        """The distance of two rows."""
        return self.steps[0] if len(self.steps) > 1 else "0"


@dataclass(frozen=True, slots=True)
class Extent:
    """The part of a rank that a block covers: its first coordinate, how many exist, and how many it may hold (``whole``: always does).

    ``room`` is how many of these a rank of the call's size has (C++ text), ``counted``: nothing in the plan tells the lanes beyond the
    last coordinate from the others.
    """

    start: str
    count: str
    most: int
    room: str
    whole: bool = False
    counted: bool = False


@dataclass(frozen=True, slots=True)
class Streamed:
    """An operand that is read where the caller holds it if ``when`` holds, and the rows that are read after it (C++ text)."""

    when: str
    rows: str
    ahead: str


@dataclass(slots=True)
class Scope:
    """What can be seen at a place in the text."""

    scalars: dict[str, Ref] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    forms: dict[tuple[str, str], Place] = field(default_factory=dict)  # copies of two-dimensional values for products
    there: dict[str, Streamed] = field(default_factory=dict)  # right operands that may be read from the caller
    recipes: dict[str, Op] = field(default_factory=dict)
    extents: dict[str, Extent] = field(default_factory=dict)
    alive: str = ""  # where the mask of the body is alive (`alive.h`)
    whole: str = ""  # what is called in place of the rest of the body where the mask holds at all points of the block
    streamed: str = ""  # when operands are read where the caller holds them
    narrow: bool = False  # products may take their operands in bf16
    row_products: frozenset[str] = frozenset()  # the sums of `codegen.rows`

    def inner(self) -> Scope:
        return Scope(
            dict(self.scalars),
            dict(self.places),
            dict(self.forms),
            dict(self.there),
            dict(self.recipes),
            dict(self.extents),
            self.alive,
            self.whole,
            self.streamed,
            self.narrow,
            self.row_products,
        )


@dataclass(slots=True)
class Text:
    """Lines, and the names and thread-wide buffers that they use."""

    names: Names = field(default_factory=Names)
    lines: list[str] = field(default_factory=list)
    buffers: list[str] = field(default_factory=list)  # declarations at the start of a thread
    indent: int = 0
    pool: dict[tuple[object, ...], str] = field(default_factory=dict)
    threadwide: set[str] = field(default_factory=set)

    def fresh(self, name: str) -> str:
        """A name that is free here and is not that of a buffer."""
        self.names.taken |= self.threadwide
        return self.names.fresh(name)

    def unique(self, name: str) -> str:
        """A name for something of the thread."""
        text = self.names.unique(name)
        self.threadwide.add(text)
        return text

    def line(self, text: str = "") -> None:
        self.lines.append("  " * self.indent + text if text else "")

    @contextmanager
    def block(self, head: str, tail: str = "}") -> Iterator[None]:
        names, self.names = self.names, self.names.child()
        self.line(head + " {")
        self.indent += 1
        yield
        self.indent -= 1
        self.names = names
        self.line(tail)

    def room(self, rank: str, size: str, most: int) -> str:
        """How many coordinates of a rank of a size a block holds that has room for ``most``."""
        if size.isdecimal():
            return str(min(int(size), most))
        key = ("room", rank, most)
        if key not in self.pool:
            self.pool[key] = self.unique(f"{rank}_room")
            self.buffers.append(f"const long {self.pool[key]} = minimum({most}L, {size});")
        return self.pool[key]

    def buffer(self, name: str, element: str, count: str, note: str = "") -> str:
        """A new buffer of the thread."""
        text = self.unique(name)
        self.buffers.append(f"{element}* const {text} = scratch.take<{element}>({count});" + (f"  // {note}" if note else ""))
        return text
