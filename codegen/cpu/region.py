"""Prints straight-line regions: scalars as variables, loop nests, and matrix products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from einfuse.codegen.cpu import access, forms
from einfuse.codegen.cpu.forms import PAIRED, Form, operands, place, shape, wanted
from einfuse.codegen.cpu.functions import Ref, applied, literal
from einfuse.codegen.cpu.loops import TYPES, NestPrinter
from einfuse.codegen.cpu.schedule import Nest, Node, Product, Single
from einfuse.codegen.cpu.text import Place, Scope, Text
from einfuse.codegen.plan import Arg, Const, Coordinate, Dot, Load, Map, Op, Param, Size, Store, Value


def print_nodes(text: Text, scope: Scope, nodes: Sequence[Node], tensors: Mapping[str, Arg]) -> None:
    """The nodes in order; every kept value has its place in ``scope`` already."""
    for node in nodes:
        if isinstance(node, Single):
            single(text, scope, node.op, tensors)
        elif isinstance(node, Nest):
            NestPrinter(text, diagonals(scope, node) if node.diagonal else scope, node, tensors).printed()
        else:
            product(text, scope, node)


def diagonals(scope: Scope, nest: Nest) -> Scope:
    """What a nest along diagonals sees: a block as much longer as there are rows."""
    ((rank,), inner) = nest.dims, scope.inner()
    rows, extent = scope.extents[nest.diagonal], scope.extents[rank]
    count = f"{extent.count} + {rows.count} - 1"
    inner.extents[rank] = replace(extent, count=count, most=extent.most + rows.most - 1, whole=False)
    return inner


def single(text: Text, scope: Scope, op: Op, tensors: Mapping[str, Arg]) -> None:
    """A statement on scalars."""
    if isinstance(op, Store):
        index = [scope.scalars[v.name] for v in op.index]
        tensor = scope.scalars[f"tensor {op.tensor}"].text
        text.line(access.scalar_store(op, index, scope.scalars[op.value.name], tensor))
        return
    ref = _scalar(scope, op, tensors)
    if ref.literal is None and not ref.text.isidentifier():
        name = text.fresh(op.out.name)
        text.line(f"const {TYPES[op.out.dtype][0]} {name} = {ref.text};")
        ref = Ref(name, op.out.dtype)
    scope.scalars[op.out.name] = ref


def _scalar(scope: Scope, op: Op, tensors: Mapping[str, Arg]) -> Ref:
    match op:
        case Const(out=out, value=value):
            return literal(value, out.dtype)
        case Coordinate(rank=rank):
            return scope.scalars[f"coordinate {rank}"]
        case Size(name=name):
            return scope.scalars[f"size {name}"]
        case Param(name=name):
            return scope.scalars[f"param {name}"]
        case Load(tensor=tensor, index=index, where=where):
            refs = [scope.scalars[v.name] for v in index]
            alive = scope.scalars[where.name] if where else None
            return access.scalar_load(op, refs, alive, scope.scalars[f"tensor {tensor}"].text, tensors[tensor].storage)
        case Map(fn=fn, args=args, out=out):
            return applied(fn, [scope.scalars[v.name] for v in args], out.dtype)
    raise AssertionError(f"{type(op).__name__} is not an operation on scalars")


def product(text: Text, scope: Scope, node: Product) -> None:
    """A matrix product: rows along the first rank of the result, vectors along the second."""
    op = node.op
    a, b, x, y = operands(op)
    left_form, right_form = wanted(op, scope.narrow)
    left, right, out = place(text, scope, a, left_form), place(text, scope, b, right_form), scope.places[op.out.name]
    steps = dict(zip(left.dims, left.steps, strict=True))
    acc = f"{scope.places[op.acc.name].pointer}, {scope.places[op.acc.name].row}" if op.acc else "nullptr, 0"
    m, n, terms = (scope.extents[r].count for r in (x, y, op.rank))
    whole = f"pairs({terms})" if left_form in PAIRED else terms
    text.line(f"// {op.out.name}[{x}, {y}] = {'' if op.acc is None else op.acc.name + ' + '}sum[{op.rank}] {a.name} * {b.name}")
    result = f"{out.pointer}, {out.row}, {acc}, {left.pointer}, {steps[x]}"
    rows = (right.pointer, right.row)
    made, where = ("", "") if op.where is None else existing(text, scope, op, right, right_form)
    if made:
        rows = ("rows.p", "rows.ld")
    given = f"{result}, {steps[op.rank]}, {', '.join(rows)}, {m}"
    match node.limit:
        case "columns":
            call = f"matmul_columns({given}, {whole}, {scope.alive}.rows);"
        case "terms" | "turned terms":
            ends = "rows" if node.limit == "terms" else "columns"
            call = f"matmul_terms<{2 if left_form in PAIRED else 1}>({given}, {n}, {scope.alive}.{ends});"
        case _:
            call = f"matmul({given}, {n}, {whole});"
    if b.name in scope.there and steps[op.rank] == "1":
        streamed = scope.there[b.name]
        form = f"dots({{}}, {whole}, {{}});" if "turned" in right_form else f"sums({{}}, {terms}, {{}});"
        ahead = streamed.ahead if op.where is None else f"{streamed.ahead}, {where}"
        stream = form.format(f"{result}, {streamed.rows}, {m}, {n}", ahead)
        text.line(f"if ({streamed.when}) {stream}")
        call = f"else {{ {made} {call} }}" if made else f"else {call}"
    elif made:
        call = f"{{ {made} {call} }}"
    text.line(call)


def existing(text: Text, scope: Scope, op: Dot, right: Place, form: Form) -> tuple[str, str]:
    """Text that defines ``rows``, the right operand with 0 at points that do not exist, and the truth values that say so."""
    assert op.where is not None, "all points exist"
    assert right.dims == (op.rank, op.out.dims[1]), "what may not exist are rows of the right operand"
    where = scope.places[op.where.name].pointer
    terms, columns = (scope.extents[d] for d in right.dims)
    count, row = shape(form, terms, columns)
    key = ("existing", form, right.dims, terms.most)
    if key not in text.pool:
        text.pool[key] = text.buffer(f"existing_{op.rank}", forms.element_of(form), f"{count} * {row}")
    per = 2 if form in PAIRED else 1
    given = f"{text.pool[key]}, {row}, {right.pointer}, {right.row}, {terms.count}, {columns.count}, {where}"
    return f"const auto rows = existing<{per}>({given});", where


def local_place(scope: Scope, v: Value, pointer: str) -> Place:
    """The place of a block in a buffer of its own: row-major, the last rank padded to whole vectors."""
    return Place(pointer, v.dims, strides(scope, v.dims), v.dtype)


def strides(scope: Scope, dims: tuple[str, ...]) -> tuple[str, ...]:
    most = [scope.extents[d].most for d in dims]
    out = []
    for n in range(len(dims)):
        inner = [str(m) for m in most[n + 1 : -1]] + ([f"padded({most[-1]})"] if n < len(dims) - 1 else [])
        out.append(" * ".join(inner) or "1")
    return tuple(out)


def block_size(scope: Scope, dims: tuple[str, ...]) -> str:
    first, *rest = (scope.extents[d] for d in dims)
    inner = [*(str(x.most) for x in rest[:-1]), *(f"padded({x.most})" for x in rest[-1:])]
    return " * ".join([first.room, *inner]) if rest else f"padded({first.most})"


def element_of(v: Value) -> str:
    return "T" if v.dtype == "float" else "I"
