"""The syntax tree of an ``.attn`` text: what the user wrote, with places, before any name has a meaning.

Nodes compare structurally; ``loc`` takes no part. Parentheses leave no trace.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from einfuse.ir import Span


def _loc() -> Span | None:
    return field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Name:
    """An identifier, or ``module.identifier``."""

    text: str
    loc: Span | None = _loc()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Number:
    """``kind`` keeps 1 and 1.0 apart."""

    value: int | float
    kind: Literal["int", "float"]
    loc: Span | None = _loc()


@dataclass(frozen=True, slots=True)
class Truth:
    value: bool
    loc: Span | None = _loc()


@dataclass(frozen=True, slots=True)
class Read:
    """``name[index, ...]``: a tensor or statement at explicit indices, or a definition that takes ranks only."""

    name: Name
    args: tuple[Expr, ...]
    loc: Span | None = _loc()


@dataclass(frozen=True, slots=True)
class Call:
    """``name(args)``, ``name[ranks](args where condition)`` or ``name[ranks -> slot](...)``: a function, a definition or a reduction."""

    name: Name
    ranks: tuple[Expr, ...] | None
    args: tuple[Expr, ...]
    where: Expr | None = None
    loc: Span | None = _loc()
    slot: Name | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """``element in list``: does the list hold it? The list has every index but its last."""

    element: Expr
    list: Name | Read
    loc: Span | None = _loc()


@dataclass(frozen=True, slots=True)
class Unary:
    op: Literal["neg", "not"]
    operand: Expr
    loc: Span | None = _loc()


@dataclass(frozen=True, slots=True)
class Binary:
    op: str
    left: Expr
    right: Expr
    loc: Span | None = _loc()


@dataclass(frozen=True, slots=True)
class Compare:
    """``a < b <= c``: every neighbouring pair holds."""

    ops: tuple[str, ...]
    operands: tuple[Expr, ...]
    loc: Span | None = _loc()


@dataclass(frozen=True, slots=True)
class Conditional:
    """``then if condition else other``."""

    then: Expr
    condition: Expr
    other: Expr
    loc: Span | None = _loc()


@dataclass(frozen=True, slots=True)
class Repeat:
    """``repeat(count, a = start, b = start, next_a, next_b)``: the first name after ``count`` simultaneous steps."""

    count: Expr
    names: tuple[Name, ...]
    starts: tuple[Expr, ...]
    steps: tuple[Expr, ...]
    loc: Span | None = _loc()


Expr = Name | Number | Truth | Read | Call | Member | Unary | Binary | Compare | Conditional | Repeat


@dataclass(frozen=True, slots=True)
class Param:
    """``name: type = default``; ``members`` are those of an enum."""

    name: Name
    type: Name
    members: tuple[Name, ...] = ()
    default: Expr | None = None
    loc: Span | None = _loc()


@dataclass(frozen=True, slots=True)
class RankLine:
    """``rank a, b: kind = size``."""

    names: tuple[Name, ...]
    kind: Name
    size: Expr | None = None
    loc: Span | None = _loc()


@dataclass(frozen=True, slots=True)
class Input:
    """``in name[axes]: type optional``."""

    name: Name
    axes: tuple[Expr, ...]
    type: Name | None = None
    optional: bool = False
    loc: Span | None = _loc()


@dataclass(frozen=True, slots=True)
class Statement:
    """``target[ranks] = value where condition``; ``ranks`` None: inferred."""

    target: Name
    ranks: tuple[Name, ...] | None
    value: Expr
    where: Expr | None = None
    loc: Span | None = _loc()


@dataclass(frozen=True, slots=True)
class Output:
    """``out a, b``."""

    names: tuple[Name, ...]
    loc: Span | None = _loc()


@dataclass(frozen=True, slots=True)
class StateLine:
    """``state target[ranks] = value from initial``: inside a scan; ``initial`` None: zero."""

    target: Name
    ranks: tuple[Name, ...]
    value: Expr
    initial: Expr | None = None
    loc: Span | None = _loc()


@dataclass(frozen=True, slots=True)
class Scan:
    """``scan rank { ... }``: the body once for every point of the rank, in order."""

    rank: Name
    body: tuple[Statement | StateLine, ...]
    loc: Span | None = _loc()


Element = RankLine | Input | Statement | Output | Scan


@dataclass(frozen=True, slots=True)
class Attention:
    name: Name
    params: tuple[Param, ...]
    over: tuple[Name, ...]
    body: tuple[Element, ...]
    doc: str = ""
    loc: Span | None = _loc()


@dataclass(frozen=True, slots=True)
class Definition:
    """``def name[ranks](params) = result`` or ``{ body; return result }``."""

    name: Name
    ranks: tuple[Name, ...]
    params: tuple[Name, ...]
    body: tuple[Statement, ...]
    result: Expr
    block: bool = False
    doc: str = ""
    loc: Span | None = _loc()


@dataclass(frozen=True, slots=True)
class Use:
    """``use module`` or ``use module.name``."""

    module: Name
    name: Name | None
    loc: Span | None = _loc()


@dataclass(frozen=True, slots=True)
class Module:
    """One file. ``source`` is its text, for diagnostics; it takes no part in comparison."""

    doc: str
    uses: tuple[Use, ...]
    definitions: tuple[Definition, ...]
    attentions: tuple[Attention, ...]
    file: str = field(default="<text>", compare=False)
    source: str = field(default="", compare=False, repr=False)


Node = Expr | Param | RankLine | Input | Statement | Output | StateLine | Scan | Attention | Definition | Use | Module


def children(node: Node) -> Iterator[Node]:
    """The nodes directly below ``node``."""
    for f in dataclasses.fields(node):
        value = getattr(node, f.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Node):
                yield item


def walk(node: Node) -> Iterator[tuple[Node, int]]:
    """Every node with its depth below ``node``, the root first; not recursive, so that any depth can be measured."""
    stack = [(node, 0)]
    while stack:
        top, depth = stack.pop()
        yield top, depth
        stack += [(child, depth + 1) for child in children(top)]
