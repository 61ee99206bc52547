"""The layouts in which products want their operands, and copies of values in them.

plain         row-major numbers                       [row][column]
turned        transposed numbers                      [column][row]
rows          bf16, neighbours of a row paired        [row][pair of columns]      left operands
columns       bf16, neighbours of a column paired     [pair of rows][column]      right operands, reduced along their rows
turned_rows   `rows` transposed                       [pair of columns][row]      right operands, reduced along their columns
"""

from __future__ import annotations

from typing import Literal

from einfuse.codegen.cpu.text import Extent, Place, Scope, Text
from einfuse.codegen.plan import Dot, Fold, KernelPlan, Value, operations, reads

Form = Literal["plain", "turned", "rows", "columns", "turned_rows"]
FORMS: tuple[Form, ...] = ("plain", "turned", "rows", "columns", "turned_rows")
PAIRED: frozenset[Form] = frozenset({"rows", "columns", "turned_rows"})


def operands(op: Dot) -> tuple[Value, Value, str, str]:
    """The operand with the result's first rank, the other, and the two ranks."""
    assert len(op.out.dims) == 2, "a product has two ranks"
    x, y = op.out.dims
    a, b = (op.a, op.b) if x in op.a.dims else (op.b, op.a)
    assert {*a.dims} == {x, op.rank}, "the left operand spans the first and the reduced rank"
    assert {*b.dims} == {y, op.rank}, "the right operand spans the second and the reduced rank"
    return a, b, x, y


def wanted(op: Dot, narrow: bool) -> tuple[Form, Form]:
    """The forms of the left and the right operand; ``narrow``: operands that may be rounded become bf16."""
    a, b, x, y = operands(op)
    upright = b.dims == (op.rank, y)
    if narrow and op.narrow:
        return "rows" if a.dims == (x, op.rank) else "columns", "columns" if upright else "turned_rows"
    return "plain", "plain" if upright else "turned"


def only_paired(plan: KernelPlan) -> frozenset[str]:
    """The values that nothing but products in bf16 reads."""
    paired: set[str] = set()
    other = {v.name for f in plan.steps if isinstance(f, Fold) for p in f.phases for v in (p.lo, p.hi, *p.updates)}
    for op in operations(plan):
        if isinstance(op, Dot):
            for v, form in zip(operands(op)[:2], wanted(op, True), strict=True):
                (paired if form in PAIRED else other).add(v.name)
            other |= {v.name for v in (op.acc, op.where) if v is not None}
        else:
            other |= {v.name for v in reads(op)}
    return frozenset(paired - other)


def element_of(form: Form) -> str:
    return "Pair" if form in PAIRED else "T"


def place(text: Text, scope: Scope, v: Value, form: Form) -> Place:
    """The value in a form, copied now if there is no such copy."""
    if form == "plain":
        return scope.places[v.name]
    if (v.name, form) not in scope.forms:
        rows, columns = (scope.extents[d] for d in v.dims)
        count, row = shape(form, rows, columns)
        pointer = text.buffer(f"{v.name}_{form}", element_of(form), f"{count} * {row}")
        fill(text, scope, v, form, pointer, row, (rows, columns))
        scope.forms[v.name, form] = Place(pointer, v.dims[::-1] if "turned" in form else v.dims, (row, "1"))
    return scope.forms[v.name, form]


def rows_of(text: Text, scope: Scope, v: Value) -> Place:
    """A buffer of its own for the rows of a value, which the nest that computes it writes."""
    count, row = shape("rows", *(scope.extents[d] for d in v.dims))
    return Place(text.buffer(f"{v.name}_rows", "Pair", f"{count} * {row}"), v.dims, (row, "1"))


def shape(form: Form, rows: Extent, columns: Extent) -> tuple[str, str]:
    """How many rows a copy of a rows x columns value has, and their distance in elements."""
    match form:
        case "plain":
            return rows.room, f"padded({columns.most})"
        case "turned":
            return columns.room, f"padded({rows.most})"
        case "rows":
            return rows.room, f"padded({columns.most}) / 2"
        case "columns":
            return f"pairs({rows.room})", f"padded({columns.most})"
    return f"pairs({columns.room})", f"padded({rows.most})"


def fill(text: Text, scope: Scope, v: Value, form: Form, pointer: str, row: str, extents: tuple[Extent, Extent]) -> None:
    """Copies the value to ``pointer``, in rows that are ``row`` apart."""
    rows, columns = (e.count for e in extents)
    if form == "turned_rows":
        source = place(text, scope, v, "rows")
        text.line(f"transpose({pointer}, {row}, {source.pointer}, {source.row}, {rows}, pairs({columns}));")
        return
    source = scope.places.get(v.name) or scope.forms[v.name, "rows"]
    function = {"turned": "transpose", "rows": "pair_rows", "columns": "pair_columns"}[form]
    text.line(f"{function}({pointer}, {row}, {source.pointer}, {source.row}, {rows}, {columns});")
