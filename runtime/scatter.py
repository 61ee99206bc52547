"""The last step of a gradient: a kernel's partial result, added into the input at the places where it was read."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from einfuse.ir import Cascade, Expr
from einfuse.ir import expr as ex
from einfuse.ir.expr import indices, reads
from einfuse.ir.interpreter import evaluate_indices
from einfuse.ir.passes.backward import Gradient
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Host, Tensors

Window = Mapping[str, tuple[int, int]]


def contracted(part: Gradient, values: Mapping[str, torch.Tensor]) -> tuple[Gradient, torch.Tensor]:
    """The part and its value; of a product of two statements, summed over the ranks that no index mentions, as a part of its own."""
    value = values[part.statement]
    if part.times is None:
        return part, value
    name, ranks = part.times
    used = set().union(*map(indices, part.index))
    letter = {r: chr(ord("a") + n) for n, r in enumerate(dict.fromkeys((*part.ranks, *ranks)))}
    both = [r for r in part.ranks if r in ranks]
    # a product for each of all ranks but the last, added up: else what is summed over would have to be laid side by side, a copy
    beside = both[:-1] if both and both[-1] not in used and not used.isdisjoint(both) else []
    kept = tuple(r for r in letter if r in used or r in beside)
    a, b, out = ("".join(letter[r] for r in rs) for rs in (part.ranks, ranks, kept))
    value = torch.einsum(f"{a},{b}->{out}", value, values[name])
    gone = [n for n, r in enumerate(kept) if r not in used]
    left = tuple(r for r in kept if r in used)
    return replace(part, ranks=left, times=None), value.sum(gone) if gone else value


def by_rows(
    cascade: Cascade, part: Gradient, values: Mapping[str, torch.Tensor], given: Given, window: Window
) -> tuple[Gradient, torch.Tensor]:
    """The same of a part that has a value for pairs and, it may be, features of rows: the values of a row are added up by their places first.

    So features are multiplied by a number for each row and place, and not for each pair.
    """
    if part.times is None:
        return part, values[part.statement]
    value, (name, ranks) = values[part.statement], part.times
    shared = tuple(r for r in part.ranks if r in ranks)
    others = [r for r in part.ranks if r not in ranks]
    (n,) = (n for n, e in enumerate(part.index) if indices(e) & {*others})
    pair = others[0]
    shape = [*(value.shape[part.ranks.index(r)] for r in shared), given.tensors[part.input].shape[n]]
    if math.prod(shape) > value.numel() * max(values[name].numel() // max(math.prod(shape[:-1]), 1), 1):
        return contracted(part, values)  # a row has fewer pairs, features included
    placed = _rowwise(cascade, (*map(ex.index, shared), part.index[n]), part.ranks, value, shape, given, window)
    assert placed is not None, "its first axes are ranks of its own"
    index = (*part.index[:n], ex.index(pair), *part.index[n + 1 :])
    moved = replace(part, ranks=(*shared, pair), index=index)
    return contracted(moved, {part.statement: placed, name: values[name]})


def total(name: str) -> str:
    """What the sum of an input's gradient is called among the tensors of a graph."""
    return f"sum for {name}"


def adding(
    parts: Iterable[Gradient], read: Iterable[str], known: Given, add: Callable[[dict[str, torch.Tensor], Tensors, Given], None]
) -> Host:
    """The node that adds ``parts`` of gradients to the sums of their inputs: ``add`` gets these sums, all tensors, and the call."""
    parts = tuple(parts)
    inputs = tuple(dict.fromkeys(p.input for p in parts))
    tables = [n for p in parts for e in p.index for n in reads(e) if n in known.tensors]

    def do(tensors: Tensors, call: Given) -> None:
        sums = {n: tensors[total(n)] for n in inputs if total(n) in tensors}
        add(sums, tensors, Given(tensors, {**known.numbers, **call.numbers}, {**known.sizes, **call.sizes}))
        tensors |= {total(n): x for n, x in sums.items()}

    every = dict.fromkeys((*read, *tables, *inputs, *map(total, inputs)))
    return Host("add up", tuple(every), tuple(map(total, inputs)), do)


def accumulate(
    total: dict[str, torch.Tensor],
    cascade: Cascade,
    part: Gradient,
    value: torch.Tensor,
    given: Given,
    window: Window | None = None,
    at: Axes | None = None,
) -> None:
    """``total[input][index] += value``; ``value`` has the axes ``part.ranks``, of which it may hold a ``window`` only. Deterministic.

    ``at`` are the axes of the part where they are known.
    """
    window = window or {}
    shape = list(given.tensors[part.input].shape)
    at = at or axes(part.ranks, part.index)
    value, ranks = functools.reduce(torch.sum, reversed(at.gone), value), at.ranks  # in turn: torch is slow at several axes
    held = total.get(part.input)
    cut = {n: window[e.name] for n, e in enumerate(part.index) if e.op == "index" and e.name in window} if window else {}
    mine = [cut[n][1] - cut[n][0] if n in cut else extent for n, extent in enumerate(shape)]
    share = _direct(value, at, mine)
    if share is None:
        share = _rowwise(cascade, part.index, ranks, value, mine, given, window)
    if share is not None and list(share.shape) != shape:
        if held is None:
            held = total[part.input] = torch.zeros(shape, dtype=value.dtype, device=value.device)
        for axis, (lo, hi) in cut.items():
            held = held.narrow(axis, lo, hi - lo)
        held += share
        return
    if share is None:
        share = _indexed(cascade, part.index, ranks, value, shape, given, window)
    elif held is None and window and share.data_ptr() == value.data_ptr():
        share = share.clone()  # what a window gave is written over by the next one
    total[part.input] = share if held is None else held + share


def _indexed(
    cascade: Cascade,
    index: tuple[Expr, ...],
    ranks: tuple[str, ...],
    value: torch.Tensor,
    shape: list[int],
    given: Given,
    window: Window,
) -> torch.Tensor:
    """A tensor of zeros with ``value`` added at the computed indices, one after the other: rows of the last axes that are read whole."""
    row = _row(index, ranks, value, shape)
    places = tuple(r for r in ranks if r not in row)
    value = value.permute([ranks.index(r) for r in (*places, *row)])
    first = len(shape) - len(row)
    flat = _flat(cascade, index[:first], places, value, shape[:first], given, window).flatten()
    rows = value.reshape(-1, *shape[first:])
    out = torch.zeros((math.prod(shape[:first]), *shape[first:]), dtype=value.dtype, device=value.device)
    if value.device.type == "cpu":  # the other one is atomic here, and this one on GPUs
        return out.index_add(0, flat, rows).view(shape)
    return out.index_put((flat,), rows, accumulate=True).view(shape)


def _flat(
    cascade: Cascade,
    index: tuple[Expr, ...],
    places: tuple[str, ...],
    value: torch.Tensor,
    shape: list[int],
    given: Given,
    window: Window,
) -> torch.Tensor:
    """Where the points of ``places``, the first axes of ``value``, are read in axes of this ``shape``, counted as one."""
    asked = set().union(*(reads(e) for e in index))
    known = {n: x for n, x in given.inputs.items() if n in asked}
    flat = torch.zeros((), dtype=torch.int64, device=value.device)
    for at, extent in zip(evaluate_indices(cascade, index, places, known, given.sizes, window), shape, strict=True):
        flat = flat * extent + at.to(value.device).clamp(0, extent - 1)
    return flat.expand(value.shape[: len(places)])


def _rowwise(
    cascade: Cascade,
    index: tuple[Expr, ...],
    ranks: tuple[str, ...],
    value: torch.Tensor,
    shape: list[int],
    given: Given,
    window: Window,
) -> torch.Tensor | None:
    """Where the first axes are read at ranks of their own: a row for each of their points, added up one value after the other."""
    first = next((n for n, e in enumerate(index) if e.op != "index" or e in index[:n]), len(index))
    own = tuple(e.name for e in index[:first])
    more = tuple(r for r in ranks if r not in own)
    if not own or not more or first == len(index) or _row(index, ranks, value, shape):
        return None
    value = value.permute([ranks.index(r) for r in (*own, *more)])
    if list(value.shape[:first]) != shape[:first]:
        return None
    at = _flat(cascade, index[first:], (*own, *more), value, shape[first:], given, window).flatten(first)
    out = torch.zeros((*shape[:first], math.prod(shape[first:])), dtype=value.dtype, device=value.device)
    if value.device.type == "cpu":  # a row after the other; on GPUs it is atomic
        return out.scatter_add_(first, at, value.flatten(first)).view(shape)
    rows = torch.arange(math.prod(shape[:first]), device=value.device).view(*shape[:first], 1) * out.shape[-1]
    return out.view(-1).index_put(((rows + at).flatten(),), value.flatten(), accumulate=True).view(shape)


def _row(index: tuple[Expr, ...], ranks: tuple[str, ...], value: torch.Tensor, shape: list[int]) -> tuple[str, ...]:
    """The ranks of the last axes that are read from end to end, each at its own coordinate."""
    row: list[str] = []
    for n in reversed(range(len(index))):
        e, others = index[n], (*index[:n], *index[n + 1 :])
        plain = e.op == "index" and e.name in ranks and not any(e.name in indices(o) for o in others)
        if not plain or value.shape[ranks.index(e.name)] != shape[n]:
            break
        row.append(e.name)
    return tuple(reversed(row))


@dataclass(frozen=True, slots=True)
class Axes:
    """The axes of a part's value: ``gone`` those that no index mentions, ``ranks`` the others, ``order`` the places of these among the axes
    of the input (None where one is not read at a rank of its own or at ``rank // divisor``), ``divided`` which are read so.
    """

    gone: list[int]
    ranks: tuple[str, ...]
    order: list[int] | None
    divided: tuple[bool, ...]


@functools.lru_cache(1024)
def axes(ranks: tuple[str, ...], index: tuple[Expr, ...]) -> Axes:
    """The axes of a part over ``ranks`` that is read at ``index``."""
    used = set().union(*(indices(e) for e in index)) if index else set()
    left = tuple(r for r in ranks if r in used)
    mine = [_own_rank(e) for e in index]
    plain = None not in mine and len(set(mine)) == len(mine) and set(mine) == set(left)
    order = [left.index(r) for r in mine if r is not None] if plain else None
    return Axes([n for n, r in enumerate(ranks) if r not in used], left, order, tuple(e.op == "//" for e in index))


def _direct(value: torch.Tensor, axes: Axes, shape: list[int]) -> torch.Tensor | None:
    """By reshaping alone, where every axis is read at a rank of its own or at ``rank // divisor``."""
    if axes.order is None:
        return None
    if axes.order != sorted(axes.order):
        value = value.permute(axes.order)
    for axis, (divided, extent) in enumerate(zip(axes.divided, shape, strict=True)):
        if divided and value.shape[axis] != extent:
            if extent == 0 or value.shape[axis] % extent:
                return None
            value = value.unflatten(axis, (extent, value.shape[axis] // extent)).sum(axis + 1)
        elif value.shape[axis] != extent:
            return None
    return value


def _own_rank(e: Expr) -> str | None:
    if e.op == "index":
        return e.name
    divided = e.op == "//" and e.args[0].op == "index" and e.args[1].op == "size"
    return e.args[0].name if divided else None
