"""Prints what touches the caller's memory: neighbours where the vectorised rank is a plain coordinate, lane by lane elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from einfuse.codegen.cpu.functions import Ref, converted, spread
from einfuse.codegen.plan import FLOATS, Coordinate, Load, Storage, Store, Value, reads
from einfuse.ir import DType

if TYPE_CHECKING:
    from einfuse.codegen.cpu.loops import NestPrinter

ELEMENTS: dict[Storage, str] = {
    "f64": "double",
    "f32": "float",
    "bf16": "bf16",
    "f16": "f16",
    "e4m3": "e4m3",
    "e5m2": "e5m2",
    "i64": "int64_t",
    "i32": "int32_t",
    "i16": "int16_t",
    "i8": "int8_t",
    "u8": "uint8_t",
    "bool": "bool",
}


def element_type(storage: Storage) -> DType:
    return "float" if storage in FLOATS else "bool" if storage == "bool" else "int"


def stride(tensor: str, axis: int) -> str:
    return f"{tensor}_s{axis}"


def offset(tensor: str, terms: list[tuple[int, str]]) -> str:
    """``pointer + index * stride + ...`` for scalar indices."""
    return " + ".join([tensor, *(f"{text} * {stride(tensor, axis)}" for axis, text in terms)])


def scalar_index(ref: Ref, tensor: str, axis: int, clamp: tuple[int, ...]) -> str:
    if ref.dtype == "bool":
        ref = converted(ref, "int")
    return f"clamped({ref.text}, {tensor}_n{axis})" if axis in clamp else ref.text


def scalar_load(op: Load, index: list[Ref], where: Ref | None, tensor: str, storage: Storage) -> Ref:
    """One element."""
    place = offset(tensor, [(n, scalar_index(x, tensor, n, op.clamp)) for n, x in enumerate(index)])
    kind = element_type(storage)
    text = f"wide(*({place}))"
    if where is not None:
        text = f"({where.text} ? {text} : {'T(0)' if kind == 'float' else 'false' if kind == 'bool' else '0L'})"
    return converted(Ref(text, kind), op.out.dtype)


def load(nest: NestPrinter, op: Load) -> Ref:
    """The elements at the current point of a nest."""
    arg = nest.tensors[op.tensor]
    tensor = nest.scope.scalars[f"tensor {op.tensor}"].text
    rank = nest.nest.dims[-1]
    index = [nest.ref(v) for v in op.index]
    where = nest.ref(op.where) if op.where is not None else None
    if rank not in op.out.dims:
        return scalar_load(op, index, where, tensor, arg.storage)
    count = remaining(nest, rank)
    along = plain_axis(nest, op.index, rank)
    kind = element_type(arg.storage)
    if along is not None and along not in op.clamp and (where is None or not where.vector):
        terms = [(n, first(nest, rank) if n == along else scalar_index(x, tensor, n, op.clamp)) for n, x in enumerate(index)]
        place = offset(tensor, terms)
        text = f"load_along({place}, {stride(tensor, along)}, {count if where is None else f'{where.text} ? {count} : 0'})"
        return converted(Ref(text, kind, True), op.out.dtype)
    lanes, rest = (
        [(n, scalar_index(x, tensor, n, op.clamp)) for n, x in enumerate(index) if x.vector is vector]
        for vector in (True, False)
    )
    at = offset(tensor, rest)
    if where is not None and not where.vector:
        count = f"{where.text} ? {count} : 0"
    if len(lanes) == 1 and (where is None or not where.vector):
        ((n, places),) = lanes
        text = f"look_up({at}, {places}, {stride(tensor, n)}, {count})"
    else:
        offsets = " + ".join(f"far({places}) * {stride(tensor, n)}" for n, places in lanes) or "VL{}"
        alive = f", {where.text}" if where is not None and where.vector else ""
        text = f"gather({at}, {offsets}, {count}{alive})"
    return converted(Ref(text, kind, True), op.out.dtype)


def lies(nest: NestPrinter, op: Load) -> bool:
    """Whether rows of a load are copied as they lie: in bf16, for products alone."""
    name, rank = op.out.name, nest.nest.dims[-1]
    if (name, "rows") not in nest.scope.forms or name in nest.scope.places or nest.tensors[op.tensor].storage != "bf16":
        return False
    along = plain_axis(nest, op.index, rank)
    if along is None or along in op.clamp or (op.where is not None and rank in op.where.dims):
        return False
    return op.out.dims == nest.nest.dims and not any(v == op.out for x in nest.nest.ops for v in reads(x))


def copied(nest: NestPrinter, op: Load) -> str:
    """A line that copies a row of what `lies`."""
    tensor, rank = nest.scope.scalars[f"tensor {op.tensor}"].text, nest.nest.dims[-1]
    along, extent = plain_axis(nest, op.index, rank), nest.scope.extents[rank]
    terms = [
        (n, extent.start if n == along else scalar_index(nest.ref(v), tensor, n, op.clamp)) for n, v in enumerate(op.index)
    ]
    where = "" if op.where is None else f"{nest.ref(op.where).text} ? "
    count = f"{where}{extent.count} : 0" if where else extent.count
    place = offset(tensor, [(n, x) for n, x in terms if x != "0"])
    halves = nest.scope.forms[op.out.name, "rows"]
    row = f"{halves.pointer} + {nest.at[op.out.dims[0]]} * ({halves.row})"
    assert along is not None, "it lies"
    return f"copy_halves<{extent.most}>({row}, {place}, {stride(tensor, along)}, {count});"


def lane_offset(index: list[Ref], tensor: str, clamp: tuple[int, ...]) -> str:
    parts = []
    for n, x in enumerate(index):
        lane = Ref(f"(long){x.text}[l]", x.dtype) if x.vector else x
        parts.append(f"{scalar_index(lane, tensor, n, clamp)} * {stride(tensor, n)}")
    return " + ".join(parts) or "0L"


def remaining(nest: NestPrinter, rank: str) -> str:
    """How many coordinates exist from the current lane on."""
    return f"{nest.scope.extents[rank].count} - {nest.at[rank]}"


def first(nest: NestPrinter, rank: str) -> str:
    """The coordinate of the first lane."""
    start = nest.scope.extents[rank].start
    return nest.at[rank] if start == "0" else f"({start} + {nest.at[rank]})"


def plain_axis(nest: NestPrinter, index: tuple[Value, ...], rank: str) -> int | None:
    """The axis that the coordinate of ``rank`` alone runs along, if no other axis depends on it."""
    axes = [n for n, v in enumerate(index) if rank in v.dims]
    if len(axes) != 1:
        return None
    recipe = nest.scope.recipes.get(index[axes[0]].name)
    return axes[0] if isinstance(recipe, Coordinate) else None


def store(nest: NestPrinter, op: Store) -> list[str]:
    """Lines that write the current point of a nest."""
    arg = nest.tensors[op.tensor]
    tensor = nest.scope.scalars[f"tensor {op.tensor}"].text
    rank = nest.nest.dims[-1]
    index = [nest.ref(v) for v in op.index]
    value = nest.ref(op.value)
    if element_type(arg.storage) == "float" and value.dtype != "float":
        value = converted(value, "float")
    count, along = remaining(nest, rank), plain_axis(nest, op.index, rank)
    if along is not None and value.dtype == "float":
        terms = [(n, first(nest, rank) if n == along else scalar_index(x, tensor, n, ())) for n, x in enumerate(index)]
        return [f"store_along({offset(tensor, terms)}, {stride(tensor, along)}, {count}, {spread(value)});"]
    at = lane_offset(index, tensor, ())
    truth = "true" if value.dtype == "bool" else "false"
    return [f"scatter({tensor}, {count}, [&](int l) {{ return {at}; }}, {spread(value)}, {truth});"]


def scalar_store(op: Store, index: list[Ref], value: Ref, tensor: str) -> str:
    place = offset(tensor, [(n, scalar_index(x, tensor, n, ())) for n, x in enumerate(index)])
    return f"narrow({place}, {value.text});"
