"""`Signature`: what Triton is told when a generated module launches its kernel, found by calling ``launch`` without running anything.

A compiled kernel depends on it: the types of the arguments, which numbers are 1 and which pointers and numbers are divisible by 16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DIVISOR = 16
"""Triton's compiler is told of pointers and numbers that this divides."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A launch of ``function``: ``types`` of all its parameters, ``constants`` among them, ``divisible`` places, the number of
    programs, and ``options`` for the compiler."""

    function: Any
    types: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[int, ...]
    programs: int
    options: dict[str, Any]

    @staticmethod
    def of(
        module: ModuleType,
        kernel: str,
        tensors: Mapping[str, torch.Tensor],
        params: Mapping[str, int | float],
        sizes: Mapping[str, int],
        options: Mapping[str, int],
    ) -> Signature | None:
        """The launch that these arguments lead to; None where there are no programs. Tensors may be on the meta device."""
        functions = {n: x for n in (kernel, f"{kernel}_described") if (x := getattr(module, n, None)) is not None}
        found = {n: _Recorder() for n in functions}
        vars(module).update(found)
        try:
            module.launch(tensors, params, sizes, **options)
        finally:
            vars(module).update(functions)
        return next((_signature(functions[n], x) for n, x in found.items() if x.programs is not None), None)


class _Recorder:
    """Stands for a kernel: keeps the arguments of its latest launch."""

    def __init__(self) -> None:
        self.programs: int | None = None
        self.args: tuple[Any, ...] = ()
        self.named: dict[str, Any] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **named: Any) -> None:
            self.programs, self.args, self.named = grid[0], args, named

        return launch


def _signature(function: Any, found: _Recorder) -> Signature:
    names = list(function.arg_names)
    values = dict(zip(names, found.args, strict=False)) | {n: x for n, x in found.named.items() if n in names}
    types: dict[str, str] = {}
    constants: dict[str, Any] = {}
    divisible = []
    for place, p in enumerate(function.params):
        types[p.name], even = _typed(values[p.name], p)
        if types[p.name] == "constexpr":
            constants[p.name] = values[p.name]
        elif even:
            divisible.append(place)
    options = {n: x for n, x in found.named.items() if n not in names}
    assert found.programs is not None, "a launch has programs"
    return Signature(function, types, constants, tuple(divisible), found.programs, options)


def _typed(value: Any, parameter: Any) -> tuple[str, bool]:
    """The type of an argument as Triton writes it, and whether `DIVISOR` is known to divide it."""
    if parameter.is_constexpr:
        return "constexpr", False
    special = not parameter.do_not_specialize
    if isinstance(value, int):
        if value == 1 and special:
            return "constexpr", False
        return ("i32" if -(2**31) <= value < 2**31 else "i64"), special and value % DIVISOR == 0
    if isinstance(value, float):
        return "fp32", False
    canonical = _module("triton._utils").canonicalize_dtype
    if hasattr(value, "block_shape"):
        element = canonical(str(value.base.dtype).removeprefix("torch."))
        return f"tensordesc<{element}{list(value.block_shape)}>", False
    return f"*{canonical(str(value.dtype).removeprefix('torch.'))}", value.data_ptr() % DIVISOR == 0


def _module(name: str) -> Any:
    import importlib

    return importlib.import_module(name)
