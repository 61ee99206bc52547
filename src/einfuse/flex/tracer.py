"""A trace of score and mask functions: calls each once with symbolic values, and collects what they capture.

The same tracer traces all functions of one attention, so that what both capture is one input. It runs the functions as they are,
at every call: a function whose captures or globals have changed is another trace, never a stale one.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from einfuse.dsl import pure
from einfuse.flex import functions, integers, vectors  # noqa: F401  # they make their functions known
from einfuse.flex.captures import Captured, Captures, Float, Int, Same, Tag, read
from einfuse.flex.place import check_signature, here, name, place, raised_at
from einfuse.flex.value import OPERATIONS, Kind, Part, Value, flat
from einfuse.flex.watch import refuse_impure, refuse_own_gradient, watched, without_own_gradients
from einfuse.ir import MAX_OPERATIONS, Einsum, Expr, Rank, Scalar, SpecError, const, index, load, size
from einfuse.ir import expr as ex
from einfuse.runtime.recent import Recent

RANKS = {"b": "B", "h": "H", "i": "Nq", "j": "Nk"}
"""The coordinates of a score, and the names of their sizes."""
_PURE: Recent[tuple[object, ...], bool] = Recent(1024)
"""The code of functions that were seen to compute the same again."""


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
        self.recording = torch.is_grad_enabled()
        self.captures = Captures()
        self.tensors: dict[int, Captured] = {}
        self.numbers: dict[Tag, Number] = {}
        self.ranks: dict[str, Rank] = {}
        self.statements: list[Einsum] = []
        self.masking = False
        self.unbounded = False
        """Whether a score may become minus infinity in a way that `Value.alive` does not tell: the logarithm of a table that holds 0."""
        self.word = torch.int64 if dtype == torch.float64 else torch.int32
        """What kernels count in."""

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
            ValueError,
            RuntimeError,
            LookupError,
            AttributeError,
        ) as error:  # what Python, numpy and torch say of a Value they cannot use
            said = SpecError(f"`{name(fn)}` cannot be traced: {type(error).__name__}: {error}", raised_at(error))
            file = said.loc.file if said.loc is not None else ""
            raise said.within("".join(linecache.getlines(file))) from error
        except SpecError as error:
            said = error if error.loc is not None else SpecError(error.message, place(fn), error.hint)
            file = said.loc.file if said.loc is not None else ""
            raise said.within("".join(linecache.getlines(file))) from None

    def _call(self, fn: Callable[..., Any], lifted: Callable[..., Any], first: Sequence[Value]) -> Value:
        coordinates = [Value(self, index(r), torch.int64, bounds=(0, max(0, self.sizes[r] - 1))) for r in RANKS]
        with watched(self):
            result = lifted(*first, *coordinates)
        return self._result(fn, result)

    def _again(self, fn: Callable[..., Any], first: Sequence[Value]) -> tuple[object, ...]:
        """Everything that a trace of its own depends on."""
        own = Tracer(self.sizes, self.dtype, self.device)
        own.masking = self.masking
        with without_own_gradients(own):
            x = own._call(fn, own.captures.lifted(fn), [Value(own, v.expr, v.dtype) for v in first])
        captured = [(c.name, c.axes, Same(c.tensor)) for c in own.tensors.values()]
        return x.expr, x.dtype, x.alive, own.statements, list(own.numbers.values()), captured

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
        refuse_impure(self, name)
        plain = name.strip("_") if name.startswith("__") else name
        if plain.endswith("_") and plain[:-1] in OPERATIONS:
            self.refuse(f"`{plain}` works in place, which a traced function cannot", f"use `{plain[:-1]}`")
        if kwargs.get("inplace"):
            self.refuse(f"`{plain}` with inplace=True works in place, which a traced function cannot", "leave inplace out")
        if plain not in OPERATIONS:
            self.refuse(
                f"`{plain}` cannot be traced", "scores and masks are made of pointwise functions, captured tensors and indices"
            )
        if plain != "getitem" and any(isinstance(x, Part) for x in flat(args, kwargs)):
            self.refuse(f"`{plain}` meets a tensor with axes that are not indexed", "index every axis but one")
        try:
            return self.recorded(OPERATIONS[plain](self, *args, **kwargs))
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is None:  # the arguments did not fit
                self.refuse(f"`{plain}` with these arguments cannot be traced: {error}")
            raise

    def recorded(self, x: Any) -> Any:
        """A result as torch's autograd would have it: without a gradient where the function turned gradients off."""
        if not self.recording or torch.is_grad_enabled():
            return x
        refuse_own_gradient(self, sys._getframe(1))
        return OPERATIONS["detach"](self, x) if isinstance(x, Value) else x

    # -- operands ----------------------------------------------------------------------------------------------------------

    def value(self, x: object) -> Value:
        """A number, a captured scalar or a short captured vector as a value."""
        if isinstance(x, Value):
            return x
        if isinstance(x, Int | Float):
            return self._argument(x)
        if isinstance(x, bool | int):
            return Value(self, const(x), torch.bool if isinstance(x, bool) else torch.int64, bounds=(x, x), weak=True)
        if isinstance(x, float):
            if x == float("-inf"):
                return Value(self, const(0.0), self.dtype, None, ex.FALSE, bounds=(0.0, 0.0), weak=True)
            if x != x or x == float("inf"):
                self.refuse(f"a score cannot be {x}")
            return Value(self, const(x), self.dtype, bounds=(x, x), weak=True)
        if isinstance(x, torch.Tensor):
            value = read(self, x, ())
            if isinstance(value, Value):
                return value
            self.refuse(f"a captured tensor of shape {tuple(x.shape)} meets a single score", "index it: bias[h, q_idx, kv_idx]")
        self.refuse(f"a traced function computes with numbers and tensors, found {type(x).__name__}")

    def _argument(self, x: Int | Float) -> Value:
        whole = isinstance(x, Int)
        plain: Scalar = int(x) if whole else float(x)
        if x.tag not in self.numbers:
            word = next((t for t in x.tag[:1] if isinstance(t, str) and t.isidentifier()), "number")
            self.numbers[x.tag] = Number(self.input_name(word), "int" if whole else "float", plain)
        dtype = torch.int64 if whole else self.dtype
        return Value(self, load(self.numbers[x.tag].name), dtype, bounds=(plain, plain), weak=True)

    def input_name(self, word: str) -> str:
        """A name for the next input."""
        return f"x{len(self.numbers) + len(self.tensors)}_{word}"

    def within(self, nodes: int) -> int:
        """The number of parts of an expression. Raises SpecError where there are too many."""
        if nodes > MAX_OPERATIONS:
            self.refuse(
                f"this function makes an expression of more than {MAX_OPERATIONS} parts",
                "compute a part of it outside, as a table",
            )
        return nodes

    def extent(self, rank: str) -> tuple[int, Expr]:
        """The length of a rank, as a number and as the IR writes it."""
        return (self.sizes[rank], size(RANKS[rank])) if rank in RANKS else (self.length(rank), const(self.length(rank)))

    def length(self, axis: str) -> int:
        extent = self.ranks[axis].size
        assert isinstance(extent, int), "a short vector has a known length"
        return extent

    def axis(self, length: int) -> str:
        """The rank of short vectors of this length."""
        name = f"r{length}"
        self.ranks.setdefault(name, Rank(name, "feature", length))
        return name

    def common_axis(self, *values: Value) -> str | None:
        """The rank of the vectors among some operands. Raises SpecError where their lengths differ."""
        axes = {v.axis for v in values} - {None}
        if len(axes) > 1:
            self.refuse(f"vectors of {' and '.join(str(self.length(a)) for a in sorted(axes, key=str) if a)} numbers meet")
        return next(iter(axes), None)
