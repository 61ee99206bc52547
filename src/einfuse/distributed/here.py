"""What a call knows on one device: who holds what, whom to ask, and how a cascade is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

import torch

from einfuse.distributed.routes import Rows
from einfuse.distributed.schedule import Rates
from einfuse.ir import Cascade, Expr, Scalar
from einfuse.ir import expr as ex
from einfuse.ir.passes.shard import Local
from einfuse.ir.rewrite import every_einsum, statements
from einfuse.runtime.recent import Recent

Value = torch.Tensor | Scalar
Values = Mapping[str, Value]
Kind = Literal["", "partial", "states"]
"""How a cascade is run: as a call; as partial states of one; on states that are wider than its tensors."""
Evaluate = Callable[[Cascade, Values, Kind], dict[str, torch.Tensor]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of a mesh and the ranks of a spec that lie along it."""

    name: str
    ranks: tuple[str, ...]


class At(NamedTuple):
    """One device among ``size`` of an axis, its own number being ``rank``."""

    rank: int
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Here:
    """One call on one device. ``layouts`` says for an axis and the size of a rank which rows every device holds; ``sizes`` are the whole's.

    ``at`` is where the device is along every axis. Where an axis goes in more parts than it has devices, a device is one after the other
    each of its parts, and all of this is said of parts.

    ``wide`` is the dtype that sums have. ``training``: some input has a gradient to come. ``kept`` is what was derived in earlier calls.
    ``rates`` are those of devices and their links.
    """

    at: Mapping[str, At]
    layouts: Mapping[str, Mapping[str, Sequence[Rows]]]
    sizes: Mapping[str, int]
    evaluate: Evaluate
    wide: torch.dtype
    training: bool
    kept: Recent[Any, Any]
    rates: Rates

    def memo(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        found: T = self.kept.made(key, make)
        return found

    def rows(self, axis: Axis, along: Expr) -> Sequence[Rows]:
        """The rows of an axis of a tensor that every device holds."""
        held = self.layouts[axis.name]
        if along.op == "//":  # groups of what is held, each wholly by one
            (size, by) = (held[along.args[0].name], self.extent(along.args[1]))
            return [r[::by] // by for r in size]
        return held[str(along.value)]

    def extent(self, e: Expr) -> int:
        return int(e.value) if e.op == "const" else self.sizes[e.name]  # type: ignore[arg-type]  # a number or the name of one

    def sized(self, **sizes: int) -> Here:
        """With other sizes."""
        return replace(self, sizes={**self.sizes, **sizes})


def consecutive(rows: Rows) -> bool:
    """Whether they are numbers from a first one on."""
    return len(rows) == 0 or bool((rows == torch.arange(int(rows[0]), int(rows[0]) + len(rows))).all())


def coordinates(local: Local, rows: Rows, here: Here, device: torch.device) -> dict[str, Value]:
    """What a local cascade takes besides: where its rows are, and the sizes of the whole."""
    out: dict[str, Value] = {}
    names = {t.name for t in local.cascade.inputs}
    if local.at in names:
        out[local.at] = rows.to(device) if local.listed else int(rows[0]) if len(rows) else 0
    sizes = {**here.sizes, local.rows: len(rows)}
    return out | {w: torch.zeros(1, dtype=torch.bool, device=device).expand(sizes[n]) for w, n in local.witnesses}


def only(c: Cascade, values: Values) -> dict[str, Value]:
    """The values that are inputs of the cascade."""
    return {t.name: values[t.name] for t in c.inputs if t.name in values}


def axes_of(c: Cascade, name: str) -> tuple[str, ...]:
    """The ranks of an output's axes, in order."""
    return (*c.over, *next(x.ranks for x in statements(c) if x.target == name))


def has_features(c: Cascade, name: str) -> bool:
    """Whether an output has the dtype of the call; row statistics and states are wider."""
    ranks = {x.target: x.ranks for x in every_einsum(c)}
    return any(c.rank(r).kind == "feature" for r in ranks.get(name, ()))


def tensors(values: Values) -> dict[str, torch.Tensor]:
    return {n: x for n, x in values.items() if isinstance(x, torch.Tensor)}


def device_of(values: Values) -> torch.device:
    return next(iter(tensors(values).values())).device


def sequence(c: Cascade) -> tuple[str, ...]:
    """The ranks of queries and keys along which inputs lie, as long as they are."""
    found = [r.name for r in c.ranks if r.kind in ("query", "key") and r.extent is None and isinstance(r.size, str)]
    return tuple(r for r in found if r not in c.over)


def size_of(c: Cascade, rank: str) -> str:
    """The name of the size of a rank that is sharded."""
    size = c.rank(rank).size
    return size if isinstance(size, str) else str(ex.const(size).value)
