"""ScanPlan: a blocked scan as plain data. One program a point of the ambient ranks; it runs the blocks of one rank in order.

    ambient  b, h                   one program each
    scanned  i, with others i_2 ... lo <= i < hi, the block; i_2 are the same points once more (a second axis of the same extent)
    feature  d, e  (static sizes)   held whole

Operations are those of `codegen.plan` in single assignment, with three more. Values span ranks in `ScanPlan.order`. The last block
(the first one run, where ``reverse``) may be shorter than ``step``: points beyond the size do not exist, and no `Reduce`, `Dot`,
`Solve`, `Prefix` or `Store` sees them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from einfuse.codegen import plan as kp
from einfuse.codegen.plan import Value
from einfuse.ir import DType


@dataclass(frozen=True, slots=True)
class Relabel:
    """The same block with one name of the scanned rank for another (``i`` for ``i_2``): no work, only other names for its axes."""

    out: Value
    arg: Value

    @property
    def moved(self) -> tuple[str, str]:
        """The old name and the new one."""
        (old,), (new,) = set(self.arg.dims) - set(self.out.dims), set(self.out.dims) - set(self.arg.dims)
        return old, new


@dataclass(frozen=True, slots=True)
class Solve:
    """``out[i, e] = known[i, e] + sum over i_2 of matrix[i, i_2] * out[i_2, e]`` with a strictly lower ``matrix`` over (i, i_2).

    ``transposed``: of ``matrix[i_2, i]``, so from the last point up. What stands on or above the diagonal of ``matrix`` is not read.
    """

    out: Value
    matrix: Value
    known: Value
    transposed: bool


@dataclass(frozen=True, slots=True)
class Prefix:
    """Sums along ``rank`` up to each point (``reverse``: from each point to the end), the point itself included unless ``exclusive``."""

    out: Value
    arg: Value
    rank: str
    reverse: bool
    exclusive: bool


Op = kp.Op | Relabel | Solve | Prefix
Region = tuple[Op, ...]


@dataclass(frozen=True, slots=True)
class State:
    """A block carried along: its value at the start of a block of points, the one it starts from and the one after."""

    value: Value
    init: Value
    update: Value


@dataclass(frozen=True, slots=True)
class Partial:
    """An output that programs write shares of, along leading axes that the caller adds up: one for each ``part`` of the shared rank, one
    for each ``block`` (in this order)."""

    tensor: str
    axes: tuple[Literal["part", "block"], ...]


@dataclass(frozen=True, slots=True)
class Scratch:
    """A tensor in accumulation precision that one kernel of a scan hands to the next, over these ranks (``<i_2>``: places in a block)."""

    name: str
    ranks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """One kernel. ``before`` runs once a program, ``body`` once a block, ``after`` at the end (the states have their last values).

    Without states the blocks do not depend on each other, and each is a program of its own. The feature rank ``shared`` is shared out over
    programs, as many columns each as its `Block` says; the coordinate ``<part>`` is the number of a program's share. An output that
    lacks the rank and is not `Partial` is the same in all of them, and the first writes it.
    """

    name: str
    equations: str
    ambient: tuple[kp.Block, ...]
    rank: str
    others: tuple[str, ...]
    count: str | None
    size: int | str
    step: int
    reverse: bool
    features: tuple[kp.Block, ...]
    tensors: tuple[kp.Arg, ...]
    params: tuple[tuple[str, DType], ...]
    sizes: tuple[str, ...]
    states: tuple[State, ...]
    before: Region
    body: Region
    after: Region
    compute: Literal["f32", "f64"] = "f32"
    narrow: kp.Storage = "f32"
    partial: tuple[Partial, ...] = ()
    scratch: tuple[Scratch, ...] = ()
    shared: str | None = None

    @property
    def parts(self) -> int:
        """Into how many programs the shared rank is divided."""
        found = next((f for f in self.features if f.rank == self.shared), None)
        if found is None:
            return 1
        assert isinstance(found.size, int), "sizes of features are known"
        return -(-found.size // found.block)

    @property
    def folds(self) -> tuple[()]:
        """The folds whose live tiles come from tables, for the launcher of `codegen.cpu`: a scan has none."""
        return ()

    @property
    def order(self) -> tuple[str, ...]:
        """The canonical order of ranks in ``dims``."""
        return (self.rank, *self.others, *(f.rank for f in self.features))

    @property
    def moving(self) -> tuple[str, ...]:
        """The ranks that hold the points of a block."""
        return (self.rank, *self.others)


def reads(op: Op) -> tuple[Value, ...]:
    """The values an operation reads."""
    match op:
        case Relabel(arg=arg) | Prefix(arg=arg):
            return (arg,)
        case Solve(matrix=matrix, known=known):
            return (matrix, known)
    return kp.reads(op)


def fresh_names(plan: ScanPlan) -> set[str]:
    """Every name of a plan that another may not have: those of values and tensors."""
    every = (*plan.before, *plan.body, *plan.after)
    values = {op.out.name for op in every if not isinstance(op, kp.Store)} | {s.value.name for s in plan.states}
    return values | {t.name for t in plan.tensors}


def needed(ops: Region, wanted: set[str]) -> Region:
    """The stores, and what they and ``wanted`` need."""
    wanted, out = set(wanted), list[Op]()
    for op in reversed(ops):
        if isinstance(op, kp.Store) or op.out.name in wanted:
            out.append(op)
            wanted |= {v.name for v in reads(op)}
    return tuple(out[::-1])
