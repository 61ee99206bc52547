"""Prints the operations of a scan: one function for each kind."""

from __future__ import annotations

import re

from einfuse.codegen.plan import FLOAT8, FUNCTIONS, Const, Coordinate, Dot, Load, Map, Param, Reduce, Size, Store, Value
from einfuse.codegen.plan.scan import Op, Prefix, Region, Relabel, Solve
from einfuse.codegen.scan.triton.body import Body, literal
from einfuse.codegen.triton.functions import FORMS, Operand, Target, reduction
from einfuse.codegen.triton.layout import MATRIX
from einfuse.codegen.triton.names import identifier


def print_region(body: Body, region: Region) -> None:
    """Print the operations in order."""
    for op in region:
        _print(body, op)


def _print(body: Body, op: Op) -> None:
    match op:
        case Store():
            _store(body, op)
        case Solve():
            _solve(body, op)
        case Const(out=out, value=value):
            body.literals[out.name] = value
        case Coordinate(out=out, rank=rank):
            numbers = {body.plan.count: "block", "<part>": "part"}
            body.names[out.name] = numbers.get(rank, f"at_{identifier(rank)}")
        case Size(out=out, name=name):
            body.names[out.name] = f"size_{identifier(name)}"
        case Param(out=out, name=name):
            body.names[out.name] = f"param_{identifier(name)}"
        case _:
            text = _expression(body, op)
            body.line(f"{body.define(op.out)} = {text}")


def _expression(body: Body, op: Op) -> str:
    match op:
        case Load():
            return _load(body, op)
        case Map():
            return _map(body, op)
        case Reduce(reducer=reducer, arg=arg, rank=rank):
            kept = body.clean(arg, (rank,), literal(reducer.start(arg.dtype)))
            return reduction(reducer.combine, kept, arg.dims.index(rank), len(arg.dims), body.helpers)
        case Prefix():
            return _prefix(body, op)
        case Dot():
            return _dot(body, op)
        case Relabel(out=out, arg=arg, moved=(old, new)):
            now = tuple(new if d == old else d for d in arg.dims)
            order = [now.index(d) for d in out.dims]
            return body.ref(arg) if order == sorted(order) else f"tl.permute({body.ref(arg)}, {order})"
    raise AssertionError(f"{type(op).__name__} is not an operation of a plan")


# -- memory ----------------------------------------------------------------------------------------------------------------------


def _address(body: Body, tensor: str, index: tuple[Value, ...], dims: tuple[str, ...], clamp: tuple[int, ...] = ()) -> str:
    name = identifier(tensor)
    terms = [f"{name}_ptr"]
    for n, v in enumerate(index):
        at = body.view(v, dims)
        if n in clamp:
            at = f"tl.minimum(tl.maximum({at}, 0), {name}_n{n} - 1)"
        terms.append(f"{at if v.name in body.literals else f'tl.cast({at}, tl.int64)'} * {name}_s{n}")
    return " + ".join(terms)


def _load(body: Body, op: Load) -> str:
    condition = body.inside(op.out.dims)
    extra = f", mask={condition}, other=0" if condition else ""
    loaded = f"tl.load({_address(body, op.tensor, op.index, op.out.dims, op.clamp)}{extra})"
    storage = next(t.storage for t in body.plan.tensors if t.name == op.tensor)
    if storage in FLOAT8:
        body.helpers.add(f"_{storage}")
        loaded = f"_{storage}({loaded})"
    return f"{loaded}.to({body.type(op.out.dtype)})"


def _store(body: Body, op: Store) -> None:
    plan = body.plan
    dims = tuple(r for r in plan.order if r in {d for v in (*op.index, op.value) for d in v.dims})
    condition = body.inside(dims)
    partial = any(p.tensor == op.tensor and "part" in p.axes for p in plan.partial)
    if plan.parts > 1 and not partial and plan.shared not in dims:  # the same in all of them
        # a scalar condition beside a block is no condition in Triton's interpreter: a zero for every point makes it a block
        first = " + ".join(["part", *(f"0 * {body.lane(r, dims, 'at')}" for r in dims)]) + " == 0"
        condition = f"({condition}) & ({first})" if condition else first
    extra = f", mask={condition}" if condition else ""
    storage = next(t.storage for t in plan.tensors if t.name == op.tensor)
    value = body.stored(body.whole(op.value, dims), storage)
    body.line(f"tl.store({_address(body, op.tensor, op.index, dims)}, {value}{extra})")


# -- arithmetic ------------------------------------------------------------------------------------------------------------------


def _map(body: Body, op: Map) -> str:
    f = FUNCTIONS[op.fn]
    kind = f.computes_in([a.dtype for a in f.values(op.args)])
    operands = []
    if op.fn == "select" and [body.literals.get(a.name) for a in op.args[1:]] == [1, 0]:
        body.choices.add(op.out.name)
    for n, a in enumerate(op.args):
        text, value = body.view(a, op.out.dims), body.literals.get(a.name)
        if kind is not None and a.dtype != kind and not (op.fn == "select" and n == 0):
            value = None if value is None else float(value)
            text = f"tl.cast({text}, {body.type(kind)})" if value is None else literal(value)
        atom = value is not None or re.fullmatch(r"[\w.\[\]:, ]+|tl\.cast\(.*\)", text)
        operands.append(Operand(text if atom else f"({text})", value))
    to = body.type(op.out.dtype)
    if op.fn in ("float", "int"):
        return f"tl.cast({operands[0].bare}, {to})"
    return FORMS[op.fn](tuple(operands), Target(to, body.helpers, body.plan.narrow))


def _prefix(body: Body, op: Prefix) -> str:
    """Rows of features are added up by a product with a triangle of ones: no scan across threads, and an exclusive sum subtracts nothing."""
    kept, width = body.clean(op.arg, (op.rank,)), body.layout.width(op.rank)
    if op.arg.dims[0] == op.rank and not {*op.arg.dims[1:]} & {*body.plan.moving} and len(op.arg.dims) == 2 and width >= MATRIX:
        here, there = f"tl.arange(0, {width})[:, None]", f"tl.arange(0, {width})[None, :]"
        triangle = f"{here} {'<' if op.reverse else '>'}{'' if op.exclusive else '='} {there}"
        return _added_up(body, f"tl.where({triangle}, 1.0, 0.0).to({body.real})", kept)
    text = f"tl.cumsum({kept}, {op.arg.dims.index(op.rank)}, reverse={op.reverse})"
    return f"{text} - {kept}" if op.exclusive else text


def _added_up(body: Body, ones: str, text: str) -> str:
    """The product of a matrix of zeros and ones and another one, whose numbers are not rounded to the storage dtype."""
    if body.plan.narrow in ("bf16", "f16"):
        body.helpers.add("_add_up")
        return f"_add_up({ones}, {text})"
    return f'tl.dot({ones}, {text}, input_precision="ieee", out_dtype={body.real})'


def _dot(body: Body, op: Dot) -> str:
    x, y = op.out.dims
    a, b = (op.a, op.b) if x in op.a.dims else (op.b, op.a)
    left, right = body.clean(a, (op.rank,)), body.clean(b, (op.rank,))
    if a.dims != (x, op.rank):
        left = f"tl.trans({left})"
    if b.dims != (op.rank, y):
        right = f"tl.trans({right})"
    if min(body.layout.width(r) for r in (x, y, op.rank)) < MATRIX:  # a scan point by point: no matrix is large enough
        return reduction("+", f"({left})[:, :, None] * ({right})[None, :, :]", 1, 3, body.helpers)
    narrow = body.plan.narrow
    if not op.narrow and a.name in body.choices:
        return _added_up(body, left, right)
    if narrow in ("bf16", "f16") and op.narrow:
        product = "_dot" if narrow == "bf16" else "tl.dot"
        body.helpers |= {"_dot"} if narrow == "bf16" else set()
        return f"{product}({body.stored(left, narrow)}, {body.stored(right, narrow)})"
    return f'tl.dot({left}, {right}, input_precision="ieee", out_dtype={body.real})'


def _solve(body: Body, op: Solve) -> None:
    """Row by row: a row of the result is its known part and the earlier rows times a row of the matrix."""
    i, other = op.matrix.dims
    size, v = body.layout.width(i), op.out
    matrix, out = f"v_{identifier(v.name)}_matrix", body.define(v)
    body.line(f"{matrix} = {body.clean(op.matrix, (i, other))}")
    body.line(f"{out} = {body.whole(op.known, v.dims)}")
    body.line(f"for row in range(0, {size}):")
    body.indent += 1
    body.line(f"here = {f'{size} - 1 - row' if op.transposed else 'row'}")
    here = f"tl.arange(0, {size}) == here"
    across, axis = ("None, :", 1) if op.transposed else (":, None", 0)
    body.line(f"weights = tl.sum(tl.where(({here})[{across}], {matrix}, 0.0), {axis})")
    weights, more = "weights", "more"
    if len(v.dims) > 1:
        rows = ", ".join(":" if d == i else "None" for d in v.dims)
        rest = ", ".join("None" if d == i else ":" for d in v.dims)
        weights, here, more = f"weights[{rows}]", f"({here})[{rows}]", f"more[{rest}]"
    body.line(f"more = tl.sum({weights} * {out}, {v.dims.index(i)})")
    body.line(f"{out} = tl.where({here}, {out} + {more}, {out})")
    body.indent -= 1
