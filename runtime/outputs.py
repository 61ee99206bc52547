"""The tensors that kernels write: their shapes, dtypes and strides, decided here for forward kernels, scans and gradients alike."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from einfuse.ir import Blocked, Cascade, Flat
from einfuse.ir.nodes import DType
from einfuse.ir.passes.backward import Gradient
from einfuse.ir.rewrite import statements, types_of
from einfuse.runtime.binding import extent_of, precision_of
from einfuse.runtime.given import Given
from einfuse.runtime.memory import LARGE, empty, small

_NO_SIZES: Mapping[int | str, int] = MappingProxyType({})
WHOLE: dict[DType, torch.dtype] = {"int": torch.int64, "bool": torch.bool}


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor that a launch writes. ``cleared``: the launch writes a part, the rest is 0. ``strides``: None for contiguous ones.

    ``sizes`` are the sizes that its axes have, by name where they have one: of one whose strides are given, none.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    cleared: bool = False
    strides: tuple[int, ...] | None = None
    sizes: tuple[int | str, ...] = ()

    def materialised(self, device: torch.device, sizes: Mapping[int | str, int] = _NO_SIZES) -> torch.Tensor:
        """A fresh tensor, for a call of these sizes; those that the call does not name are as they are."""
        shape = self._sized(sizes)
        if self.cleared and self.strides is None:
            return torch.zeros(shape, dtype=self.dtype, device=device)
        made = empty(shape, self.dtype, device, self.strides)
        return made.zero_() if self.cleared else made

    def maker(self, device: torch.device, sizes: Mapping[int | str, int]) -> Callable[[], torch.Tensor]:
        """What makes fresh tensors for calls of these sizes, where nothing looks on."""
        shape = self._sized(sizes)
        if device.type != "cpu" or math.prod(shape) * self.dtype.itemsize >= LARGE:
            return functools.partial(self.materialised, device, sizes)
        make = functools.partial(small, shape, self.strides or _contiguous(shape), self.dtype)
        return (lambda: make().zero_()) if self.cleared else make

    def _sized(self, sizes: Mapping[int | str, int]) -> tuple[int, ...]:
        """Its shape for a call of these sizes."""
        return tuple([sizes.get(s, n) for s, n in zip(self.sizes, self.shape, strict=True)]) if self.sizes else self.shape

    def following(self, sizes: Mapping[int | str, int]) -> Output:
        """The same, for calls with other values of these sizes; of this shape alone where a size of its own goes by the same name."""
        same = all(sizes.get(s, n) == n for s, n in zip(self.sizes, self.shape, strict=False))
        return self if same else replace(self, sizes=())

    @property
    def elements(self) -> int:
        """How many it holds."""
        return math.prod(self.shape)

    def described(self) -> torch.Tensor:
        """One without memory."""
        if self.strides is None:
            return torch.empty(self.shape, dtype=self.dtype, device="meta")
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="meta")


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor."""
    extents = [max(n, 1) for n in reversed(shape[1:])]
    return tuple(itertools.accumulate(extents, operator.mul, initial=1))[::-1][: len(shape)]


def materialised(outputs: Mapping[str, Output], device: torch.device) -> dict[str, torch.Tensor]:
    """A fresh tensor for each."""
    return {n: x.materialised(device) for n, x in outputs.items()}


def described(outputs: Mapping[str, Output]) -> dict[str, torch.Tensor]:
    """One without memory for each."""
    return {n: x.described() for n, x in outputs.items()}


def accumulation(tensors: Iterable[torch.Tensor]) -> torch.dtype:
    """The precision in which a kernel over these tensors sums: float64 beside any float64, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def of_forward(
    cascade: Cascade, public: Collection[str], tensors: Mapping[str, torch.Tensor], sizes: Mapping[str, int]
) -> dict[str, Output]:
    """What a forward writes.

    Outputs in ``public`` have the dtype of the call where they have features or are scanned, and accumulation precision where they are
    row statistics; what is only saved for the backward has accumulation precision, but for values of pairs of positions. Ints are int64,
    and conditions bool.
    """
    dtype, wide = precision_of(cascade, tensors), accumulation(tensors.values())
    ranks, scanned = _ranks(cascade)
    types = types_of(cascade) if isinstance(cascade, Flat) else {}
    sequence = {r.name for r in cascade.ranks if r.is_sequence}
    out = {}
    for name in cascade.outs:
        shape = tuple(extent_of(cascade, r, sizes) for r in (*cascade.over, *ranks[name]))
        if types.get(name, "float") != "float":
            out[name] = Output(shape, WHOLE[types[name]], len(set(ranks[name]) & sequence) > 1)
            continue
        if scanned is not None:
            out[name] = Output(shape, dtype if scanned in ranks[name] else wide)
            continue
        named = tuple(cascade.rank(r).size for r in (*cascade.over, *ranks[name]))
        pair = len(set(ranks[name]) & sequence) > 1  # only live points are written
        own = name in public and not set(ranks[name]) <= sequence
        out[name] = Output(shape, dtype if own or pair else wide, pair, sizes=named)
    return out


def of_backward(
    cascade: Cascade, parts: Sequence[Gradient], known: Given, apart: Collection[str] = (), added: bool = False
) -> dict[str, Output]:
    """What a backward kernel writes: a gradient that needs no further sum in dtype and layout of its input, others in accumulation precision.

    ``added``: the kernel adds to all of them, so they are in accumulation precision and start at 0. Those in ``apart`` are left out.
    """
    ranks, _ = _ranks(cascade)
    sequence = {r.name for r in cascade.ranks if r.is_sequence}
    wide = accumulation(known.tensors.values())
    out = {}
    for name in cascade.outs:
        if name in apart:
            continue
        shape = tuple(extent_of(cascade, r, known.sizes) for r in (*cascade.over, *ranks[name]))
        mine = [p for p in parts if name in p.statements]
        alone = len(mine) == 1 and mine[0].times is None and is_only(mine[0], parts)
        pair = len({*ranks[name]} & sequence) > 1
        if alone and not added and tuple(known.tensors[mine[0].input].shape) == shape:
            of = known.tensors[mine[0].input]
            out[name] = Output(shape, of.dtype, pair, _layout(of))
        else:
            out[name] = Output(shape, wide, pair or added)
    return out


def is_only(part: Gradient, parts: Sequence[Gradient]) -> bool:
    """Whether this is the only part of its input's gradient."""
    return sum(p.input == part.input for p in parts) == 1


def gradient(total: torch.Tensor | None, of: torch.Tensor) -> torch.Tensor:
    """A gradient in the dtype and layout of its input, as torch's own operators give theirs; zeros where there is no ``total``.

    Layers before an attention see their own memory format again: a convolution's channels, heads that were split off a feature axis.
    """
    if total is None:
        return torch.zeros_like(of)
    return total if lies_as(total, of) else torch.empty_like(of).copy_(total)


def lies_as(total: torch.Tensor, of: torch.Tensor) -> bool:
    """Whether a gradient has dtype and layout of its input."""
    made = _layout(of)
    return total.dtype == of.dtype and (total.is_contiguous() if made is None else total.stride() == made)


def _layout(x: torch.Tensor) -> tuple[int, ...] | None:
    """The strides that `torch.empty_like` gives; None where they are contiguous."""
    if x.is_contiguous():
        return None
    made = torch.empty_like(x, device="meta")
    return None if made.is_contiguous() else made.stride()


def _ranks(cascade: Cascade) -> tuple[dict[str, tuple[str, ...]], str | None]:
    """The ranks of every statement, and the scanned rank of a blocked scan."""
    return {x.target: x.ranks for x in statements(cascade)}, cascade.fold.rank if isinstance(cascade, Blocked) else None
