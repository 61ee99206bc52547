"""What torch does while a function is traced: what is symbolic goes to the tracer; what is drawn, or has a backward of its own, is refused."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from einfuse.flex.captures import read
from einfuse.flex.value import Part, Value, flat

if TYPE_CHECKING:
    from einfuse.flex.tracer import Tracer

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
                f"`{name.strip('_')}` works in place on a tensor, which a traced function cannot", "make a new tensor"
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
