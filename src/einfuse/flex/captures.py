"""What functions capture: numbers, found without running a function and replaced by ones that know their place, and tensors.

    def windowed(width):
        def mask(b, h, q_idx, kv_idx): return q_idx - kv_idx <= width
        return mask

The mask of ``windowed(256)`` is traced with a ``width`` that is an `Int`: an int in every respect, which becomes a run-time argument
where it meets a symbolic value. Arithmetic with such numbers gives such numbers again, with a tag that says how they were made. What
needs a plain number (``range``, ``if``) gets one, and the trace is then the trace for this value. Functions inside closures, tuples,
lists and partials are followed. Numbers in globals and in attributes of objects stay as they are: they become part of the kernel.

Captured tensors are read at coordinates; a trace has to know the bounds of what they hold.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import CellType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.weak import WeakIdKeyDictionary

from einfuse.flex.arithmetic import fitted
from einfuse.flex.value import CONDITION, UNKNOWN, Bounds, Part, Value
from einfuse.ir import Expr, call, const, index, load, size
from einfuse.runtime.capture import capturing
from einfuse.runtime.recent import Recent
from einfuse.runtime.unchanged import holder, place, told

if TYPE_CHECKING:
    from einfuse.flex.tracer import Tracer

# -- numbers ---------------------------------------------------------------------------------------------------------------------

Tag = tuple[object, ...]
"""Where a number was found, or how it was made from others: equal tags are the same number in every call."""


class Int(int):
    """An int with a tag."""

    tag: Tag

    def __new__(cls, value: int, tag: Tag) -> Int:
        made = super().__new__(cls, value)
        made.tag = tag
        return made


class Float(float):
    """A finite float with a tag."""

    tag: Tag

    def __new__(cls, value: float, tag: Tag) -> Float:
        made = super().__new__(cls, value)
        made.tag = tag
        return made


def tagged(value: object, tag: Tag) -> object:
    """``value`` with a tag, where it is a number that can be passed to a kernel; anything else as it is."""
    if type(value) is int:
        return Int(value, tag)
    if type(value) is float and math.isfinite(value):
        return Float(value, tag)
    return value


def _plain(x: object) -> Any:
    return int(x) if type(x) is Int else float(x) if type(x) is Float else x


def _tag(x: object) -> object:
    return x.tag if isinstance(x, Int | Float) else x


def _operator(name: str, reflected: bool) -> Callable[..., object]:
    compute = getattr(operator, name)

    def run(self: Int | Float, other: object) -> object:
        if not isinstance(other, int | float):
            return NotImplemented
        a, b = (other, self) if reflected else (self, other)
        return tagged(compute(_plain(a), _plain(b)), (name, _tag(a), _tag(b)))

    return run


def _unary(name: str) -> Callable[..., object]:
    compute = getattr(operator, name)

    def run(self: Int | Float) -> object:
        return tagged(compute(_plain(self)), (name, self.tag))

    return run


for _kind in (Int, Float):
    for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
        setattr(_kind, f"__{_name}__", _operator(_name, False))
        setattr(_kind, f"__r{_name}__", _operator(_name, True))
    for _name in ("neg", "pos", "abs"):
        setattr(_kind, f"__{_name}__", _unary(_name))


@dataclass(slots=True)
class Captures:
    """What was found in the closures of the functions of one call."""

    names: dict[int, str] = field(default_factory=dict)
    cells: dict[int, tuple[CellType, CellType, str, object]] = field(default_factory=dict)  # by id: old, new, variable, content
    functions: dict[int, tuple[FunctionType, FunctionType]] = field(default_factory=dict)
    lists: list[tuple[str, list[object], list[object]]] = field(default_factory=list)  # variable, list, what it held

    def lifted(self, x: Any, name: str = "", path: Tag = ()) -> Any:
        """``x`` with the numbers inside it replaced; the very same object where there are none."""
        if isinstance(x, torch.Tensor):
            self.names.setdefault(id(x), name)
        if type(x) is FunctionType:
            return self._function(x)
        if type(x) is functools.partial:
            func = self.lifted(x.func)
            args = tuple(self.lifted(a, "argument", (*path, n)) for n, a in enumerate(x.args))
            keywords = {k: self.lifted(a, k, (*path, k)) for k, a in x.keywords.items()}
            return functools.partial(func, *args, **keywords)
        if type(x) is MethodType:
            return MethodType(self.lifted(x.__func__), x.__self__)
        if type(x) in (tuple, list):
            parts = [self.lifted(a, name, (*path, n)) for n, a in enumerate(x)]
            made = x if all(a is b for a, b in zip(x, parts, strict=True)) else type(x)(parts)
            if isinstance(made, list):
                self.lists.append((name, made, parts))
            return made
        return tagged(x, (name, *path))

    def _function(self, fn: FunctionType) -> FunctionType:
        if id(fn) in self.functions:
            return self.functions[id(fn)][1]
        for name in fn.__code__.co_names:
            if isinstance(value := fn.__globals__.get(name), torch.Tensor):
                self.names.setdefault(id(value), name)
        self.functions[id(fn)] = (fn, fn)  # a function that captures itself keeps the original inside
        place = (fn.__qualname__, fn.__code__.co_firstlineno)
        cells = fn.__closure__ or ()
        new = tuple(self._cell(c, n, (*place, n)) for c, n in zip(cells, fn.__code__.co_freevars, strict=True))
        defaults = self.lifted(fn.__defaults__, "default", place) if fn.__defaults__ else fn.__defaults__
        if all(a is b for a, b in zip(cells, new, strict=True)) and defaults is fn.__defaults__:
            return fn
        made = FunctionType(fn.__code__, fn.__globals__, fn.__name__, defaults, new or None)
        made.__kwdefaults__, made.__qualname__ = fn.__kwdefaults__, fn.__qualname__
        made.__dict__.update(fn.__dict__)
        self.functions[id(fn)] = (fn, made)
        return made

    def _cell(self, cell: CellType, name: str, path: Tag) -> CellType:
        if id(cell) in self.cells:
            return self.cells[id(cell)][1]
        try:
            content = cell.cell_contents
        except ValueError:  # a variable without a value yet
            return cell
        value = self.lifted(content, name, path)
        new = cell if value is content else CellType(value)
        self.cells[id(cell)] = (cell, new, name, value)
        return new

    def assigned(self) -> str | None:
        """A captured variable that was given another value, or a list other parts, while the functions ran; None: there is none."""
        cells = (name for _, new, name, value in self.cells.values() if new.cell_contents is not value)
        lists = (name for name, x, parts in self.lists if len(x) != len(parts) or any(map(operator.is_not, x, parts)))
        return next(itertools.chain(cells, lists), None)


# -- tensors ---------------------------------------------------------------------------------------------------------------------

READABLE = (
    *(torch.bool, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16),
)
LEAST = -3.0e38
"""Below every score that is not minus infinity."""


@dataclass(slots=True)
class Captured:
    """A captured tensor, as an input: its name, what it holds, and the size of every axis."""

    name: str
    tensor: torch.Tensor
    axes: list[Expr]


# -- reading -------------------------------------------------------------------------------------------------------------------


def read(t: Tracer, tensor: torch.Tensor, indices: Sequence[Any]) -> Value | Part:
    """``tensor[indices]``, of which at least one is symbolic or none is there."""
    tensor, found = _view(t, tensor, list(indices))
    if len(found) > tensor.ndim:
        t.refuse(f"{len(found)} indices for a captured tensor of {tensor.ndim} axes, shape {tuple(tensor.shape)}")
    left = tensor.shape[len(found) :]
    if len(left) > 1:
        return Part(t, tensor, tuple(found))
    axis = t.common_axis(*found)
    if left:
        if axis is not None:
            t.refuse("a vector of indices picks vectors", "index every axis of the tensor")
        axis = t.axis(left[0])
        found.append(Value(t, index(axis), torch.int64, axis, bounds=(0, left[0] - 1)))
    captured = _captured(t, tensor)
    for n, i in enumerate(found):
        _size_of(t, captured, n, i.expr)
    expr = load(captured.name, *(i.expr for i in found))
    held = contents(tensor, [i.bounds for i in found])
    dtype = t.dtype if tensor.is_floating_point() else tensor.dtype
    alive = call(">", expr, const(LEAST)) if held.minus_infinity else None
    nodes = t.within(1 + sum(i.nodes for i in found))
    return fitted(t, Value(t, expr, dtype, axis, alive, bounds=held.bounds, nodes=nodes))


def _view(t: Tracer, tensor: torch.Tensor, indices: list[Any]) -> tuple[torch.Tensor, list[Value]]:
    """Slices done for good, on a view; symbolic and plain indices as values, in order."""
    if Ellipsis in [i for i in indices if i is Ellipsis]:
        at = next(n for n, i in enumerate(indices) if i is Ellipsis)
        missing = tensor.ndim - (len(indices) - 1)
        indices[at : at + 1] = [slice(None)] * missing
    if any(i is None or isinstance(i, slice) for i in indices):
        keep = tuple(i if i is None or isinstance(i, slice) else slice(None) for i in indices)
        tensor = tensor[keep]
        whole = [n for n, i in enumerate(indices) if i is None or isinstance(i, slice)]
        rest = list(range(len(indices), tensor.ndim))
        picked = [n for n in range(len(indices)) if n not in whole]
        tensor = tensor.permute(*picked, *whole, *rest)
        indices = [indices[n] for n in picked]
    out = []
    for n, i in enumerate(indices):
        if type(i) is int and i < 0:
            i += tensor.shape[n]
        v = t.value(i)
        if v.kind != "int":
            t.refuse(f"index {n} is a {v.kind}, an integer is needed")
        out.append(v)
    return tensor, out


def _captured(t: Tracer, tensor: torch.Tensor) -> Captured:
    if id(tensor) not in t.tensors:
        if tensor.dtype not in READABLE:
            t.refuse(f"a captured tensor of {tensor.dtype} cannot be read", f"known: {', '.join(map(str, READABLE))}")
        if tensor.device != t.device and tensor.ndim:
            t.refuse(f"a captured tensor is on {tensor.device}, the scores are on {t.device}")
        name = t.input_name(t.captures.names.get(id(tensor), "") or "table")
        t.tensors[id(tensor)] = Captured(name, tensor, [size(f"{name}_size{n}") for n in range(tensor.ndim)])
    return t.tensors[id(tensor)]


def _size_of(t: Tracer, captured: Captured, n: int, i: Expr) -> None:
    """An axis read at a plain coordinate has the size of that coordinate, where it is so: no read can leave it then."""
    if i.op == "index" and captured.axes[n] == size(f"{captured.name}_size{n}"):
        extent, named = t.extent(i.name)
        if captured.tensor.shape[n] == extent:
            captured.axes[n] = named


# -- what they hold ------------------------------------------------------------------------------------------------------------


class Contents(NamedTuple):
    """Of a part of a tensor: the bounds of its numbers, and whether minus infinities are among them."""

    bounds: Bounds
    minus_infinity: bool = False


_KNOWN = WeakIdKeyDictionary()  # of the tensors that hold memory: by place of a view in it, what was found


def contents(x: torch.Tensor, at: Sequence[Bounds] = ()) -> Contents:
    """What a captured tensor holds where it is read, at indices between these bounds. A device is asked once for every version of it."""
    if x.dtype == torch.bool or x.device.type == "meta":
        return Contents(CONDITION if x.dtype == torch.bool else UNKNOWN)
    if capturing():  # what a graph is replayed with, nobody knows
        return Contents(UNKNOWN, x.is_floating_point())
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = bare(x)
    else:
        x = x[tuple(slice(*_span(b, n)) for b, n in zip(at, x.shape, strict=False))]
    now = place(x)
    if not told(now):
        return _look(x)
    known: Recent[tuple[object, ...], Contents] = _KNOWN.setdefault(holder(x), Recent(8))
    return known.made(now, lambda: _look(x))


def _span(b: Bounds, extent: int) -> tuple[int, int]:
    """The part of an axis between two indices: one that leaves it counts as the nearest, as in kernels."""
    first, last = (0 if b[0] < 0 else min(b[0], extent - 1)), (min(max(b[1], 0), extent - 1))
    return int(first), int(last) + 1


def _look(x: torch.Tensor) -> Contents:
    x = x.detach()
    if not x.numel():
        return Contents(UNKNOWN)
    low, high = torch.stack(torch.aminmax(x)).tolist()
    if not x.is_floating_point():
        return Contents((low, high))
    if math.isnan(low):
        return Contents(UNKNOWN, bool(torch.isneginf(x).any()))
    return Contents((low, high), low == -math.inf)


def bare(x: torch.Tensor) -> torch.Tensor:
    """Of what vmap maps over, all at once: a trace is one for all."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


class Same:
    """A tensor that equals those that hold the same."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same):
            return NotImplemented
        a, b = bare(self.tensor).detach(), bare(other.tensor).detach()
        if a is b or a.device.type == "meta" or (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()):
            return a.shape == b.shape
        return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())

    __hash__ = None  # type: ignore[assignment]  # what it holds may change
