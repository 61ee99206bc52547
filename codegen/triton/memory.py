"""Prints what touches memory: the pointers of blocks, loads and stores."""

from __future__ import annotations

from dataclasses import replace

from einfuse.codegen.plan import FLOAT8, FLOATS, Load, Store, Value
from einfuse.codegen.triton.body import STORAGE, Body, Ref, number, wrapped
from einfuse.ir import DType


def pointer(body: Body, tensor: str, index: tuple[Value, ...], clamp: tuple[int, ...], dims: tuple[str, ...]) -> str:
    """``tensor + offsets``: 64-bit scalars for what is one number in a program, then 32-bit offsets inside a block.

    So a tensor may have more than 2^31 elements, while the block size times a stride stays below that.
    """
    scalars, blocks = [body.env[f"tensor {tensor}"].text], []
    for axis, value in enumerate(index):
        ref, stride = body.ref(value), body.env[f"stride {tensor} {axis}"].text
        if axis in clamp:
            extent = body.env[f"extent {tensor} {axis}"].text
            ref = replace(ref, text=f"tl.minimum(tl.maximum({ref.text}, 0), {extent} - 1)", rank=None, literal=None, moved=None)
        if ref.literal == 0:
            continue
        if not ref.dims:
            scalars.append(f"{widened(body, ref)} * {stride}")
        elif ref.rank is not None:
            start = body.starts.get(ref.rank)
            if (tensor, axis) in body.walked:
                scalars.append(body.walked[tensor, axis])
            elif start is not None:
                scalars.append(f"{widened(body, Ref(start, (), 'int'))} * {stride}")
            local = body.env[f"local {ref.rank}"].text
            blocks.append(f"{body.spread(local, ref.dims, dims)} * {stride}")
        elif ref.moved is not None:
            rank, start = ref.moved
            scalars.append(f"{widened(body, Ref(start, (), 'int'))} * {stride}")
            blocks.append(f"{body.spread(body.env[f'local {rank}'].text, ref.dims, dims)} * {stride}")
        else:
            blocks.append(f"{body.spread(f'tl.cast({ref.text}, tl.int64)', ref.dims, dims)} * {stride}")
    return " + ".join(scalars) + (f" + ({' + '.join(blocks)})" if blocks else "")


def widened(body: Body, ref: Ref) -> str:
    """A scalar index as a 64-bit number: a batch times its stride can pass 2^31."""
    if ref.literal is not None:
        return ref.text
    if ref.text not in body.wide:
        simple = ref.text.isidentifier()
        body.wide[ref.text] = body.assign(f"{ref.text if simple else 'at'}_64", f"tl.cast({ref.text}, tl.int64)")
    return body.wide[ref.text]


def wide_stride(body: Body, tensor: str, axis: int) -> str:
    """A stride as a 64-bit number."""
    return widened(body, body.env[f"stride {tensor} {axis}"])


def corner(body: Body, tensor: str, index: tuple[Value, ...]) -> str:
    """Where a block of a described tensor begins."""
    refs = [body.ref(v) for v in index]
    return "[" + ", ".join(body.starts.get(r.rank, "0") if r.rank else r.text for r in refs) + "]"


def print_load(body: Body, op: Load) -> None:
    storage = next(t.storage for t in body.plan.tensors if t.name == op.tensor)
    note = f"# {op.out.name}[{', '.join(op.out.dims)}] = {op.tensor}[{', '.join(_place(body, v) for v in op.index)}]"
    if op.tensor in body.described:
        body.line(note)
        block = f"{body.env[f'tensor {op.tensor}'].text}.load({corner(body, op.tensor, op.index)})"
        block = f"{block}.reshape({body.shape(op.out.dims)})"
        if op.where is not None:
            block = f"tl.where({body.view(body.ref(op.where), op.out.dims)}, {block}, 0.0)"
        name = body.assign(f"{op.out.name}_{storage}", block)
        whole = body.assign(op.out.name, f"{name}.to({body.type('float')})") if op.out.name in body.converted else name
        return remember(body, op.out, whole, name, storage, op.out.dims)
    return print_pointed(body, op, storage, note)


def print_pointed(body: Body, op: Load, storage: str, note: str) -> None:
    """A load through pointers."""
    dims = op.out.dims
    place = pointer(body, op.tensor, op.index, op.clamp, dims)
    spanned = {r for v in op.index for r in body.ref(v).dims}
    if spanned != set(dims):
        place += f" + tl.zeros({body.shape(dims)}, tl.int32)"
    tests = [t for r in dims if (t := body.inside(r, dims))]
    if op.where is not None:
        # Triton's interpreter widens a truth value that it spreads
        tests.append(f"({body.view(body.ref(op.where), dims)} != 0)")
    float_like = storage in FLOATS and storage not in FLOAT8
    args = [place] + ([f"mask={' & '.join(tests)}", f"other={'0.0' if float_like else '0'}"] if tests else [])
    body.line(note)
    wanted = {"float": "f64" if body.plan.compute == "f64" else "f32", "int": "i32", "bool": ""}[op.out.dtype]
    if storage == wanted or (float_like and op.out.name not in body.converted):
        name, tail = body.names.fresh(op.out.name), ")"
        body.lines += wrapped(body.indent, f"{name} = tl.load", args, tail)
        remember(body, op.out, name, name, storage, dims)
    elif float_like:
        raw = body.names.fresh(f"{op.out.name}_{storage}")
        body.lines += wrapped(body.indent, f"{raw} = tl.load", args)
        remember(body, op.out, body.assign(op.out.name, f"{raw}.to({body.type('float')})"), raw, storage, dims)
    else:
        name, head = body.names.fresh(op.out.name), "tl.load"
        if storage in FLOAT8:
            body.helpers.add(f"_{storage}")
            head = f"_{storage}(tl.load"
        tail = ") != 0" if op.out.dtype == "bool" else f"{')' * (storage in FLOAT8)}).to({body.type(op.out.dtype)})"
        body.lines += wrapped(body.indent, f"{name} = {head}", args, tail)
        remember(body, op.out, name, None, storage, dims)


def _place(body: Body, value: Value) -> str:
    """An index as a comment shows it."""
    ref = body.ref(value)
    return ref.rank or ref.text


def stored(body: Body, text: str, storage: str, dtype: DType) -> str:
    """``text``, a value in the compute type, as an element of memory."""
    if storage == "bf16" and dtype == "float" and body.plan.compute == "f32":
        body.helpers.add("_bf16")
        return f"_bf16({text})"
    return text if STORAGE[storage] == body.type(dtype) else f"tl.cast({text}, {STORAGE[storage]})"


def remember(body: Body, out: Value, text: str, raw: str | None, storage: str, dims: tuple[str, ...]) -> None:
    body.env[out.name] = Ref(text, dims, out.dtype, clean=frozenset(dims), raw=raw, storage=storage)


def print_store(body: Body, op: Store) -> None:
    value = body.ref(op.value)
    spanned = {r for v in op.index for r in body.ref(v).dims} | set(value.dims)
    dims = tuple(r for r in body.plan.order if r in spanned)
    storage = next(t.storage for t in body.plan.tensors if t.name == op.tensor)
    tests = [t for r in dims if (t := body.inside(r, dims))]
    text = body.view(value, dims)
    if value.literal is None:
        text = stored(body, text, storage, value.dtype)
    else:
        text = number(value.literal, "float" if storage in FLOATS else "int")
    if op.tensor in body.described:
        shape = ", ".join(["1"] * (len(op.index) - 2) + [body.width(r) for r in dims])
        desc = body.env[f"tensor {op.tensor}"].text
        body.line(f"# {op.tensor}[{', '.join(_place(body, v) for v in op.index)}]")
        body.lines += wrapped(body.indent, f"{desc}.store", [corner(body, op.tensor, op.index), f"({text}).reshape([{shape}])"])
        return
    args = [pointer(body, op.tensor, op.index, (), dims), text] + ([f"mask={' & '.join(tests)}"] if tests else [])
    body.line(f"# {op.tensor}[{', '.join(_place(body, v) for v in op.index)}]")
    body.lines += wrapped(body.indent, "tl.store", args)
