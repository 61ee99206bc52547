"""What a call means: arguments to names, shapes to sizes, dtypes to storage. Every fault names the argument, expected and found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard

import torch
from torch.autograd import forward_ad

from einfuse.codegen import Storage
from einfuse.codegen.plan import FLOAT8, FLOATS
from einfuse.codegen.precision import precision
from einfuse.ir import Cascade, Expr, Rank, Scalar, Tensor
from einfuse.ir.expr import sizes as made_of
from einfuse.ir.text import show_expr
from einfuse.runtime.apart import transformed
from einfuse.runtime.capture import capturing
from einfuse.runtime.sizes import Size as Size
from einfuse.runtime.sizes import evaluate as evaluate

STORAGE: dict[torch.dtype, Storage] = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.float8_e4m3fn: "e4m3",
    torch.float8_e5m2: "e5m2",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}
DTYPE: dict[Storage, torch.dtype] = {s: d for d, s in STORAGE.items()}
_KINDS = {"float": FLOATS, "int": ("i64", "i32", "i16", "i8", "u8"), "bool": ("bool",)}


def arguments(
    cascade: Cascade, args: Sequence[torch.Tensor], kwargs: Mapping[str, torch.Tensor | Scalar]
) -> tuple[dict[str, torch.Tensor], dict[str, Scalar]]:
    """The tensors and host numbers of a call by name: tensors positionally in order of declaration or by keyword, numbers by keyword.

    Raises TypeError for a missing, unknown, doubled or ill-typed argument, ValueError for a number that is not finite.
    """
    inputs = [t for t in cascade.inputs if not t.param]
    if len(args) > len(inputs):
        raise TypeError(f"{cascade.name} takes {len(inputs)} tensors ({_names(inputs)}), found {len(args)}")
    given: dict[str, torch.Tensor | Scalar] = {t.name: a for t, a in zip(inputs, args, strict=False)}
    for name, value in kwargs.items():
        if name in given:
            raise TypeError(f"{cascade.name}: {name} is given twice, by position and by keyword")
        if all(t.name != name for t in cascade.inputs):
            raise TypeError(f"{cascade.name} has no argument {name}{_near(cascade, name)}; it takes {_names(cascade.inputs)}")
        given[name] = value
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Scalar] = {}
    for t in cascade.inputs:
        found = given.get(t.name, t.default)
        if found is None:
            raise TypeError(f"{cascade.name} is missing the argument {_described(t)}")
        if t.param:
            numbers[t.name] = _number(cascade, t, found)
        else:
            tensors[t.name] = _tensor(cascade, t, found)
    devices = {x.device for x in tensors.values()}
    if len(devices) > 1:
        where = ", ".join(f"{n} on {x.device}" for n, x in tensors.items())
        raise ValueError(f"{cascade.name}: all tensors must be on one device, found {where}")
    return tensors, numbers


def _near(cascade: Cascade, name: str) -> str:
    """A guess at what was meant; nothing where no name is close."""
    import difflib  # for the message alone

    close = difflib.get_close_matches(name, [t.name for t in cascade.inputs], 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _names(inputs: Sequence[Tensor]) -> str:
    return ", ".join(t.name for t in inputs)


def _described(t: Tensor) -> str:
    axes = f"[{', '.join(map(show_expr, t.axes))}]" if not t.param else ""
    return f"{t.name}{axes}: {t.dtype}"


def host_number(where: str, name: str, value: object, instead: str) -> object:
    """The number that a tensor of no axes holds; other values as they are.

    Raises TypeError for a tensor that a derivative may be asked for, or that vmap gives many values: a kernel takes one number,
    which has no derivative. ``instead`` says what to do.
    """
    if not isinstance(value, torch.Tensor) or value.ndim:
        return value
    reason = _beyond_a_number(value)
    if reason:
        raise TypeError(f"{where}: {name} is a number of the host, found a tensor {reason}; {instead}")
    if not value.is_cpu and capturing():
        raise TypeError(
            f"{where}: {name} is a number of the host, and a CUDA graph cannot read it from a device; give a Python number"
        )
    return value.item()


def _beyond_a_number(x: torch.Tensor) -> str:
    """What is lost of a tensor of no axes where only its number is taken; empty: nothing."""
    if torch.is_grad_enabled() and x.requires_grad:
        return "that requires a gradient"
    if torch.compiler.is_compiling() or not transformed():
        return ""
    if torch._C._functorch.is_batchedtensor(x):
        return "with many values under vmap"
    if forward_ad.unpack_dual(x, level=0).tangent is not None:
        return "that has a tangent"
    return _beyond_a_number(torch._C._functorch.get_unwrapped(x)) if torch._C._functorch.is_functorch_wrapped_tensor(x) else ""


def _number(cascade: Cascade, t: Tensor, value: object) -> Scalar:
    if isinstance(value, torch.Tensor):
        value = host_number(
            cascade.name, t.name, value, f"declare it as an input of the spec, `in {t.name}[]`, in place of a parameter"
        )
    if not _is_number(value) or (t.dtype == "int" and not isinstance(value, int | torch.SymInt)):
        raise TypeError(
            f"{cascade.name}: {t.name} must be {'an int' if t.dtype == 'int' else 'a number'}, found {_found(value)}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{cascade.name}: {t.name} must be finite, found {value}")
    return value


def _is_number(value: object) -> TypeGuard[Scalar]:
    return isinstance(value, int | float | torch.SymInt | torch.SymFloat) and not isinstance(value, bool)


def _tensor(cascade: Cascade, t: Tensor, value: object) -> torch.Tensor:
    if not t.axes and _is_number(value):
        value = torch.tensor(value)
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{cascade.name}: {_described(t)} must be a tensor, found {_found(value)}")
    if value.layout not in (torch.strided, torch.jagged):
        raise TypeError(
            f"{cascade.name}: {t.name} must be a dense tensor, found one of {value.layout}; call {t.name}.to_dense()"
        )
    storage = STORAGE.get(value.dtype)
    _, dtype = t.given
    if storage not in _KINDS[dtype]:
        raise TypeError(
            f"{cascade.name}: {t.name} must be {'an int' if dtype == 'int' else f'a {dtype}'} tensor, found {value.dtype}"
        )
    if storage in FLOAT8 and value.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            f"{cascade.name}: {t.name} is of {value.dtype}, which has no gradient; give {t.name}.detach(), or a wider float"
        )
    if value.ndim != len(t.axes):
        raise ValueError(f"{cascade.name}: {_described(t)} has {len(t.axes)} axes, found the shape {tuple(value.shape)}")
    return value


def autocast(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors in the dtype of an autocast region, if the call is in one: as torch's, it casts floats of 16 and of 32 bits."""
    device = next(iter(tensors.values())).device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return {n: x.to(dtype) if x.dtype in (torch.float32, torch.bfloat16, torch.float16) else x for n, x in tensors.items()}


def like(what: str, found: object, wanted: torch.Tensor) -> None:
    """Raises TypeError or ValueError unless the one is a tensor with the dtype, the shape and the device of the other."""
    if not isinstance(found, torch.Tensor) or found.dtype != wanted.dtype:
        kind = found.dtype if isinstance(found, torch.Tensor) else _found(found)
        raise TypeError(f"{what} must be a tensor of {wanted.dtype}, found {kind}")
    if found.shape != wanted.shape:
        raise ValueError(f"{what} must have its shape {tuple(wanted.shape)}, found {tuple(found.shape)}")
    if found.device != wanted.device:
        raise ValueError(f"{what} must be on {wanted.device}, found it on {found.device}")
    if found.layout != wanted.layout:
        raise TypeError(f"{what} must be of {wanted.layout}, found {found.layout}")


def one_dtype(cascade: Cascade, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises TypeError where tensors with features differ in dtype; they decide the precision. Others (slopes, biases) are read and widened,
    and so are floats of 8 bits, of which a call cannot be made alone.
    """
    found = {n: tensors[n].dtype for n in cascade.with_features}
    wide = {d for d in found.values() if STORAGE[d] not in FLOAT8}
    if len(wide) > 1 or (found and not wide):
        listed = ", ".join(f"{n}: {d}" for n, d in found.items())
        wanted = "share one dtype" if wide else "not all be of 8 bits, since outputs have their dtype"
        raise TypeError(f"{cascade.name}: tensors with feature axes must {wanted}, found {listed}")


def precision_of(cascade: Cascade, tensors: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The dtype of a call (see `codegen.precision`), which its outputs with features have; torch's default one without float tensors."""
    storage = {n: STORAGE[x.dtype] for n, x in tensors.items()}
    floats = any(x.is_floating_point() for x in tensors.values())
    return DTYPE[precision(cascade, storage)] if floats else torch.get_default_dtype()


def _found(value: object) -> str:
    return " ".join(f"{type(value).__name__} {value!r}".split())[:80]


def sizes(cascade: Cascade, tensors: Mapping[str, torch.Tensor]) -> dict[str, Size]:
    """Every symbolic size, from the shapes: bare names first, then divisors such as ``H // group``, then checks.

    Raises ValueError that names the argument, its axis, what the spec says and what was found.
    """
    bound: dict[str, Size] = {}
    source: dict[str, str] = {}
    later: list[tuple[Tensor, int, Expr]] = []
    for t in cascade.inputs:
        axes, _ = t.given
        for n, axis in enumerate(axes):
            if axis.op != "size":
                later.append((t, n, axis))
                continue
            found = tensors[t.name].shape[n]
            if axis.name not in bound:
                bound[axis.name], source[axis.name] = found, t.name
            elif bound[axis.name] != found:
                said = f"axis {n} of {t.name} is {axis.name} = {bound[axis.name]} (from {source[axis.name]}), found {found}"
                raise ValueError(f"{cascade.name}: {said}{_shared(cascade, axis.name, bound[axis.name], found)}")
    extents = {r.size for r in cascade.ranks if r.extent is not None} - bound.keys()
    for t, n, axis in later:
        if not made_of(axis) & extents:
            _divisor(cascade, t, n, axis, tensors[t.name].shape[n], bound)
    _of_ranks(cascade, bound)
    for t, n, axis in later:
        if made_of(axis) & extents:
            _divisor(cascade, t, n, axis, tensors[t.name].shape[n], bound)
    return bound


def _shared(cascade: Cascade, size: str, heads: Size, found: int) -> str:
    """How a spec says that heads share what it reads, where an argument looks as if they did."""
    head = next((r.name for r in cascade.ranks if r.size == size and r.kind == "head"), None)
    shared = head is not None and 0 < found < heads and heads % found == 0
    return f"; heads that share it read it at `{head} // group`" if shared else ""


def _of_ranks(cascade: Cascade, bound: dict[str, Size]) -> None:
    """Binds the sizes of ranks that are made of others. Raises ValueError where nothing tells a size."""
    for r in cascade.ranks:
        if isinstance(r.size, str) and r.extent is not None:
            _made(cascade, r, r.extent, bound)
        elif isinstance(r.size, str) and r.size not in bound:
            raise ValueError(f"{cascade.name}: no argument tells the size {r.size} of rank {r.name}")


def _made(cascade: Cascade, r: Rank, extent: Expr, bound: dict[str, Size]) -> None:
    """Binds the size of a rank that is made of other sizes; what is told already need not be made."""
    if r.size in bound and not made_of(extent) <= bound.keys():
        return  # one of several kernels, which takes a tensor of that size in place of those
    found, where = evaluate(extent, bound), f"{cascade.name}: the size of rank {r.name} is {show_expr(extent)}"
    if found < 0:
        raise ValueError(f"{where} = {found}")
    if bound.setdefault(str(r.size), found) != found:
        raise ValueError(f"{where} = {found}, and an argument has {bound[str(r.size)]}")


def _divisor(cascade: Cascade, t: Tensor, n: int, axis: Expr, found: Size, bound: dict[str, Size]) -> None:
    where = f"{cascade.name}: axis {n} of {t.name} is {show_expr(axis)}"
    free = axis.args[1] if axis.op == "//" else None
    if free is not None and free.op == "size" and free.name not in bound:
        whole = evaluate(axis.args[0], bound)
        if whole == found == 0:  # no heads, in groups of any size
            bound[free.name] = 1
            return
        if found == 0 or whole % found != 0:  # type: ignore[operator]  # symbolic sizes count like numbers
            raise ValueError(f"{where}: {whole} must be a multiple of it, found {found}")
        bound[free.name] = whole // found
        return
    if free is not None and free.op == "size" and evaluate(axis.args[0], bound) % bound[free.name]:  # type: ignore[operator]
        raise ValueError(f"{where}: {evaluate(axis.args[0], bound)} must be a multiple of {free.name} = {bound[free.name]}")
    wanted = evaluate(axis, bound)
    if wanted != found:
        raise ValueError(f"{where} = {wanted}, found {found}")


def extent_of(cascade: Cascade, rank: str, sizes: Mapping[str, int]) -> int:
    """The number of coordinates of a rank, where the sizes are known."""
    size = cascade.rank(rank).size
    return size if isinstance(size, int) else sizes[size]
