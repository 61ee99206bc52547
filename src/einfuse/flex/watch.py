"""What torch does with captured tensors while a function is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from einfuse.flex.value import Part, Value, flat

if TYPE_CHECKING:
    from einfuse.flex.tracer import Tracer

_AUGMENTED = tuple(f"__i{op}__" for op in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"))


class Watch(TorchFunctionMode):
    """Functions of symbolic values go to the tracer, those of captured tensors alone to torch, those in place to nobody."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if any(isinstance(x, Value | Part) for x in flat(args, kwargs)):
            if name == "__getitem__" and isinstance(args[0], torch.Tensor):
                return self.tracer.read(args[0], args[1] if isinstance(args[1], tuple) else (args[1],))
            return self.tracer.apply(name, args, kwargs)
        if name in ("__setitem__", *_AUGMENTED) or (name.endswith("_") and not name.endswith("__")):
            self.tracer.refuse(
                f"`{name.strip('_')}` works in place on a tensor, which a traced function cannot", "make a new tensor"
            )
        return func(*args, **kwargs)
