"""Prints the operations of a scan: one function for each kind."""

from __future__ import annotations

from einfuse.codegen.cpu.functions import REDUCTIONS
from einfuse.codegen.plan import Const, Coordinate, Dot, Load, Map, Param, Reduce, Size, Store
from einfuse.codegen.plan.scan import Op, Prefix, Region, Relabel, Solve
from einfuse.codegen.scan.cpu.body import Body, own
from einfuse.codegen.scan.cpu.forms import TYPES, identifier, number
from einfuse.codegen.scan.cpu.products import print_dot, print_solve


def print_region(body: Body, region: Region) -> None:
    """Print the operations in order."""
    for op in region:
        _print(body, op)


def _print(body: Body, op: Op) -> None:
    match op:
        case Store():
            _store(body, op)
        case Const() | Coordinate() | Relabel():
            body.ops[op.out.name] = op
        case Size(out=out, name=name):
            body.places[out.name] = f"size_{identifier(name)}"
        case Param(out=out, name=name):
            body.places[out.name] = f"param_{identifier(name)}"
        case Load():
            _load(body, op)
        case Map():
            _map(body, op)
        case Reduce():
            _reduce(body, op)
        case Dot():
            print_dot(body, op)
        case Solve():
            print_solve(body, op)
        case Prefix():
            _prefix(body, op)


# -- memory ----------------------------------------------------------------------------------------------------------------------


def _load(body: Body, op: Load) -> None:
    """Floats are brought into a buffer, once and widened; other numbers are read where they are needed."""
    v = op.out
    body.ops[v.name] = op
    if not v.dims:
        body.local(v, body.loaded(op, {}))
    elif v.dtype == "float":
        text = body.loaded(op, own(v.dims))
        body.places[v.name] = body.buffer(v)
        statement = f"{body.element(v)} = {text};"
        last = op.index[-1]
        if not isinstance(body.ops.get(last.name), Coordinate) or last.dims != v.dims[-1:]:
            body.loops(v.dims, statement)
            return
        stride = f"{identifier(op.tensor)}_s{len(op.index) - 1}"
        body.line(f"if ({stride} == 1)")  # rows that lie together are copied as vectors
        body.indent += 1
        body.loops(v.dims, statement.replace(f" * {stride}", ""))
        body.indent -= 1
        body.line("else")
        body.indent += 1
        body.loops(v.dims, statement)
        body.indent -= 1


def _store(body: Body, op: Store) -> None:
    plan = body.plan
    dims = tuple(r for r in plan.order if r in {d for v in (*op.index, op.value) for d in v.dims})
    to = body.address(op.tensor, op.index, own(dims))
    partial = any(p.tensor == op.tensor and "part" in p.axes for p in plan.partial)
    if plan.parts > 1 and not partial and plan.shared not in dims:
        body.line("if (part == 0)")  # the same in all of them
    body.loops(dims, f"narrow({to}, {body.at(op.value, own(op.value.dims))});")


# -- arithmetic ------------------------------------------------------------------------------------------------------------------


def _map(body: Body, op: Map) -> None:
    v = op.out
    body.ops[v.name] = op
    if v.dims:
        if v.name in body.kept:
            body.keep(v)
    elif v.dtype != "float" or all(s.update.name != v.name for s in body.plan.states):
        body.local(v, body.at(v, {}))


def _reduce(body: Body, op: Reduce) -> None:
    """Along the last rank in a number, along another one row by row in the buffer of the result."""
    v, rank = op.out, op.rank
    start, step = number(op.reducer.start(v.dtype)), REDUCTIONS[op.reducer.step(v.dtype)].number
    text = body.at(op.arg, own(op.arg.dims))
    body.places[v.name] = body.buffer(v) if v.dims else ""
    if op.arg.dims[-1] != rank and v.dims:
        body.loops(v.dims, f"{body.element(v)} = {start};")
        order = tuple(d for d in op.arg.dims if d == rank or d in v.dims)
        body.loops(order, f"{body.element(v)} = {step.format(body.element(v), text)};")
        return
    total = body.fresh(f"c_{v.name}_sum")
    for k, r in enumerate(v.dims):
        body.line(f"{'  ' * k}{body.loop(r)} {{")
    pad = "  " * len(v.dims)
    kind = "double" if op.reducer.sums and not v.dims else TYPES[v.dtype]  # a sum of a whole block is cheap to keep exact
    body.line(f"{pad}{kind} {total} = {start};")
    if op.reducer.sums:
        body.lines.append(f"#pragma omp simd reduction(+ : {total})")
    body.line(f"{pad}{body.loop(rank)} {total} = {step.format(total, text)};")
    if v.dims:
        body.line(f"{pad}{body.element(v)} = {total};")
        body.line("}" * len(v.dims))
    else:
        body.local(v, f"({TYPES[v.dtype]}){total}")


def _prefix(body: Body, op: Prefix) -> None:
    v, x, bound = op.out, f"x_{identifier(op.rank)}", body.layout.bound(op.rank)
    text = body.at(op.arg, {**own(v.dims), **({op.rank: f"{x}_before"} if op.exclusive else {})})
    body.places[v.name] = body.buffer(v)
    before = body.element(v, {**own(v.dims), op.rank: f"{x}_before"})
    rest = tuple(d for d in v.dims if d != op.rank)
    body.line(f"for (long turn = 0; turn < {bound}; ++turn) {{")
    body.indent += 1
    body.line(f"const long {x} = {f'{bound} - 1 - turn' if op.reverse else 'turn'};")
    body.line(f"const long {x}_before = {x} {'+' if op.reverse else '-'} 1;")
    body.line("if (turn == 0) {")
    body.loops(rest, f"  {body.element(v)} = {'0' if op.exclusive else text};")
    body.line("} else {")
    body.loops(rest, f"  {body.element(v)} = {before} + {text};")
    body.line("}")
    body.indent -= 1
    body.line("}")
