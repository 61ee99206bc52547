"""A trace of score and mask functions: calls each once with symbolic values, and collects what they capture.

The same tracer traces all functions of one attention, so that what both capture is one input. It runs the functions as they are,
at every call: a function whose captures or globals have changed is another trace, never a stale one. What torch is asked for meanwhile
goes by the tracer: what is symbolic is traced; what is drawn, or has a backward of its own, is refused.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from einfuse.dsl import trace
from einfuse.dsl.trace import defined, flat, name, refuse_assignment, twice
from einfuse.flex import functions, integers, vectors  # noqa: F401  # they make their functions known
from einfuse.flex.captures import Captured, Captures, Float, Int, Same, Tag, read
from einfuse.flex.value import OPERATIONS, Kind, Part, Value
from einfuse.ir import Einsum, Expr, Rank, Scalar, SpecError, const, index, load, size
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


class Tracer(trace.Tracer[Value]):
    """One trace. ``sizes`` are the extents of the four coordinates; ``dtype`` is that of the scores."""

    library = "torch"
    operations = OPERATIONS
    coordinates = ("b", "h", "q_idx", "kv_idx")
    defaults = True
    masks = "give it to create_block_mask"
    tables = "lists and arrays have to be tensors, which are read at coordinates: table[h, kv_idx]"
    smaller = "compute a part of it outside, as a table"
    captured = "it captures everything else: in a closure, or by functools.partial"
    known = "scores and masks are made of pointwise functions, captured tensors and indices"

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

    def call(self, fn: Callable[..., Any], first: tuple[Value, ...]) -> Value:
        """A function that is met for the first time is called twice more, to see that it computes the same again."""
        lifted = self.captures.lifted(fn)
        code = (type(fn), self.masking, *(made.__code__ for _, made in self.captures.functions.values()))
        _PURE.made(code, lambda: twice(fn, lambda: self._again(fn, first)) is not None)
        return self._call(fn, lifted, first)

    def _call(self, fn: Callable[..., Any], lifted: Callable[..., Any], first: Sequence[Value]) -> Value:
        coordinates = [Value(self, index(r), torch.int64, bounds=(0, max(0, self.sizes[r] - 1))) for r in RANKS]
        with watched(self):
            result = lifted(*first, *coordinates)
        assigned = self.captures.assigned()
        if assigned is not None:
            refuse_assignment(fn, assigned)
        value = self.returned(fn, result)
        if value.axis is not None:
            raise SpecError(f"`{name(fn)}` returns {self.length(value.axis)} numbers", defined(fn), "reduce them: x.sum(-1)")
        return value

    def _again(self, fn: Callable[..., Any], first: Sequence[Value]) -> tuple[object, ...]:
        """Everything that a trace of its own depends on."""
        own = Tracer(self.sizes, self.dtype, self.device)
        own.masking = self.masking
        with without_own_gradients(own):
            x = own._call(fn, own.captures.lifted(fn), [Value(own, v.expr, v.dtype) for v in first])
        captured = [(c.name, c.axes, Same(c.tensor)) for c in own.tensors.values()]
        return x.expr, x.dtype, x.alive, own.statements, list(own.numbers.values()), captured

    def condition(self, fn: Callable[..., Any]) -> Value:
        """A mask function's condition. Raises SpecError where it gives a number."""
        self.masking = True
        value = self.run(fn)
        self.masking = False
        if value.kind != "bool":
            raise SpecError(f"`{name(fn)}` returns a {value.kind}, a mask is a condition", defined(fn), "compare it: x != 0")
        return value

    # -- operations --------------------------------------------------------------------------------------------------------

    def apply(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """A function or method of torch, by name."""
        refuse_impure(self, name)
        if not name.endswith("getitem") and any(isinstance(x, Part) for x in flat(args, kwargs)):
            self.refuse(f"`{name.strip('_')}` meets a tensor with axes that are not indexed", "index every axis but one")
        return self.recorded(super().apply(name, args, kwargs))

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
        return self.value(self.python_number(x))

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


# -- what torch is asked for -----------------------------------------------------------------------------------------------------

_AUGMENTED = tuple(f"__i{op}__" for op in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"))
_UNWRITTEN = ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided")
_RANDOM = torch.Tag.nondeterministic_seeded

outside_of_graphs = torch.compiler.disable(
    reason="einfuse traces score_mod and mask_mod itself, at every call: the graph breaks here, and goes on behind. "
    "For fullgraph=True call an attention made outside of the graph: einfuse.compile(...) or einfuse.attention(score_mod, mask_mod)"
)
"""For functions that trace: a trace is Python that dynamo cannot follow."""


@contextmanager
def watched(tracer: Tracer) -> Iterator[None]:
    """What torch is asked for inside goes by the tracer."""
    with _Functions(tracer), _Operators(tracer):
        yield


class _Functions(TorchFunctionMode):
    """Functions of symbolic values go to the tracer, those of captured tensors alone to torch, those in place to nobody."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if any(isinstance(x, Value | Part) for x in flat(args, kwargs)):
            if name == "__getitem__" and isinstance(args[0], torch.Tensor):
                found = read(self.tracer, args[0], args[1] if isinstance(args[1], tuple) else (args[1],))
                return self.tracer.recorded(found)
            return self.tracer.apply(name, args, kwargs)
        refuse_impure(self.tracer, name)
        if name in ("__setitem__", *_AUGMENTED) or (name.endswith("_") and not name.endswith("__")):
            self.tracer.refuse(
                f"`{name.strip('_')}` works in place on a tensor, which a traced function cannot",
                "make a new tensor, or write it outside of it",
            )
        return func(*args, **kwargs)


class _Operators(TorchDispatchMode):
    """Refuses random numbers that are drawn inside of other functions (``torch.distributions``, ``gumbel_softmax``)."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.tracer = tracer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _RANDOM in func.tags:
            _refuse_random(self.tracer, func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]  # a method of the class


@contextmanager
def without_own_gradients(tracer: Tracer) -> Iterator[None]:
    """Raises SpecError where a `torch.autograd.Function` is applied to a symbolic value inside: its backward would go unused.

    torch tells nobody; Python tells a profiler. Where another one runs already, only functions that compute something are found.
    """

    def look(frame: FrameType, event: str, _: object) -> None:
        if (
            event == "call"
            and frame.f_code is _APPLY
            and any(isinstance(x, Value | Part) for x in flat(frame.f_locals["args"], {}))
        ):
            refuse_own_gradient(tracer, frame)

    if sys.getprofile() is not None:
        yield
        return
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)


def refuse_own_gradient(tracer: Tracer, frame: FrameType | None) -> None:
    """Raises SpecError where this frame, or one that it was called from, applies a `torch.autograd.Function`."""
    while frame is not None and frame.f_code is not _APPLY:
        frame = frame.f_back
    if frame is not None:
        tracer.refuse(
            f"`{frame.f_locals['cls'].__name__}` has a backward of its own, which cannot be traced",
            "write its forward with functions of torch; x.detach() is x with a gradient of 0",
        )


def refuse_impure(tracer: Tracer, name: str) -> None:
    """Raises SpecError for a function of torch, by name, whose result is another one at each call."""
    if name in _UNWRITTEN:
        tracer.refuse(f"`{name}` holds what was in memory before", "use torch.zeros or torch.full")
    if _draws(name):
        _refuse_random(tracer, name)


def _refuse_random(tracer: Tracer, name: str) -> None:
    tracer.refuse(
        f"`{name.strip('_')}` draws random numbers once for the whole call, not for every point",
        "draw a tensor outside of the function and read it at the coordinates: keep[b, h, q_idx, kv_idx]",
    )


@functools.cache
def _draws(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    return isinstance(packet, torch._ops.OpOverloadPacket) and any(
        _RANDOM in getattr(packet, o).tags for o in packet.overloads()
    )
