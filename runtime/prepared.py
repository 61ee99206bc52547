"""A call made ready: what follows from shapes, strides, dtypes and host numbers alone is worked out once and kept for calls like it.

Such a call goes straight to its kernel, past torch's dispatcher, where nothing in the dispatcher would have a say: no gradient, no
tracer or transform, no mode, no subclass of a tensor. All others go through the operators of `einfuse.runtime.ops`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.autograd import forward_ad, profiler

from einfuse.ir import Cascade, Scalar
from einfuse.runtime.backends import BackendName, choose
from einfuse.runtime.binding import precision_of
from einfuse.runtime.forms import FORM
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Graph
from einfuse.runtime.program import Program
from einfuse.runtime.recent import Recent

Key = tuple[object, ...]
Argument = torch.Tensor | Scalar

_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
_USUAL = torch._C.DispatchKeySet(torch._C.DispatchKey.BackendSelect)
_QUIET = frozenset({_USUAL.raw_repr(), _USUAL.add(torch._C.DispatchKey.ADInplaceOrView).raw_repr()})  # inference mode, and else


@dataclass(frozen=True, slots=True)
class Prepared:
    """One kind of call. ``names`` are its tensors in the order of declaration, ``numbers`` its host numbers."""

    names: tuple[str, ...]
    program: Program
    graph: Graph
    numbers: Mapping[str, Scalar]
    sizes: Mapping[str, int]
    looks: bool  # at the values of tensors, before every launch

    def __call__(self, args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> list[torch.Tensor]:
        tensors: dict[str, torch.Tensor] = dict(zip(self.names, args, strict=False))  # type: ignore[arg-type]  # checked by `signature`
        if kwargs:
            tensors |= {n: x for n, x in kwargs.items() if n not in self.numbers}  # type: ignore[misc]  # the others are tensors
        if self.looks:
            self.program.check_ranges(Given(tensors, self.numbers, self.sizes))
        return self.graph.run(tensors)


@dataclass(slots=True)
class Calls:
    """The calls of one attention that were made ready, by `signature`."""

    program: Program
    backend: BackendName | None
    known: Recent[Key, Prepared] = field(default_factory=Recent)

    def prepare(self, key: Key, given: Given) -> Prepared:
        """A kind of call made ready, from one of them whose arguments are known to fit."""
        backend = choose(given.device, self.backend)
        program = self.program.suited(backend, lambda: precision_of(self.program.cascade, given.tensors).itemsize == 2)
        program.check_ranges(given)
        graph = program.graph(given, backend)
        self.known[key] = ready = Prepared(tuple(given.tensors), program, graph, given.numbers, given.sizes, program.looks)
        return ready


def signature(args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> Key | None:
    """What calls of one kind share, or None for a call that torch's dispatcher has to see."""
    if torch.compiler.is_compiling() or _watched():
        return None
    grad = torch.is_grad_enabled()
    parts: list[object] = [len(args), torch.get_num_threads(), os.environ.get(FORM)]
    for x in (*args, *kwargs.values()):
        if type(x) in _PLAIN:
            assert isinstance(x, torch.Tensor)
            if x.is_nested or (grad and x.requires_grad) or x.is_neg() or x.is_meta or x.layout is not torch.strided:
                return None
            parts += (x.shape, x.stride(), x.dtype, x.device)
        elif type(x) is float or type(x) is int:
            parts += (type(x), x if x else str(x))  # -0.0 is not 0.0 here
        else:
            return None
    parts += kwargs
    return tuple(parts)


def fits(cascade: Cascade, args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> bool:
    """Whether tensors are given for all tensors, and numbers for numbers: then a call's signature says all but what tensors hold."""
    named = dict(zip((t.name for t in cascade.inputs if not t.param), args, strict=False)) | dict(kwargs)
    return all(isinstance(named.get(t.name, t.default), torch.Tensor) != t.param for t in cascade.inputs)


def _watched() -> bool:
    """Whether anything looks on between torch's operators and their kernels: modes, transforms, tracers, autocast, profilers."""
    return (
        torch._C._dispatch_tls_local_include_set().raw_repr() not in _QUIET
        or torch._C._len_torch_function_stack() > 0
        or forward_ad._current_level >= 0
        or profiler._is_profiler_enabled
        or torch._C._is_any_autocast_enabled()
    )
