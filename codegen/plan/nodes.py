"""KernelPlan: one kernel as plain data, between the IR and the text of a back end.

A kernel runs one *program* per point of the ambient ranks and per tile of one rank. A program is straight-line block code
around the loops of its folds. Every value is a *block*: a named array over a subset of the ranks (``dims``), in the order
`KernelPlan.order`; a value without dims is a scalar. Operations are in static single assignment form.

    ambient  b, h                     one program each
    tile     i   (block 128)          a program owns i.lo <= i < i.hi
    fold     j   (step 64)            a loop; inside it blocks of j
    feature  d, e  (static sizes)     held whole

Blocks may be padded (powers of two on a GPU, vector widths on a CPU). Padding holds no defined value: an operation that mixes
points (`Reduce`, `Dot`, `Store`) ignores the padding of tile and feature ranks by itself (by masked loads that give 0 or by
bounds); along the *fold* rank it need not: the plan selects identities there in every phase that is not full.

What a back end may rely on, beyond the types:

* A phase labelled ``full`` is whole blocks inside the fold rank: ``hi - lo`` is a multiple of the step and ``hi <= size``, so a
  back end drops bounds checks there. In any other phase the last block may reach past ``hi``: its points below the size of
  the rank exist (loads give their values, stores write them; the plan's mask says which are alive), those beyond do not.
* Names of values are unique, except that the phases of one fold (siblings) may use the same names again.
* The element type of a `Dot`, and of `Reduce` and `Map` of floats, is the accumulation type ``compute``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from einfuse import ir
from einfuse.ir import DType, Scalar

Storage = Literal["f64", "f32", "bf16", "f16", "e4m3", "e5m2", "i64", "i32", "i16", "i8", "u8", "bool"]
"""How an element lies in memory. Floats of 8 bits are read and never written."""

FLOAT8: tuple[Storage, ...] = ("e4m3", "e5m2")
"""Floats of 8 bits, by the bits of their exponent and mantissa."""

FLOATS: tuple[Storage, ...] = ("f64", "f32", "bf16", "f16", *FLOAT8)
"""What a float of the IR may be stored as."""

BYTES: dict[Storage, int] = {
    **{"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "e4m3": 1, "e5m2": 1},
    **{"i64": 8, "i32": 4, "i16": 2, "i8": 1, "u8": 1, "bool": 1},
}
"""Of an element."""

FUNCTIONS = {**ir.FUNCTIONS, ir.COPY.name: ir.COPY}
"""What a `Map` applies: the functions of the IR, and ``copy``."""


@dataclass(frozen=True, slots=True)
class Value:
    """A block: SSA name, the ranks it spans in plan order, element type (floats are accumulated in fp32, or fp64 for fp64 input)."""

    name: str
    dims: tuple[str, ...]
    dtype: DType


@dataclass(frozen=True, slots=True)
class Const:
    out: Value
    value: Scalar


@dataclass(frozen=True, slots=True)
class Coordinate:
    """The coordinates of a rank: a scalar for an ambient one, else a block over that rank (global coordinates, not in-tile)."""

    out: Value
    rank: str


@dataclass(frozen=True, slots=True)
class Size:
    """A size known at launch (an int), or ``i.lo`` / ``i.hi``: the first coordinate of the program's tile and one past its last,
    ``min(i.lo + block, size)``. Inside a fold over j, ``j.lo`` is the first coordinate of the iteration's block."""

    out: Value
    name: str


@dataclass(frozen=True, slots=True)
class Param:
    """A host number passed at launch."""

    out: Value
    name: str


@dataclass(frozen=True, slots=True)
class Load:
    """``tensor[index...]``, one int value per axis; ``where`` (a bool value) limits the points that may be read.

    Coordinates of tile, fold and feature ranks beyond their sizes are never read and give 0, as do points where ``where`` is false.
    ``clamp`` lists the axes whose index must be clamped into the tensor before it is read.
    """

    out: Value
    tensor: str
    index: tuple[Value, ...]
    where: Value | None = None
    clamp: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Map:
    """A scalar function of `FUNCTIONS` at every point, operands broadcast by rank name.

    ``named``: it is the value of a statement of the cascade. All kernels of an attention compute that alike, to the last bit where the
    machine's language lets them: a backward reads statistics that its forward made of such values.
    """

    out: Value
    fn: str
    args: tuple[Value, ...]
    named: bool = False


@dataclass(frozen=True, slots=True)
class Reduce:
    """A block reduced over one of its ranks, by a reducer of the IR that is a monoid.

    An ``any`` may be taken to be ``instead``, a bool value over the ranks of ``out``, in a launch where ``enough`` holds: two sizes of which
    the first is no smaller than the second. A machine that knows sizes before it runs leaves the block alone.

    ``at``: a whole number over the ranks of ``arg``, the place of a last rank that ``out`` has beside these; what is summed goes there, and
    what is at no place of it goes nowhere. CPUs make it (`codegen.cpu.places`).
    """

    out: Value
    fn: str
    arg: Value
    rank: str
    instead: Value | None = None
    enough: tuple[int | str, int | str] = (0, 0)
    at: Value | None = None

    @property
    def reducer(self) -> ir.Reducer:
        return ir.REDUCERS[self.fn]


@dataclass(frozen=True, slots=True)
class Dot:
    """``out[x, y] = acc[x, y] + sum over rank of a[x, rank] * b[y, rank]``: a matrix product in accumulation precision.

    Operands are rounded to the storage dtype of the call where ``narrow`` says so (tensor cores); x comes before y in plan order,
    whatever the order of the operands' own dims. ``where`` (a bool value over the rank) tells which of its points exist here: at the
    others ``a`` is 0, ``b`` counts as 0 whatever it holds (0 * NaN is not 0), and nobody needs what the region computes there.
    """

    out: Value
    a: Value
    b: Value
    rank: str
    acc: Value | None = None
    narrow: bool = True
    where: Value | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """``tensor[index...] = value`` at every existing point of the value's and the indices' dims.

    Points at or beyond the size of a rank do not exist.
    """

    tensor: str
    index: tuple[Value, ...]
    value: Value


Op = Const | Coordinate | Size | Param | Load | Map | Reduce | Dot | Store
Region = tuple[Op, ...]


@dataclass(frozen=True, slots=True)
class State:
    """A loop-carried block: its value at the top of an iteration (and after the loop), and what it starts from."""

    value: Value
    init: float


@dataclass(frozen=True, slots=True)
class Phase:
    """A run of blocks ``lo <= x < hi`` (scalar int values; lo is aligned to nothing, blocks start at lo) in steps of the fold.

    ``updates`` give, state by state in the order of `Fold.states`, the value at the end of an iteration.
    """

    lo: Value
    hi: Value
    body: Region
    updates: tuple[Value, ...]
    label: str  # "masked" | "full": for comments


@dataclass(frozen=True, slots=True)
class Fold:
    """A loop over a rank. ``bounds`` computes the scalars that the phases' lo and hi refer to; runs once before the loop.

    ``tabulated``: the phases (first full, then masked) each walk the list of live blocks of this tile instead of lo..hi; the two
    hidden int32 tensors ``<rank>_count[table row, phase]`` and ``<rank>_block[table row, phase, n]`` hold them, where the table row
    is ``ambient point (flattened over the ambient ranks named in table_ranks) * tiles + tile`` and phase 0 is full, 1 is masked.
    Folds over one rank share the tables. ``lo`` and ``hi`` of the phases are not read. ``size`` is that of the folded rank, as in `Block`.
    ``even``: blocks begin at multiples of the step and the size is one, so that none reaches beyond the rank.
    The states keep their names after the loop: the regions that follow read them.
    """

    rank: str
    step: int
    states: tuple[State, ...]
    bounds: Region
    phases: tuple[Phase, ...]
    tabulated: bool = False
    table_ranks: tuple[str, ...] = ()
    size: int | str = ""  # required; last so that it is named where a fold is built
    even: bool = False

    def mapped(self, body: Callable[[Region], Region]) -> Fold:
        """The fold with the bodies of its phases through this."""
        return replace(self, phases=tuple(replace(p, body=body(p.body)) for p in self.phases))


@dataclass(frozen=True, slots=True)
class Arg:
    """A tensor argument: name, number of axes, storage dtype, and whether it is written. Strides and sizes are passed at launch."""

    name: str
    axes: int
    storage: Storage
    out: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """A rank of the plan: its size (a number or the name of a launch size) and how many coordinates a block holds.

    ``turns``: the points of this ambient rank, and of those behind it, run one after the other for each point of the ranks before it.
    """

    rank: str
    size: int | str
    block: int
    turns: bool = False


@dataclass(frozen=True, slots=True)
class Kept:
    """Room of a program for the rows of its ``tile``, each with all coordinates of a rank of this size: a tensor that no launch passes."""

    tensor: str
    tile: str
    size: int | str


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """One kernel. ``steps`` alternate straight-line regions and folds, in order."""

    name: str
    equations: str  # the cascade's text, for comments
    ambient: tuple[Block, ...]
    tile: Block | None
    features: tuple[Block, ...]
    tensors: tuple[Arg, ...]
    params: tuple[tuple[str, DType], ...]
    sizes: tuple[str, ...]
    steps: tuple[Region | Fold, ...]
    compute: Literal["f32", "f64"] = "f32"
    narrow: Storage = "f32"  # what `Dot.narrow` operands are rounded to: the storage dtype of the call
    kept: tuple[Kept, ...] = ()

    @property
    def named(self) -> dict[str, Arg]:
        """The tensors that operations read and write, those of the program itself among them."""
        return {t.name: t for t in (*self.tensors, *(Arg(k.tensor, 2, self.compute, out=True) for k in self.kept))}

    @property
    def folds(self) -> tuple[Fold, ...]:
        return tuple(s for s in self.steps if isinstance(s, Fold))

    @property
    def regions(self) -> tuple[Region, ...]:
        """What stands outside folds."""
        return tuple(s for s in self.steps if not isinstance(s, Fold))

    @property
    def outer(self) -> Region:
        """The operations outside folds, in order."""
        return outside(self.steps)

    @property
    def straight(self) -> Region | None:
        """All of a plan that has no tile and no folds; None of another."""
        return None if self.tile is not None or self.folds else self.outer

    def walk(self, region: Callable[[Region], None], fold: Callable[[Fold], None]) -> None:
        """Hands every step to one of these, in order."""
        for step in self.steps:
            match step:
                case Fold():
                    fold(step)
                case tuple():
                    region(step)
                case _:
                    assert_never(step)

    def mapped(self, region: Callable[[Region], Region], fold: Callable[[Fold], Fold]) -> KernelPlan:
        """The plan with its steps through these, in order."""
        return replace(self, steps=tuple(fold(s) if isinstance(s, Fold) else region(s) for s in self.steps))

    @property
    def order(self) -> tuple[str, ...]:
        """The canonical order of ranks in ``dims``: ambient never occur; tile, folds, then features."""
        folds = tuple(dict.fromkeys(f.rank for f in self.folds))
        return ((self.tile.rank,) if self.tile else ()) + folds + tuple(f.rank for f in self.features)


def reads(op: Op) -> tuple[Value, ...]:
    """The values an operation reads."""
    match op:
        case Load(index=index, where=where):
            return index + ((where,) if where else ())
        case Map(args=args):
            return args
        case Reduce(arg=arg, instead=instead, at=at):
            return (arg, *(v for v in (instead, at) if v))
        case Dot(a=a, b=b, acc=acc, where=where):
            return (a, b, *(v for v in (acc, where) if v))
        case Store(index=index, value=value):
            return (*index, value)
    return ()


def table_ranks(plan: KernelPlan) -> tuple[str, ...]:
    """The ranks whose live blocks come from tables, in the order in which these are passed."""
    return tuple(dict.fromkeys(f.rank for f in plan.folds if f.tabulated))


def with_out(op: Op, out: Value) -> Op:
    """The operation as one that defines ``out``."""
    match op:
        case Const() | Coordinate() | Size() | Param() | Load() | Map() | Reduce() | Dot():
            return replace(op, out=out)
    raise AssertionError("stores give no value")


def computed(op: Op) -> Op:
    """What an operation computes, whatever its value is called: operations for which this is equal are one."""
    assert not isinstance(op, Store), "stores give no value"
    return with_out(op, replace(op.out, name=""))


def renamed(op: Op, new: Mapping[str, Value]) -> Op:
    """The operation on the values that ``new`` gives for those it reads."""
    match op:
        case Load(index=index, where=where):
            return replace(op, index=tuple(new[v.name] for v in index), where=new[where.name] if where else None)
        case Map(args=args):
            return replace(op, args=tuple(new[v.name] for v in args))
        case Reduce(arg=arg, instead=instead, at=at):
            other, place = (new[v.name] if v else None for v in (instead, at))
            return replace(op, arg=new[arg.name], instead=other, at=place)
        case Dot(a=a, b=b, acc=acc, where=where):
            begun, alive = (new[v.name] if v else None for v in (acc, where))
            return replace(op, a=new[a.name], b=new[b.name], acc=begun, where=alive)
        case Store(index=index, value=value):
            return replace(op, index=tuple(new[v.name] for v in index), value=new[value.name])
    return op


def operations(plan: KernelPlan) -> Iterator[Op]:
    """Every operation of a plan, in order."""
    for step in plan.steps:
        for region in code(step):
            yield from region


def code(step: Region | Fold) -> tuple[Region, ...]:
    """The straight-line code of a step: of a fold its bounds, then the bodies of its phases."""
    match step:
        case Fold(bounds=bounds, phases=phases):
            return (bounds, *(p.body for p in phases))
        case tuple():
            return (step,)
    assert_never(step)


def outside(steps: Iterable[Region | Fold]) -> Region:
    """The operations of these steps that stand in no fold."""
    return tuple(op for s in steps if not isinstance(s, Fold) for op in s)
