"""`install`: Triton's interpreter without what it does again at every operation. Results are the same, bit for bit.

Triton looks through its whole language at every call of a device function, to patch what is patched already, and builds the name, the sizes
and the table of types of every value anew. That is half of the time of a kernel in our tests.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import triton
import triton.language as tl
from triton.runtime import interpreter

_patch_lang, _get_np_dtype = interpreter._patch_lang, interpreter._get_np_dtype
_init_block, _equal_tuples = tl.core.block_type.__init__, tl.core.tuple.__eq__


class _Scope(interpreter._LangPatchScope):  # type: ignore[misc]  # Triton is not typed
    """What a launch has patched: a device function that it calls finds it patched."""

    def restore(self) -> None:
        super().restore()
        _now.clear()


_now: set[tuple[int, ...]] = set()
"""The modules that are patched for the launch that runs now, by where they are named: `tl`, `tl.core` or both."""


def _patched(fn: Any) -> _Scope:
    key = tuple(sorted(id(x) for x in fn.__globals__.values() if x is tl or x is tl.core))
    scope = _Scope()
    if key not in _now:
        scope._changes = _patch_lang(fn)._changes
        _now.add(key)
    return scope


_builtins: dict[Any, list[str]] = {}


def _patched_builtins(package: Any, builder: Any, scope: Any) -> None:
    if package not in _builtins:
        _builtins[package] = [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]
    for name in _builtins[package]:
        member = getattr(package, name)
        if tl.core.is_builtin(member):
            interpreter._patch_attr(package, name, member, builder, scope)


_numpy: dict[str, Any] = {}


def _numpy_dtype(dtype: Any) -> Any:
    found = _numpy.get(dtype.name)
    if found is None:
        found = _numpy[dtype.name] = _get_np_dtype(dtype)
    return found


_blocks: dict[tuple[str, tuple[Any, ...]], dict[str, Any]] = {}
"""The attributes of the types of blocks: their sizes are one object, which is quickly found equal to itself."""


def _block_type(self: Any, element_ty: Any, shape: Any) -> None:
    if element_ty.is_ptr():  # pointers of one name may be to different spaces
        _init_block(self, element_ty, shape)
        return
    key = element_ty.name, tuple(shape)
    found = _blocks.get(key)
    if found is None:
        _init_block(self, element_ty, shape)
        self.of_tensors = _sizes(self.shape)
        found = _blocks[key] = dict(self.__dict__)
    self.__dict__.update(found)


def _sizes(shape: Any) -> tuple[Any, Any]:
    """What a tensor of this shape has for `numel` and `shape`."""
    return tl.constexpr(math.prod(shape)), tl.core.tuple([tl.constexpr(n) for n in shape])


_SCALAR = _sizes(())


def _tensor(self: Any, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    if not type.is_block():
        self.numel, self.shape = _SCALAR
    else:
        self.numel, self.shape = type.__dict__.get("of_tensors") or _sizes(type.shape)


def _equal(self: Any, other: Any) -> Any:
    return tl.constexpr(True) if self is other else _equal_tuples(self, other)


QUICK: list[tuple[Any, str, Any]] = [
    (interpreter, "_patch_lang", _patched),
    (interpreter, "_patch_builtin", _patched_builtins),
    (interpreter, "_get_np_dtype", _numpy_dtype),
    (tl.core.block_type, "__init__", _block_type),
    (tl.core.tensor, "__init__", _tensor),
    (tl.core.tuple, "__eq__", _equal),
]
THEIRS = [(owner, name, getattr(owner, name)) for owner, name, _ in QUICK]


def install() -> None:
    """Replaces what is slow in the interpreter of the release that this was written for, and nothing in another one."""
    if triton.__version__.startswith("3.9."):
        for owner, name, quick in QUICK:
            setattr(owner, name, quick)
