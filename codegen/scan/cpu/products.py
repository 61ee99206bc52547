"""Prints what works on whole matrices: products and triangular systems, as calls of the functions of ``kernel.h`` on buffers."""

from __future__ import annotations

from einfuse.codegen.plan import Dot, Value
from einfuse.codegen.plan.scan import Relabel, Solve
from einfuse.codegen.scan.cpu.body import Body


def print_dot(body: Body, op: Dot) -> None:
    v, rank, layout = op.out, op.rank, body.layout
    x, y = v.dims
    a, b = (op.a, op.b) if x in op.a.dims else (op.b, op.a)
    left, along = _buffer(body, a), layout.strides(a.dims)
    right, step = _rows(body, b, rank, y)
    body.places[v.name] = body.buffer(v)
    shape = f"{layout.bound(x)}, {layout.bound(y)}, {layout.bound(rank)}"
    out, row = body.places[v.name], layout.strides(v.dims)[x]
    body.line(f"multiply({shape}, {left}, {along[x]}, {along[rank]}, {right}, {step}, {out}, {row});")


def _rows(body: Body, b: Value, rank: str, y: str) -> tuple[str, int]:
    """The buffer of ``b[rank, y]`` with its rows along ``y``, turned once where they are not, and the numbers from row to row."""
    right, layout = _buffer(body, b), body.layout
    rows = layout.strides(b.dims)
    if b.dims[-1] == y:
        return right, rows[rank]
    key = f"{right}/{rank}"
    if key not in body.turned:
        body.turned[key] = body.buffer(Value(f"{b.name}_turned", (rank, y), "float"))
        shape = f"{layout.bound(y)}, {layout.bound(rank)}"
        body.line(f"transpose({shape}, {right}, {rows[y]}, {body.turned[key]}, {layout.row(y)});")
    return body.turned[key], layout.row(y)


def print_solve(body: Body, op: Solve) -> None:
    v, points = op.out, body.plan.rank
    matrix, known = _buffer(body, op.matrix), _buffer(body, op.known)
    body.places[v.name] = body.buffer(v)
    rows = 1
    if len(v.dims) > 1:
        assert v.dims[0] == points, "the points are the rows"
        rows = body.layout.strides(v.dims)[points]
    row = body.layout.strides(op.matrix.dims)[points]
    out, upwards = body.places[v.name], str(op.transposed).lower()
    body.line(f"solve({upwards}, n, {rows}, {matrix}, {row}, {known}, {out}, {rows});")


def _buffer(body: Body, v: Value) -> str:
    """The buffer that holds a matrix, whatever the names of its axes."""
    name = v.name
    while name not in body.places:
        op = body.ops[name]
        assert isinstance(op, Relabel), "operands of products are kept"
        name = op.arg.name
    return body.places[name]
