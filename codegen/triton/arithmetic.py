"""Prints arithmetic: scalar functions, reductions and matrix products."""

from __future__ import annotations

from dataclasses import replace

from einfuse.codegen.plan import FUNCTIONS, Dot, Map, Reduce
from einfuse.codegen.triton.body import Body, Ref, number
from einfuse.codegen.triton.functions import FORMS, Operand, Target, reduction
from einfuse.codegen.triton.memory import stored
from einfuse.codegen.triton.simplify import EXP_DIFFERENCE

INLINE = 90
"""The longest expression that is written inside another one."""


def print_map(body: Body, op: Map) -> None:
    refs = [body.ref(a) for a in op.args]
    if op.fn == EXP_DIFFERENCE:
        return exp_difference(body, op, refs)
    f = FUNCTIONS[op.fn]
    same = op.fn == "copy" or (op.fn == "floor" and refs[0].dtype == "int")
    if same and refs[0].dims == op.out.dims and refs[0].dtype == op.out.dtype:
        body.env[op.out.name] = refs[0]
        return None
    if all(r.literal is not None for r in refs) and op.fn != "copy" and not op.out.dims:
        value = f.fold(*(r.literal for r in refs))
        body.env[op.out.name] = Ref(number(value, op.out.dtype), (), op.out.dtype, value, nonnegative=value >= 0)
        return None
    values = f.values(refs)
    kind = f.computes_in([r.dtype for r in values])
    args = [*refs[: len(refs) - len(values)], *(body.convert(r, kind) for r in values)]
    target = Target(body.type(op.out.dtype), body.helpers, body.plan.narrow)
    united = tuple(r for r in body.plan.order if any(r in a.dims for a in args))
    text = FORMS[op.fn](tuple(Operand(body.view(a, united), a.literal, a.nonnegative) for a in args), target)
    if united != op.out.dims:
        text = f"tl.broadcast_to({body.spread(text, united, op.out.dims)}, {body.shape(op.out.dims)})"
    signs = op.out.dtype == "int" and f.nonnegative([a.nonnegative for a in values])
    clean = cleanness(op.fn, refs)
    if op.out.name in body.inlined and len(text) <= INLINE:
        call = united != op.out.dims or (op.fn in ("max", "min", "//", "%") and " // " not in text and " % " not in text)
        body.env[op.out.name] = Ref(text if call else f"({text})", op.out.dims, op.out.dtype, clean=clean, nonnegative=signs)
    else:
        body.bind(op.out, text, clean=clean, nonnegative=signs)
    if op.fn in ("+", "-") and op.out.dtype == "int":
        body.env[op.out.name] = replace(body.env[op.out.name], moved=_moved(body, op.fn, *refs))
    return None


def _moved(body: Body, fn: str, a: Ref, b: Ref) -> tuple[str, str] | None:
    """What is said of a sum or a difference in `Ref.moved`."""
    if fn == "+" and not a.dims:
        a, b = b, a
    if b.dims:
        return None
    rank, start = a.moved or (a.rank, body.starts.get(a.rank or "", "0"))
    return None if rank is None else (rank, f"({start} {fn} {b.text})")


def cleanness(fn: str, refs: list[Ref]) -> frozenset[str]:
    """The ranks along which the result is 0 in the padding, given the same of its operands."""

    def clean(ref: Ref, rank: str) -> bool:
        return rank in ref.clean or ref.literal == 0

    every = frozenset(r for a in refs for r in a.dims)
    if FUNCTIONS[fn].keeps_zero:
        return refs[0].clean
    if fn == "select":
        return frozenset(r for r in every if all(clean(a, r) for a in refs[1:]))
    if fn in ("+", "-", "max", "min"):
        return frozenset(r for r in every if all(clean(a, r) for a in refs))
    if fn == "*":  # 0 * x is 0 where x is finite in the padding: it is clean, or one number along the rank
        a, b = refs
        pairs = ((a, b), (b, a))
        return frozenset(r for r in every if any(clean(x, r) and (clean(y, r) or r not in y.dims) for x, y in pairs))
    return frozenset(r for r in refs[0].clean if r not in refs[1].dims) if fn == "/" else frozenset()


def exp_difference(body: Body, op: Map, refs: list[Ref]) -> None:
    dims = op.out.dims
    a, b = (body.convert(r, "float") for r in refs[:2])
    factor = f"({refs[2].text} * LOG2E)" if len(refs) == 3 else "LOG2E"
    shift = body.spread(f"({b.text} * LOG2E)", b.dims, dims)
    body.bind(op.out, f"tl.exp2({body.view(a, dims)} * {factor} - {shift})")


def print_reduce(body: Body, op: Reduce) -> None:
    ref = body.ref(op.arg)
    dims = tuple(r for r in body.plan.order if r in (*ref.dims, op.rank))
    if ref.dims != dims:
        ref = replace(ref, text=body.block(ref, dims, ref.dtype), dims=dims, literal=None, clean=frozenset())
    axis = dims.index(op.rank)
    if ref.dtype == "bool":
        found = f"tl.max(tl.cast({body.filled(ref, op.rank, 'False', dims)}, tl.int32), axis={axis}) > 0"
        if op.instead is None:
            body.bind(op.out, found)
            return
        body.bind(op.out, body.block(body.ref(op.instead), op.out.dims, "bool"))
        body.line(f"if not {body.env[f'enough {op.enough}'].text}:")
        body.line(f"    {body.ref(op.out).text} = {found}")
        return
    untouched = op.reducer.sums and op.rank in ref.clean
    start = number(op.reducer.start(ref.dtype), ref.dtype)
    block = body.view(ref, dims) if untouched else body.filled(ref, op.rank, start, dims)
    body.bind(op.out, reduction(op.reducer.combine, block, axis, len(dims), body.helpers))


def print_dot(body: Body, op: Dot) -> None:
    a, b = body.ref(op.a), body.ref(op.b)
    if op.where is not None:
        b = existing(body, b, body.ref(op.where))
    left = op.out.dims[0] if op.out.dims else ""
    if body.layout.multiplies(op) and left in b.dims:
        a, b = b, a
    note = f"  # {op.out.name}[{', '.join(op.out.dims)}] = sum[{op.rank}] {op.a.name} * {op.b.name}"
    acc = body.block(body.ref(op.acc), op.out.dims, "float") if op.acc else None
    if body.layout.multiplies(op):
        x = factor(body, op, a, b, a.dims[0] == op.rank)
        y = factor(body, op, b, a, b.dims[0] != op.rank)
        dtype = body.plan.narrow if op.narrow else "f32"
        args = [
            x,
            y,
            *([f"acc={acc}"] if acc else []),
            *([f'input_precision="{body.precision}"'] if dtype == "f32" else []),
        ]
        if dtype == "bf16":
            body.helpers.add("_dot")
        text = f"{'_dot' if dtype == 'bf16' else 'tl.dot'}({', '.join(args)})"
    elif body.layout.multiplies_rows(op) and not op.narrow:
        body.helpers.add("_row_dot")
        text = f'_row_dot({factor(body, op, a, b, False)}, {factor(body, op, b, a, False)}, "{body.precision}")'
    else:
        text = sum_of_products(body, op, a, b)
        text = f"{acc} + {text}" if acc else text
    body.bind(op.out, text + note)


def existing(body: Body, ref: Ref, where: Ref) -> Ref:
    """An operand with 0 at the points that do not exist."""

    def text(it: str) -> str:
        return f"tl.where({body.spread(where.text, where.dims, ref.dims)}, {it}, 0.0)"

    return replace(ref, text=text(ref.text), raw=text(ref.raw) if ref.raw else None)


def factor(body: Body, op: Dot, ref: Ref, other: Ref, transpose: bool) -> str:
    """An operand of ``tl.dot`` in its dtype; padding along the contracted rank must be 0 on both sides."""
    clean = op.rank in ref.clean
    if op.narrow and clean and ref.raw and ref.storage == body.plan.narrow:
        text = ref.raw
    else:
        ref = body.convert(ref, "float")
        text = ref.text if clean else body.filled(ref, op.rank, "0.0", ref.dims)
        in_storage = ref.raw == ref.text and ref.storage not in ("f32", "f64", "")
        if op.narrow:
            text = narrowed(body, text)
        elif body.plan.narrow == "f16" and body.precision == "tf32" and not in_storage:
            body.helpers.add("_tf32")
            text = f"_tf32({text})"
        elif in_storage:
            text = f"tl.cast({text}, {body.type('float')})"
    return f"tl.trans({text})" if transpose else text


def narrowed(body: Body, text: str) -> str:
    """A computed operand of a matrix product in the plan's 16 bits."""
    if not body.packs:
        return stored(body, text, body.plan.narrow, "float")
    body.helpers.add(helper := f"_packed_{body.plan.narrow}")
    return f"{helper}({text})"


def sum_of_products(body: Body, op: Dot, a: Ref, b: Ref) -> str:
    """What ``tl.dot`` does not take (fp64, vectors, blocks below 16), as a broadcast product and a sum."""
    dims = tuple(r for r in body.plan.order if r in (*a.dims, *b.dims))
    x, y = (body.spread(factor(body, op, r, o, False), r.dims, dims) for r, o in ((a, b), (b, a)))
    if op.narrow and body.plan.narrow in ("bf16", "f16"):
        x, y = (f"tl.cast({t}, tl.float32)" for t in (x, y))
    return reduction("+", f"{x} * {y}", dims.index(op.rank), len(dims), body.helpers)
