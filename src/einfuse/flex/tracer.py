"""A trace of score and mask functions: calls each once with symbolic values, and collects what they capture.

The same tracer traces all functions of one attention, so that what both capture is one input. It runs the functions as they are,
at every call: a function whose captures or globals have changed is another trace, never a stale one.
"""

from __future__ import annotations

import functools
import linecache
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from einfuse.dsl import pure
from einfuse.flex.lift import Captures
from einfuse.flex.numbers import Float, Int, Tag
from einfuse.flex.place import check_signature, here, name, place, raised_at
from einfuse.flex.tables import Contents, minus_infinite
from einfuse.flex.value import Kind, Part, Value, flat
from einfuse.flex.watch import refuse_impure, watched
from einfuse.ir import Einsum, Expr, Rank, Scalar, SpecError, call, const, index, load, size
from einfuse.ir import expr as ex
from einfuse.runtime.recent import Recent

RANKS = {"b": "B", "h": "H", "i": "Nq", "j": "Nk"}
"""The coordinates of a score, and the names of their sizes."""
_KINDS: dict[torch.dtype, Kind] = {
    torch.bool: "bool",
    **dict.fromkeys((torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8), "int"),
    **dict.fromkeys((torch.float64, torch.float32, torch.bfloat16, torch.float16), "float"),
}


SHORT, LONGEST = 8, 64
"""The longest vectors whose reductions are written out, in scores and in masks: what is written out, the analysis of masks sees."""
_COMBINE = {"sum": "+", "max": "max", "min": "min", "any": "or", "prod": "*"}
_PURE: Recent[tuple[object, ...], bool] = Recent(1024)
"""The code of functions that were seen to compute the same again."""
_LEAST = -3.0e38
"""Below every score that is not minus infinity."""


@dataclass(slots=True)
class Captured:
    """A captured tensor, as an input: its name, what it holds, and the size of every axis."""

    name: str
    tensor: torch.Tensor
    kind: Kind
    axes: list[Expr]


@dataclass(frozen=True, slots=True)
class Number:
    """A captured number, as a run-time argument."""

    name: str
    kind: Kind
    value: Scalar


class Tracer:
    """One trace. ``sizes`` are the extents of the four coordinates; ``dtype`` is that of the scores."""

    def __init__(self, sizes: dict[str, int], dtype: torch.dtype, device: torch.device) -> None:
        self.sizes, self.dtype, self.device = sizes, dtype, device
        self.captures = Captures()
        self.tensors: dict[int, Captured] = {}
        self.numbers: dict[Tag, Number] = {}
        self.ranks: dict[str, Rank] = {}
        self.statements: list[Einsum] = []
        self.masking = False

    # -- running -----------------------------------------------------------------------------------------------------------

    def run(self, fn: Callable[..., Any], *first: Value) -> Value:
        """``fn(*first, b, h, i, j)``. Raises SpecError that names the operation and the line where it cannot be traced.

        A function that is met for the first time is called twice more, to see that it computes the same again.
        """
        try:
            check_signature(fn, 4 + len(first))
            lifted = self.captures.lifted(fn)
            code = (type(fn), self.masking, *(made.__code__ for _, made in self.captures.functions.values()))
            _PURE.made(code, lambda: pure.traced(name(fn), place(fn), lambda: self._again(fn, first)) is not None)
            return self._call(fn, lifted, first)
        except (
            TypeError,
            IndexError,
            AttributeError,
            KeyError,
        ) as error:  # what Python and numpy say of a Value they cannot use
            said = SpecError(f"`{name(fn)}` cannot be traced: {type(error).__name__}: {error}", raised_at(error))
            file = said.loc.file if said.loc is not None else ""
            raise said.within("".join(linecache.getlines(file))) from error
        except SpecError as error:
            file = error.loc.file if error.loc is not None else ""
            raise error.within("".join(linecache.getlines(file))) from None

    def _call(self, fn: Callable[..., Any], lifted: Callable[..., Any], first: Sequence[Value]) -> Value:
        coordinates = [Value(self, index(r), "int") for r in RANKS]
        with watched(self):
            result = lifted(*first, *coordinates)
        return self._result(fn, result)

    def _again(self, fn: Callable[..., Any], first: Sequence[Value]) -> tuple[object, ...]:
        """Everything that a trace of its own depends on."""
        own = Tracer(self.sizes, self.dtype, self.device)
        own.masking = self.masking
        x = own._call(fn, own.captures.lifted(fn), [Value(own, v.expr, v.kind) for v in first])
        captured = [(c.name, c.kind, c.axes, Contents(c.tensor)) for c in own.tensors.values()]
        return x.expr, x.kind, x.alive, own.statements, list(own.numbers.values()), captured

    def _result(self, fn: Callable[..., Any], result: object) -> Value:
        at, word = place(fn), name(fn)
        assigned = self.captures.assigned()
        if assigned is not None:
            raise SpecError(f"`{word}` assigns to the captured variable `{assigned}`", at, "a score has no order of evaluation")
        if result is None or isinstance(result, Part | tuple | list):
            found = "nothing" if result is None else f"a {type(result).__name__}"
            raise SpecError(f"`{word}` returns {found}", at, "return one number, or one condition")
        value = self.value(result)
        if value.axis is not None:
            raise SpecError(f"`{word}` returns {self.length(value.axis)} numbers", at, "reduce them: x.sum(-1)")
        return value

    def condition(self, fn: Callable[..., Any]) -> Value:
        """A mask function's condition. Raises SpecError where it gives a number."""
        self.masking = True
        value = self.run(fn)
        self.masking = False
        if value.kind != "bool":
            raise SpecError(f"`{name(fn)}` returns a {value.kind}, a mask is a condition", place(fn), "compare it: x != 0")
        return value

    def refuse(self, message: str, hint: str = "") -> NoReturn:
        raise SpecError(message, here(), hint)

    def apply(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """A function or method of torch, by name."""
        from einfuse.flex.operations import OPERATIONS

        refuse_impure(self, name)
        plain = name.strip("_") if name.startswith("__") else name
        if plain.endswith("_") and plain[:-1] in OPERATIONS:
            self.refuse(f"`{plain}` works in place, which a traced function cannot", f"use `{plain[:-1]}`")
        if plain not in OPERATIONS:
            self.refuse(
                f"`{plain}` cannot be traced", "scores and masks are made of pointwise functions, captured tensors and indices"
            )
        if any(isinstance(x, Part) for x in flat(args, kwargs)):
            self.refuse(f"`{plain}` meets a tensor with axes that are not indexed", "index every axis but one")
        try:
            return OPERATIONS[plain](self, *args, **kwargs)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is None:  # the arguments did not fit
                self.refuse(f"`{plain}` with these arguments cannot be traced: {error}")
            raise

    # -- operands ----------------------------------------------------------------------------------------------------------

    def value(self, x: object) -> Value:
        """A number, a captured scalar or a short captured vector as a value."""
        if isinstance(x, Value):
            return x
        if isinstance(x, Int | Float):
            return self._argument(x)
        if isinstance(x, bool):
            return Value(self, const(x), "bool")
        if isinstance(x, int):
            return Value(self, const(x), "int")
        if isinstance(x, float):
            if x == float("-inf"):
                return Value(self, const(0.0), "float", None, ex.FALSE)
            if x != x or x == float("inf"):
                self.refuse(f"a score cannot be {x}")
            return Value(self, const(x), "float")
        if isinstance(x, torch.Tensor):
            read = self.read(x, ())
            if isinstance(read, Value):
                return read
            self.refuse(f"a captured tensor of shape {tuple(x.shape)} meets a single score", "index it: bias[h, q_idx, kv_idx]")
        self.refuse(f"a traced function computes with numbers and tensors, found {type(x).__name__}")

    def _argument(self, x: Int | Float) -> Value:
        kind: Kind = "int" if isinstance(x, Int) else "float"
        if x.tag not in self.numbers:
            word = next((t for t in x.tag[:1] if isinstance(t, str) and t.isidentifier()), "number")
            plain: Scalar = int(x) if isinstance(x, Int) else float(x)
            self.numbers[x.tag] = Number(f"x{len(self.numbers) + len(self.tensors)}_{word}", kind, plain)
        return Value(self, load(self.numbers[x.tag].name), kind)

    def length(self, axis: str) -> int:
        extent = self.ranks[axis].size
        assert isinstance(extent, int), "a short vector has a known length"
        return extent

    def axis(self, length: int) -> str:
        """The rank of short vectors of this length."""
        name = f"r{length}"
        self.ranks.setdefault(name, Rank(name, "feature", length))
        return name

    # -- captured tensors --------------------------------------------------------------------------------------------------

    def read(self, tensor: torch.Tensor, indices: Sequence[Any]) -> Value | Part:
        """``tensor[indices]``, of which at least one is symbolic or none is there."""
        tensor, found = self._view(tensor, list(indices))
        if len(found) > tensor.ndim:
            self.refuse(f"{len(found)} indices for a captured tensor of {tensor.ndim} axes, shape {tuple(tensor.shape)}")
        left = tensor.shape[len(found) :]
        if len(left) > 1:
            return Part(self, tensor, tuple(found))
        axis = self._common_axis(found)
        if left:
            if axis is not None:
                self.refuse("a vector of indices picks vectors", "index every axis of the tensor")
            axis = self.axis(left[0])
            found.append(Value(self, index(axis), "int", axis))
        captured = self._captured(tensor)
        for n, i in enumerate(found):
            self._size_of(captured, n, i.expr)
        read = load(captured.name, *(i.expr for i in found))
        alive = ex.call(">", read, const(_LEAST)) if captured.kind == "float" and minus_infinite(tensor) else None
        return Value(self, read, captured.kind, axis, alive)

    def _view(self, tensor: torch.Tensor, indices: list[Any]) -> tuple[torch.Tensor, list[Value]]:
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
            v = self.value(i)
            if v.kind != "int":
                self.refuse(f"index {n} is a {v.kind}, an integer is needed")
            out.append(v)
        return tensor, out

    def _common_axis(self, values: Sequence[Value]) -> str | None:
        axes = {v.axis for v in values} - {None}
        if len(axes) > 1:
            self.refuse(f"vectors of {' and '.join(str(self.length(a)) for a in sorted(axes, key=str) if a)} numbers meet")
        return next(iter(axes), None)

    def common_axis(self, *values: Value) -> str | None:
        """The rank of the vectors among some operands. Raises SpecError where their lengths differ."""
        return self._common_axis(values)

    def _captured(self, tensor: torch.Tensor) -> Captured:
        if id(tensor) not in self.tensors:
            if tensor.dtype not in _KINDS:
                self.refuse(f"a captured tensor of {tensor.dtype} cannot be read", f"known: {', '.join(map(str, _KINDS))}")
            if tensor.device != self.device and tensor.ndim:
                self.refuse(f"a captured tensor is on {tensor.device}, the scores are on {self.device}")
            name = self.captures.names.get(id(tensor), "") or "table"
            name = f"x{len(self.numbers) + len(self.tensors)}_{name}"
            own = [size(f"{name}_size{n}") for n in range(tensor.ndim)]
            self.tensors[id(tensor)] = Captured(name, tensor, _KINDS[tensor.dtype], list(own))
        return self.tensors[id(tensor)]

    def _size_of(self, captured: Captured, n: int, i: Expr) -> None:
        """An axis read at a plain coordinate has the size of that coordinate, where it is so: no read can leave it then."""
        if i.op != "index" or captured.axes[n] != size(f"{captured.name}_size{n}"):
            return
        extent = self.sizes[i.name] if i.name in RANKS else self.length(i.name)
        if captured.tensor.shape[n] == extent:
            captured.axes[n] = size(RANKS[i.name]) if i.name in RANKS else const(extent)

    # -- reductions --------------------------------------------------------------------------------------------------------

    def reduced(self, red: str, x: Value) -> Value:
        """A vector reduced over its rank: written out where it is short, and in masks; else a statement of its own."""
        assert x.axis is not None, "a vector has a rank"
        length = self.length(x.axis)
        if length <= (LONGEST if self.masking else SHORT):
            each = [ex.rename(x.expr, {x.axis: const(n)}) for n in range(length)]
            if not each:
                self.refuse(f"the {red} of nothing")
            return Value(self, functools.reduce(functools.partial(call, _COMBINE[red]), each), x.kind)
        if self.masking:
            self.refuse(
                f"a mask reduces a vector of {length} numbers", f"at most {LONGEST} can be; make a table of the condition"
            )
        ranks = tuple(r for r in ("i", "j") if r in ex.indices(x.expr) | self._ranks_behind(x.expr))
        new = Einsum(f"part_{len(self.statements)}", ranks, red, (x.axis,), x.expr)
        same = next(
            (s for s in self.statements if (s.ranks, s.red, s.over, s.map) == (new.ranks, red, new.over, new.map)), None
        )
        if same is None:
            self.statements.append(new)
        return Value(self, ex.at((same or new).target, ranks), "bool" if red == "any" else "float")

    def _ranks_behind(self, e: Expr) -> set[str]:
        return {r for s in self.statements if s.target in ex.reads(e) for r in s.ranks}
