"""The intermediate representation: every node type of a cascade, in one file that reads as its grammar.

A *cascade* is a list of extended Einsums over named ranks (FuseMax, MICRO 2024; EDGE, arXiv 2404.11591)::

    cascade := over ranks inputs body outs [places] tile
    body    := (einsum | fold)*
    einsum  := target[ranks] = [red[over]] map [where mask]
    fold    := fold rank [with ranks] [count rank] [step] [reverse] [ranges] [split] [where mask] { (einsum | state)* }
    state   := target[ranks] = red map [carry expr] [from expr]

All nodes are immutable and compare structurally; ``loc`` (the place in the user's text) takes no part in comparison.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from typing import Literal

from einfuse.ir.errors import TooLargeError
from einfuse.ir.reducers import POINTWISE, REDUCERS, Reducer
from einfuse.ir.span import Span

RankKind = Literal["batch", "head", "query", "key", "feature", "state", "turn"]
RANK_KINDS: tuple[RankKind, ...] = ("batch", "head", "query", "key", "feature", "state")

DType = Literal["float", "int", "bool"]
"""The three element types of the IR. The storage dtype (bf16, f32, i64, ...) is a property of a call, not of a cascade."""

Scalar = int | float | bool

MAX_OPERATIONS = 20_000
MAX_DEPTH = 250
"""Bounds of one expression: passes take at least linear time in its operations, and recurse along its depth."""


def _loc() -> Span | None:
    return field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Expr:
    """A scalar expression evaluated at one point of the iteration space.

    ``op`` is one of

    ======== ============================ =====================================================
    op       value                        args
    ======== ============================ =====================================================
    const    the int, float or bool       --
    index    a rank name                  -- (its coordinate, an int)
    size     a size name, ``i.lo``        -- (an int known at launch; ``i.lo``/``i.hi``: the tile of rank i)
    load     a tensor or statement name   one index expression per axis
    new      a state name                 as load: the re-based value, only inside a carry
    in       a list: a tensor or name     an int, then one index for every axis of the list but the last: does it hold the int?
    other    --                           the operands of the scalar function ``op`` (see `ir.expr`)
    ======== ============================ =====================================================

    ``operations`` counts its nodes, shared ones wherever they stand, ``depth`` the longest way to a leaf. Raises TooLargeError beyond
    `MAX_OPERATIONS` or `MAX_DEPTH`: whatever grows in a pass ends there.
    """

    op: str
    args: tuple[Expr, ...] = ()
    value: Scalar | str | None = None
    loc: Span | None = _loc()
    operations: int = field(init=False, compare=False, repr=False)
    depth: int = field(init=False, compare=False, repr=False)
    _hash: int | None = field(init=False, compare=False, repr=False)
    _named: frozenset[tuple[str, str]] | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        operations, depth = 1, 0
        for a in self.args:
            operations += a.operations
            depth = a.depth if a.depth > depth else depth
        object.__setattr__(self, "operations", operations)
        object.__setattr__(self, "depth", depth + 1)
        object.__setattr__(self, "_hash", None)
        object.__setattr__(self, "_named", None)
        if operations > MAX_OPERATIONS or depth >= MAX_DEPTH:
            raise TooLargeError(_place(self))

    def __hash__(self) -> int:
        if self._hash is None:  # kept: parts of an expression are looked up over and over
            object.__setattr__(self, "_hash", hash((self.op, self.args, self.value)))
        assert self._hash is not None, "it was set above"
        return self._hash

    @property
    def named(self) -> frozenset[tuple[str, str]]:
        """The ``op`` and the name of every part that has one. Kept, as passes ask for them over and over."""
        if self._named is None:
            stack = [self]
            while stack:
                top = stack[-1]
                left = [a for a in top.args if a._named is None]
                if left:
                    stack += left
                    continue
                stack.pop()
                found: frozenset[tuple[str, str]] = frozenset()
                for a in top.args:
                    assert a._named is not None, "its turn was before"
                    found = found | a._named if found else a._named
                own = {(top.op, top.value)} if isinstance(top.value, str) else ()
                object.__setattr__(top, "_named", found.union(own))
        assert self._named is not None, "it was set above"
        return self._named

    @property
    def name(self) -> str:
        """The rank, size or tensor that an index, size, load or new refers to."""
        assert isinstance(self.value, str), f"a {self.op} has no name"
        return self.value


def _place(e: Expr) -> Span | None:
    """The place of an expression, or of the first of its nearest parts that has one."""
    row = [e]
    while row:
        for part in row:
            if part.loc is not None:
                return part.loc
        row = list({id(a): a for part in row for a in part.args}.values())
    return None


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
    def sequential(self) -> bool:
        return any(isinstance(y, State) and y.reducer.replaces for y in self.body)


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
    """A whole computation; one program instance runs per point of ``over`` and tile of the ranks in ``tile``."""

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

    @functools.cached_property
    def _named(self) -> dict[str, Rank]:
        return {r.name: r for r in self.ranks}

    def rank(self, name: str) -> Rank:
        return self._named[name]

    def input(self, name: str) -> Tensor:
        return next(t for t in self.inputs if t.name == name)

    def place(self, name: str) -> Place | None:
        """Where an output lies, None for one at its own coordinates."""
        return next((p for p in self.places if p.name == name), None)
