"""Arithmetic that rounds at random: torch code run as a narrower float type would run it, sums in any order.

    with Rounding(torch.float32, seed=3):        # every float64 operation inside, and every one of autograd's
        outs = interpret(cascade, inputs, sizes)

Results that the type cannot hold are moved up or down by a seeded coin (stochastic arithmetic: Vignes, 2004; Parker, 1997), sums and
differences by the unit of the sum of their magnitudes: no order of adding up meets a larger partial sum, and two evaluations of one number
need not agree. So what cancels in theory alone does not cancel here, and the spread of what comes out says how far any evaluation in that
type may lie from the truth. Operations that choose or move numbers are exact, and so is every result that the type can hold, made of numbers
that it can hold. The coins are those of a counter (Philox) and the values are float64: nothing depends on the processor, its vectors or its
BLAS beyond float64's own 1e-16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ARITHMETIC = 2.0
"""Half units in the last place by which results of arithmetic are moved: where kernels decide, by comparing, they are about as exact."""
STORAGE = 1.0
"""The same for numbers held in a type of 16 bits: kernels compute in float32, and round the sides of products of matrices."""

EXACT = frozenset(
    "abs amax amin cat clamp clamp_max clamp_min clone copy_ fill_ floor gather index index_select masked_fill masked_fill_ maximum minimum "
    "neg repeat select_backward sgn sign slice_backward stack _to_copy where _unsafe_view".split()
)
"""Operators that choose and move numbers, or give whole ones. Views are exact by what they are."""
PRODUCTS = frozenset("bmm mm mv dot".split())
REDUCTIONS = PRODUCTS | {"sum"}
SUMS = REDUCTIONS | frozenset("add add_ sub sub_ rsub cumsum mean".split())
SCATTERS = frozenset("index_put index_put_ _index_put_impl_ _unsafe_index_put".split())
"""Operators that add up. Those of the last kind may; else they move numbers."""
DIFFERENCES = {"sub": torch.ops.aten.add, "sub_": torch.ops.aten.add, "rsub": torch.ops.aten.add}


class Rounding(TorchDispatchMode):
    """While it is entered, float64 results of torch are rounded at random to ``dtype``.

    Kernels in types of 16 bits compute in float32, and so does this; of what follows from tensors marked by `narrow`, the sides of products of
    matrices are rounded to ``dtype`` as well. In the ``backward`` that of sums is too: kernels take what a row's gradients have in common from
    outputs that were stored, and a gradient that has several sources is stored between them.

    ``sums`` are those of an earlier run of the same code (the attribute of that name), which take the place of the ones at hand: a backward
    reads the statistics of rows as a forward made them, and computes again what they were taken of, not always in the same order.
    """

    def __init__(self, dtype: torch.dtype, *seed: int, backward: bool = False, sums: Sequence[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.wide = dtype, torch.promote_types(dtype, torch.float32)
        self.error = ARITHMETIC * torch.finfo(self.wide).eps / 2
        self.storing = 0.0 if dtype == self.wide else STORAGE * torch.finfo(dtype).eps / 2
        self.backward, self.coins = backward, np.random.Philox(seed)
        self.earlier, self.sums = sums, list[Tensor]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        given = list(_tensors(args))
        marked = any(getattr(x, "_narrow", False) for x in given)
        stores = marked and self.storing > 0
        if stores and name in PRODUCTS:
            args = tuple(self._stored(x) for x in args)
        scatters = name in SCATTERS and bool(args[3:] and args[3])
        adds = name in SUMS or scatters
        reduces = name in REDUCTIONS or (scatters and args[2].numel() > args[0].numel())
        sizes = None
        if adds and any(x.dtype == torch.float64 for x in given):
            sizes = DIFFERENCES.get(name, func)(*map(_magnitude, args), **kwargs)
        out = func(*args, **kwargs)
        rounds = adds or not (func.is_view or name in EXACT or name in SCATTERS)
        for x in _tensors(out):
            if rounds and x.dtype == torch.float64:
                self._move(x, x if sizes is None else sizes, self.error, self.wide)
                if stores and self.backward and reduces:
                    self._move(x, x, self.storing, self.dtype)
            if marked:
                narrow(x)
        if reduces and name not in PRODUCTS:
            self._keep(out)
        return out

    def _keep(self, x: Tensor) -> None:
        """Keeps a sum; where earlier ones are given, the earlier one takes its place."""
        before = self.earlier[len(self.sums) : len(self.sums) + 1]
        if before and before[0].shape == x.shape:
            x.copy_(before[0])
        self.sums.append(x.detach())

    def _stored(self, x: Tensor) -> Tensor:
        """A copy, rounded to the type of 16 bits."""
        y = x.clone()
        self._move(y, y, self.storing, self.dtype)
        return y

    def _move(self, x: Tensor, size: Tensor, error: float, exact: torch.dtype) -> None:
        """Moves ``x`` by ``error`` of ``size``, what it was made of, but where both are numbers that the type ``exact`` holds."""
        exact = (
            torch.float32 if exact == torch.float64 else exact
        )  # which holds everything: short numbers alone are left as they are
        step = size * error
        step.masked_fill_((size == size.to(exact)) & (x == x.to(exact)), 0.0)
        words = self.coins.random_raw((x.numel() + 63) // 64)
        coins = np.unpackbits(np.atleast_1d(words).astype("<u8", copy=False).view(np.uint8), count=x.numel())
        x.add_(torch.where(torch.from_numpy(coins).view(torch.bool).view(x.shape), step, -step))


def narrow(x: Tensor) -> Tensor:
    """The tensor, marked as an input in the type that is rounded to: what follows from it is rounded to that where kernels do so."""
    x._narrow = True  # type: ignore[attr-defined]
    return x


def _magnitude(x: Any) -> Any:
    return x.abs() if isinstance(x, Tensor) and x.is_floating_point() else x


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, list | tuple):
        for one in x:
            yield from _tensors(one)
