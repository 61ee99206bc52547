"""Arguments for any cascade: shapes that fit, values that its functions are defined for."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping

import torch

from einfuse.ir import Cascade, Scalar, interpret
from einfuse.runtime import binding, ranges
from einfuse.runtime.given import Given
from einfuse.runtime.sizes import Shape as Shape
from einfuse.runtime.sizes import example_sizes as example_sizes
from einfuse.runtime.small import restricted

Arguments = dict[str, torch.Tensor | Scalar]
Map = Callable[[torch.Tensor], torch.Tensor]
MOST_INT = 4
"""Ints are drawn from 0 to this: lengths and positions of a few tokens, several documents."""


def example_inputs(cascade: Cascade, dtype: torch.dtype, seed: int, shape: Shape) -> Arguments:
    """Random arguments for a cascade: normal floats, sorted small ints (document ids, lengths), mostly true booleans.

    Floats of which a logarithm or a root is taken are such that it is a number, where that can be had by positive ones, or ones between 0
    and 1; ints that others are divided by are not 0; ints are small enough for what they index, where any are. Tensors with three axes
    or more are strided views, so that no kernel may take contiguity for granted.
    """
    sizes, domain = example_sizes(cascade, shape), _domain(cascade)
    suspects = ranges.suspects(cascade)
    for most in range(MOST_INT, -1, -1):
        found = _drawn(cascade, dtype, seed, sizes, domain, most)
        if all(_in_range(cascade, x, found, sizes) for x in suspects):
            return found
    return _drawn(cascade, dtype, seed, sizes, domain)


def _in_range(cascade: Cascade, suspect: ranges.Suspect, found: Arguments, sizes: Mapping[str, int]) -> bool:
    defaults = {t.name: t.default for t in cascade.inputs if t.param and t.default is not None}
    tensors = {n: x for n, x in found.items() if isinstance(x, torch.Tensor)}
    numbers = {n: x for n, x in found.items() if not isinstance(x, torch.Tensor)}
    try:
        ranges.check(cascade, suspect, Given(tensors, defaults | numbers, sizes))
    except ValueError:
        return False
    return True


def _drawn(
    cascade: Cascade, dtype: torch.dtype, seed: int, sizes: Mapping[str, int], domain: Mapping[str, Map], most: int = MOST_INT
) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    out: Arguments = {}
    for t in cascade.inputs:
        if t.param:
            if t.default is None:
                out[t.name] = 7 if t.dtype == "int" else 0.5
            continue
        extents = [int(binding.evaluate(a, sizes)) for a in t.axes]
        if t.dtype == "float":
            wide = [n + (k == len(extents) - 2) for k, n in enumerate(extents)]
            x = domain.get(t.name, _as_drawn)(torch.randn(wide, generator=generator, dtype=torch.float64)).to(dtype)
            out[t.name] = x.narrow(-2, 0, extents[-2]) if len(extents) > 1 else x
        elif t.dtype == "int":
            x = (
                torch.randint(0, most + 1, extents, generator=generator).sort(-1).values
                if extents
                else torch.tensor(min(most, 3))
            )
            out[t.name] = domain.get(t.name, _as_drawn)(x)
        else:
            out[t.name] = torch.rand(extents, generator=generator) > 0.2
    return out


def _as_drawn(x: torch.Tensor) -> torch.Tensor:
    return x


_MAPS: Mapping[str, tuple[Map, ...]] = {
    "float": (torch.abs, lambda x: x.abs() / (1 + x.abs()), lambda x: 2 + x.abs()),
    "int": (lambda x: x + 1,),
}
"""What makes floats positive, puts them between 0 and 1, above 2; and what makes no int 0."""


@functools.lru_cache(maxsize=256)
def _domain(cascade: Cascade) -> Mapping[str, Map]:
    """What to do to inputs so that results are numbers: greedily, by what leaves the fewest that are not, in a few small draws."""
    sizes = example_sizes(cascade, Shape(1, 4, 5, 7, (12, 20), 2))
    found: dict[str, Map] = {}
    tried = [(t.name, fn) for t in cascade.inputs if t.name in restricted(cascade) for fn in _MAPS[t.dtype]]
    least = _undefined(cascade, sizes, found) if tried else 0
    while least:
        counts = [_undefined(cascade, sizes, {**found, name: fn}) for name, fn in tried]
        if min(counts) >= least:
            break
        least, (name, fn) = min(counts), tried[counts.index(min(counts))]
        found[name] = fn
    return found


def _undefined(cascade: Cascade, sizes: Mapping[str, int], domain: Mapping[str, Map]) -> int:
    """How many results of the oracle are no number, in draws of inputs with these maps; all where it divides whole numbers by 0."""
    try:
        draws = [interpret(cascade, _drawn(cascade, torch.float32, seed, sizes, domain), sizes) for seed in range(3)]
    except RuntimeError as error:
        if "ZeroDivisionError" not in str(error):
            raise
        return sys.maxsize
    return sum(int(x.isnan().sum()) for outs in draws for x in outs.values())
