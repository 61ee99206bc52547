"""Scalar expressions: the one node type `Expr`, and what it may be. `ir.expr` has the functions on them.

Immutable, as the nodes of `ir.nodes` are: two compare by what they say, wherever in a text they stand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from einfuse.ir.errors import TooLargeError
from einfuse.ir.span import Span

DType = Literal["float", "int", "bool"]
"""The three element types of the IR. The storage dtype (bf16, f32, i64, ...) is a property of a call, not of a cascade."""

Scalar = int | float | bool

MAX_OPERATIONS = 20_000
MAX_DEPTH = 250
"""Bounds of one expression: passes take at least linear time in its operations, and recurse along its depth."""


@dataclass(frozen=True, slots=True)
class Expr:
    """A scalar expression evaluated at one point of the iteration space.

    ``op`` is one of

    ======== ============================ =====================================================
    op       value                        args
    ======== ============================ =====================================================
    const    the int, float or bool       --
    index    a rank name                  -- (its coordinate, an int)
    size     a size name, ``i.lo``        -- (an int known at launch; ``i.lo``/``i.hi``: the tile of rank i)
    load     a tensor or statement name   one index expression per axis
    new      a state name                 as load: the re-based value, only inside a carry
    in       a list: a tensor or name     an int, then one index for every axis of the list but the last: does it hold the int?
    other    --                           the operands of the scalar function ``op`` (see `ir.expr`)
    ======== ============================ =====================================================

    ``operations`` counts its nodes, shared ones wherever they stand, ``depth`` the longest way to a leaf. Raises TooLargeError beyond
    `MAX_OPERATIONS` or `MAX_DEPTH`: whatever grows in a pass ends there.
    """

    op: str
    args: tuple[Expr, ...] = ()
    value: Scalar | str | None = None
    loc: Span | None = field(default=None, compare=False, repr=False)
    operations: int = field(init=False, compare=False, repr=False)
    depth: int = field(init=False, compare=False, repr=False)
    _hash: int | None = field(init=False, compare=False, repr=False)
    _named: frozenset[tuple[str, str]] | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        operations, depth = 1, 0
        for a in self.args:
            operations += a.operations
            depth = a.depth if a.depth > depth else depth
        object.__setattr__(self, "operations", operations)
        object.__setattr__(self, "depth", depth + 1)
        object.__setattr__(self, "_hash", None)
        object.__setattr__(self, "_named", None)
        if operations > MAX_OPERATIONS or depth >= MAX_DEPTH:
            raise TooLargeError(_place(self))

    def __hash__(self) -> int:
        if self._hash is None:  # kept: parts of an expression are looked up over and over
            object.__setattr__(self, "_hash", hash((self.op, self.args, self.value)))
        assert self._hash is not None, "it was set above"
        return self._hash

    @property
    def named(self) -> frozenset[tuple[str, str]]:
        """The ``op`` and the name of every part that has one. Kept, as passes ask for them over and over."""
        if self._named is None:
            stack = [self]
            while stack:
                top = stack[-1]
                left = [a for a in top.args if a._named is None]
                if left:
                    stack += left
                    continue
                stack.pop()
                found: frozenset[tuple[str, str]] = frozenset()
                for a in top.args:
                    assert a._named is not None, "its turn was before"
                    found = found | a._named if found else a._named
                own = {(top.op, top.value)} if isinstance(top.value, str) else ()
                object.__setattr__(top, "_named", found.union(own))
        assert self._named is not None, "it was set above"
        return self._named

    @property
    def name(self) -> str:
        """The rank, size or tensor that an index, size, load or new refers to."""
        assert isinstance(self.value, str), f"a {self.op} has no name"
        return self.value


def _place(e: Expr) -> Span | None:
    """The place of an expression, or of the first of its nearest parts that has one."""
    row = [e]
    while row:
        for part in row:
            if part.loc is not None:
                return part.loc
        row = list({id(a): a for part in row for a in part.args}.values())
    return None
