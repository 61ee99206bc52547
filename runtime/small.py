"""A small example of a cascade without torch: drawn arguments, and what every query takes of every key."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from einfuse.ir import FUNCTIONS, Cascade, EinfuseError, Rank, Tensor
from einfuse.ir import expr as ex
from einfuse.ir.points import Points, Values
from einfuse.ir.rewrite import every_einsum, statements
from einfuse.runtime.sizes import Shape, evaluate, example_sizes

LENGTH = 16
"""Queries and keys."""
WIDTH = 8
"""Features of queries and keys."""
_ROOTS = frozenset(name for name, f in FUNCTIONS.items() if f.pole is not None)
_DIVISIONS = frozenset({"//", "%"})
_MAPS: tuple[Callable[[float], float], ...] = (lambda x: x, abs, lambda x: abs(x) / (1 + abs(x)), lambda x: 2 + abs(x))
"""What is tried on floats whose logarithm or root is taken, until every result is a number."""


@dataclass(frozen=True, slots=True)
class Weights:
    """``values[query][key]``; ``of`` names the values that were set to the unit vectors."""

    of: tuple[str, ...]
    values: list[list[float]]


def weights(cascade: Cascade, length: int = LENGTH, seed: int = 0) -> Weights:
    """What each query takes of each key: the output for values of which the one of key j is the j-th unit vector.

    Queries, keys and whatever else is read are drawn. Raises EinfuseError where an output is not of queries and features, or no input is
    of keys and those features.
    """
    out, feature, keys = _output(cascade)
    sizes = example_sizes(cascade, Shape(1, 1, length, length, (WIDTH, WIDTH), 1))
    if isinstance(feature.size, str):
        sizes[feature.size] = length
    mine = [t for t in cascade.inputs if _is_value(t, keys, feature)]
    if not mine or (isinstance(feature.size, int) and feature.size < length):
        raise EinfuseError(f"no input of {cascade.name} has a value of {feature.name} for every key")
    for change in _MAPS:
        found = _rows(Points(cascade, _drawn(cascade, sizes, mine, change, seed), sizes).output(out))
        if all(map(math.isfinite, (x for row in found for x in row))):
            break
    return Weights(tuple(t.name for t in mine), [row[:length] for row in found])


def _output(cascade: Cascade) -> tuple[str, Rank, int | str]:
    """The output that is drawn, its features, and the size of the rank that it is made of."""
    ranks = {x.target: x.ranks for x in every_einsum(cascade)}
    for name in cascade.outs:
        kinds = [cascade.rank(r).kind for r in ranks.get(name, ())]
        if kinds == ["query", "feature"] and cascade.place(name) is None:
            rows, feature = (cascade.rank(r) for r in ranks[name])
            key = next((r for r in cascade.ranks if r.kind == "key"), rows)
            return name, feature, key.size
    raise EinfuseError(f"no output of {cascade.name} is one of queries and features")


def _is_value(t: Tensor, keys: int | str, feature: Rank) -> bool:
    wanted = (ex.size(n) if isinstance(n, str) else ex.const(n) for n in (keys, feature.size))
    return t.dtype == "float" and len(t.axes) >= 2 and t.axes[-2:] == tuple(wanted)


def _rows(found: Values) -> list[list[float]]:
    assert isinstance(found, Sequence), "an output of queries and features is a matrix"
    return [[float(x) for x in row] for row in found if isinstance(row, Sequence)]  # type: ignore[arg-type]  # numbers


def _drawn(
    cascade: Cascade, sizes: Mapping[str, int], values: Iterable[Tensor], change: Callable[[float], float], seed: int
) -> dict[str, Values]:
    """Normal floats, sorted small ints, mostly true booleans, by one generator."""
    generator = random.Random(seed)
    bounded, units = restricted(cascade), {t.name for t in values}
    out: dict[str, Values] = {}
    for t in cascade.inputs:
        if t.param:
            if t.default is None:
                out[t.name] = 7 if t.dtype == "int" else 0.5
            continue
        extents = [int(evaluate(a, sizes)) for a in t.axes]
        if t.name in units:
            out[t.name] = _filled(extents, lambda at: float(at[-1] == at[-2]))
        elif t.dtype == "float":
            made = change if t.name in bounded else (lambda x: x)
            out[t.name] = _filled(extents, lambda at, made=made: made(generator.gauss(0, 1)))  # type: ignore[misc]
        elif t.dtype == "int":
            least = 1 if t.name in bounded else 0
            drawn = sorted(generator.randint(least, 4) for _ in range(extents[-1] if extents else 1))
            out[t.name] = _filled(extents, lambda at, drawn=drawn: drawn[at[-1] if at else 0])  # type: ignore[misc]
        else:
            out[t.name] = _filled(extents, lambda at: generator.random() > 0.2)
    return out


def _filled(extents: Sequence[int], value: Callable[[tuple[int, ...]], Values], at: tuple[int, ...] = ()) -> Values:
    if len(at) == len(extents):
        return value(at)
    return [_filled(extents, value, (*at, n)) for n in range(extents[len(at)])]


def restricted(cascade: Cascade) -> set[str]:
    """The inputs that are read where a function is not defined for all numbers: in a logarithm, a root, the divisor of whole numbers."""
    made = {t.name: {t.name} for t in cascade.inputs if not t.param}
    found: set[str] = set()
    for x in statements(cascade):
        made[x.target] = made.get(x.target, set()).union(*(made.get(n, set()) for n in ex.reads(x.map)))
        for e in (e for whole in x.expressions for e in ex.walk(whole) if e.op in _ROOTS | _DIVISIONS):
            found.update(*(made.get(n, set()) for n in ex.reads(e.args[1] if e.op in _DIVISIONS else e)))
    return {t.name for t in cascade.inputs if t.name in found and t.dtype != "bool"}
