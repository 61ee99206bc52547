"""The intermediate representation: every node type of a cascade, in one file that reads as its grammar.

A *cascade* is a list of extended Einsums over named ranks (FuseMax, MICRO 2024; EDGE, arXiv 2404.11591)::

    cascade := over ranks inputs body outs [places] tile
    body    := (einsum | fold)*
    einsum  := target[ranks] = [red[over]] map [where mask]
    fold    := fold rank [with ranks] [count rank] [step] [reverse] [ranges] [split] [where mask] { (einsum | state)* }
    state   := target[ranks] = red map [carry expr] [from expr]

Maps, masks, carries, bounds and sizes are expressions (`ir.scalars`). All nodes are immutable and compare structurally; ``loc`` (the place in
the user's text) takes no part in comparison.

The class of a cascade is its stage (`class_of`): the type says what its body may hold, and a pass says in its signature which it takes.

    Flat       Einsums alone: as built, and until it is fused
    Scan       one fold whose points come in order, and Einsums before and after it
    Blocked    a Scan in blocks: such a fold with a step, and nothing else
    Cascade    any of them; of this class itself is what is fused

What code asks of every kind of statement, all of them have: ``expressions``, ``lines``, ``over``.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, Self, TypeVar, overload

from einfuse.ir.errors import SpecError
from einfuse.ir.reducers import POINTWISE, REDUCERS, Reducer
from einfuse.ir.scalars import DType as DType
from einfuse.ir.scalars import Expr as Expr
from einfuse.ir.scalars import Scalar as Scalar
from einfuse.ir.span import Span

RankKind = Literal["batch", "head", "query", "key", "feature", "state", "turn"]
RANK_KINDS: tuple[RankKind, ...] = ("batch", "head", "query", "key", "feature", "state")


def _loc() -> Span | None:
    return field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Rank:
    """A named axis of the iteration space; ``size`` is a number or the name of a size known at launch.

    The points of an ambient rank of the kind ``turn``, which no spec has, run one after the other: each may read what earlier ones wrote.
    ``extent`` tells a size that is no axis of a tensor, in sizes that are.
    """

    name: str
    kind: RankKind
    size: int | str
    loc: Span | None = _loc()
    extent: Expr | None = None

    @property
    def is_sequence(self) -> bool:
        """Whether loops and tiles go along it: queries, keys and what is batched; a feature or state is held whole."""
        return self.kind not in ("feature", "state")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input. ``axes`` are its sizes (expressions over size names); a ``param`` is a host number without axes.

    An axis that is a bare unknown name binds that size to what is found at the call; in ``H // group`` with ``H`` known
    the divisor is bound, and must divide. A bool tensor may be ``listed``: a call gives, in place of its last axis, so many entries,
    the coordinates at which it is true. Entries outside the axis are none, and one that stands twice counts once.
    A tensor that is ``made`` has other values in every call, so that it does not pay to look for dead tiles in it.
    """

    name: str
    axes: tuple[Expr, ...]
    dtype: DType = "float"
    param: bool = False
    default: Scalar | None = None
    loc: Span | None = _loc()
    listed: Expr | None = None
    made: bool = False

    @property
    def given(self) -> tuple[tuple[Expr, ...], DType]:
        """The axes and the type of the tensor that a call takes for it."""
        return (self.axes, self.dtype) if self.listed is None else ((*self.axes[:-1], self.listed), "int")


@dataclass(frozen=True, slots=True)
class Einsum:
    """``target[ranks] = red[over] map where mask``; without ``red`` a pointwise statement.

    A point where ``mask`` is false does not exist: a reduction skips it, and no reader may see it.

    ``red == "solve"`` makes the statement an equation in its own target: ``u[i, e] = solve[r] b[i, e] + m[i, r] * u[r, e] where r < i``
    is the u with ``u[i] = b[i] + sum over r < i of m[i, r] u[r]``, a triangular system (with ``r > i``: the other triangle).

    ``red == "topk"`` makes a list of coordinates: ``sel[i, n] = topk[w] g[i, w]`` holds in slot n the w of the n-th largest value among the
    points that exist, equal values by w, NaN behind every number; of several ranks their row-major number. The slot n is the last rank
    and stands neither in the map nor in the mask; it exists while n is less than the number of points. ``argmax`` is slot 0 without a slot.
    """

    target: str
    ranks: tuple[str, ...]
    red: str | None
    over: tuple[str, ...]
    map: Expr
    mask: Expr | None = None
    loc: Span | None = _loc()

    @property
    def reducer(self) -> Reducer:
        return REDUCERS[self.red] if self.red else POINTWISE

    @property
    def expressions(self) -> tuple[Expr, ...]:
        return (self.map,) if self.mask is None else (self.map, self.mask)

    @property
    def lines(self) -> tuple[Einsum, ...]:
        return (self,)


@dataclass(frozen=True, slots=True)
class State:
    """An accumulator of a fold: ``X := carry(X) (+) red over the block of map``.

    ``carry`` is the old value re-based from the old statistics ``M`` to the merged ones ``M'`` (`Expr` op ``new``).
    ``red == "set"`` replaces the value (a sequential update, used by scans); such a state starts ``from`` its ``init``, or 0.
    """

    target: str
    ranks: tuple[str, ...]
    red: str
    map: Expr
    carry: Expr | None = None
    init: Expr | None = None
    loc: Span | None = _loc()

    @property
    def reducer(self) -> Reducer:
        return REDUCERS[self.red]

    @property
    def over(self) -> tuple[str, ...]:
        """Nothing: what a state reduces over, and where, its fold says."""
        return ()

    @property
    def mask(self) -> None:
        return None

    @property
    def expressions(self) -> tuple[Expr, ...]:
        return (self.map, *(e for e in (self.carry, self.init) if e is not None))

    @property
    def lines(self) -> tuple[State, ...]:
        return (self,)


@dataclass(frozen=True, slots=True)
class Range:
    """Coordinates ``lo <= x < hi`` of the folded rank; in ``full_lo <= x < full_hi`` no mask needs to be applied."""

    lo: Expr
    hi: Expr
    full_lo: Expr
    full_hi: Expr


@dataclass(frozen=True, slots=True)
class Fold:
    """One pass over a rank in blocks of ``step``, carrying states from block to block (or merging ``split`` partial ones).

    ``ranges`` empty: the whole rank, under ``mask`` where there is one. ``tabulated``: the live tiles come from a table
    made at launch by `ir.intervals`.

    A *scan* is a fold with ``set`` states: blocks in order (``reverse``: from the last), one point each where ``step`` is 0. A
    statement reads a state above its line as carried, below it as new, and all those over the folded rank are visible outside.
    ``aligned`` names the ranks that advance with the folded one, ``count`` the rank whose one coordinate numbers the block.
    """

    rank: str
    body: tuple[Einsum | State, ...]
    mask: Expr | None = None
    step: int = 0
    ranges: tuple[Range, ...] = ()
    tabulated: bool = False
    split: int = 1
    aligned: tuple[str, ...] = ()
    count: str | None = None
    reverse: bool = False
    loc: Span | None = _loc()

    @property
    def over(self) -> tuple[str, ...]:
        return (self.rank,)

    @property
    def expressions(self) -> tuple[Expr, ...]:
        """Those of the fold itself; its lines have their own."""
        bounds = tuple(e for r in self.ranges for e in (r.lo, r.hi, r.full_lo, r.full_hi))
        return bounds if self.mask is None else (*bounds, self.mask)

    @property
    def lines(self) -> tuple[Einsum | State, ...]:
        return self.body

    @property
    def einsums(self) -> tuple[Einsum, ...]:
        return tuple(y for y in self.body if isinstance(y, Einsum))

    @property
    def states(self) -> tuple[State, ...]:
        return tuple(y for y in self.body if isinstance(y, State))

    def above(self, state: State) -> tuple[Einsum, ...]:
        """The statements above a state's line."""
        return tuple(y for y in self.body[: self.body.index(state)] if isinstance(y, Einsum))

    def mapped(self, einsum: Callable[[Einsum], Einsum], state: Callable[[State], State] = lambda y: y) -> Fold:
        """The fold with its lines through these, in order."""
        return replace(self, body=tuple(einsum(y) if isinstance(y, Einsum) else state(y) for y in self.body))

    @property
    def sequential(self) -> bool:
        return any(isinstance(y, State) and y.reducer.replaces for y in self.body)

    @property
    def ordered(self) -> bool:
        """Whether its blocks come in order: it is a scan, or one in blocks of which no output needs a state."""
        return bool(self.aligned or self.count) or self.sequential


Statement = Einsum | Fold


@dataclass(frozen=True, slots=True)
class Place:
    """Where an output lies, if not at the coordinates of its own ranks: a tensor of these ``axes``, written at ``index``, one each.

    Points with one place hold one value; a place that no point has holds 0.
    """

    name: str
    axes: tuple[Expr, ...]
    index: tuple[Expr, ...]


@dataclass(frozen=True)  # without slots: its digest is kept
class Cascade:
    """A whole computation; one program instance runs per point of ``over`` and tile of the ranks in ``tile``.

    Of this class itself after fusing: there is a fold, and none has an order. The constructor refuses the body of another stage, so that
    `replace` leaves the stage as it is; `with_body` makes a cascade of any.
    """

    name: str
    over: tuple[str, ...]
    ranks: tuple[Rank, ...]
    inputs: tuple[Tensor, ...]
    body: tuple[Statement, ...]
    outs: tuple[str, ...]
    tile: tuple[tuple[str, int], ...] = ()
    places: tuple[Place, ...] = ()
    doc: str = field(default="", compare=False)
    loc: Span | None = _loc()

    def __post_init__(self) -> None:
        held = class_of(self.body)
        assert type(self) is held, f"{self.name} is made as {type(self).__name__}, and its body is that of {held.__name__}"

    @overload
    def with_body(self, body: Sequence[Einsum]) -> Flat: ...

    @overload
    def with_body(self, body: Sequence[Statement]) -> Cascade: ...

    def with_body(self, body: Sequence[Statement]) -> Cascade:
        """The cascade of these statements, in the stage that they make it."""
        return class_of(body)(**{f.name: getattr(self, f.name) for f in fields(self)} | {"body": tuple(body)})

    @property
    def einsums(self) -> tuple[Einsum, ...]:
        """The statements outside folds."""
        return tuple(x for x in self.body if isinstance(x, Einsum))

    @property
    def folds(self) -> tuple[Fold, ...]:
        return tuple(x for x in self.body if isinstance(x, Fold))

    def around(self, fold: Fold) -> tuple[tuple[Einsum, ...], tuple[Einsum, ...]]:
        """The statements outside folds before this one, and those after it."""
        at = self.body.index(fold)
        before, after = (tuple(x for x in part if isinstance(x, Einsum)) for part in (self.body[:at], self.body[at + 1 :]))
        return before, after

    @functools.cached_property
    def digest(self) -> str:
        """The identity of the cascade: a hash of its text, equal for equal cascades in every process."""
        from einfuse.ir.text import show  # which prints these nodes

        return hashlib.sha256(show(self).encode()).hexdigest()[:32]

    @functools.cached_property
    def with_features(self) -> tuple[str, ...]:
        """The names of the float tensors that have an axis of features, in order of declaration: they decide the precision of a call."""
        from einfuse.ir.expr import sizes  # which walks these nodes

        extents = {r.size for r in self.ranks if r.kind == "feature"}
        floats = [t for t in self.inputs if t.dtype == "float" and not t.param]
        return tuple(t.name for t in floats if any(sizes(a) & extents or a.value in extents for a in t.axes))

    def rank(self, name: str) -> Rank:
        for r in self.ranks:  # a property that is kept would wait for a lock, which no graph of torch can hold
            if r.name == name:
                return r
        raise KeyError(name)

    def input(self, name: str) -> Tensor:
        return next(t for t in self.inputs if t.name == name)

    def place(self, name: str) -> Place | None:
        """Where an output lies, None for one at its own coordinates."""
        return next((p for p in self.places if p.name == name), None)


@dataclass(frozen=True)
class Flat(Cascade):
    """A cascade without folds: as built, and in every stage until it is fused."""

    body: tuple[Einsum, ...]

    @property
    def einsums(self) -> tuple[Einsum, ...]:
        return self.body


@dataclass(frozen=True)
class Scan(Cascade):
    """A cascade with one fold, whose points come in order, and statements before and after it."""

    @classmethod
    def of(cls, c: Cascade, fold: Fold) -> Self:
        """The cascade with this fold alone."""
        return cls(**{f.name: getattr(c, f.name) for f in fields(c)} | {"body": (fold,)})

    @property
    def fold(self) -> Fold:
        return self.folds[0]


@dataclass(frozen=True)
class Blocked(Scan):
    """A scan in blocks: one fold with a step, and nothing else."""

    body: tuple[Fold]

    @property
    def fold(self) -> Fold:
        return self.body[0]


AnyCascade = TypeVar("AnyCascade", bound=Cascade)
"""A cascade of a stage that a function leaves as it is."""


def class_of(body: Sequence[Statement]) -> type[Cascade]:
    """The class of the cascades with this body. Raises SpecError for a scan beside another fold, and for one in blocks beside anything."""
    folds = [x for x in body if isinstance(x, Fold)]
    if not folds:
        return Flat
    scans = [f for f in folds if f.ordered]
    if not scans:
        return Cascade
    if len(scans) > 1:
        raise SpecError("an attention has at most one scan", scans[1].loc, "carry several states in one scan")
    if len(folds) > 1:
        raise SpecError("a scan stands beside no other fold", scans[0].loc)
    if scans[0].step and len(body) > 1:
        raise SpecError("a scan in blocks stands alone", scans[0].loc)
    return Blocked if scans[0].step else Scan
