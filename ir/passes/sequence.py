"""The passes in the order in which they run. Every process that fuses reads this; the transforms stand in `registry`.

A *pass* maps a cascade to the next stage of the same cascade. It states the properties of `ir.verify` that it needs and those that it
establishes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from einfuse.ir.nodes import Cascade, Scan
from einfuse.ir.passes import canonicalise, chunk, infer_space, mask_ranges, name_scores, online_fuse, relocate, schedule
from einfuse.ir.verify import Property

Reader = Callable[[str], Any]
"""Reads the value of an option from text. Raises ValueError."""


_STAGES: Mapping[str, Property] = {"Flat": "flat", "Blocked": "blocked"}
"""The properties that are stages, by the class in a signature."""


@dataclass(frozen=True)
class Pass:
    """One pass. ``options`` are the keyword arguments of ``run`` that a caller may set, each with its reader.

    What the signature of ``run`` says is not said again: a pass of a `Flat` or `Blocked` cascade requires that property, one that gives such
    a cascade ensures it, and one of a `Scan` is for scans. ``takes``: the cascades that the pass is for; the pipeline passes others by.
    ``does`` and ``why`` are its row in docs/architecture.md.
    """

    name: str
    run: Callable[..., Any]
    requires: tuple[Property, ...] = ()
    ensures: tuple[Property, ...] = ()
    options: Mapping[str, Reader] = field(default_factory=dict)
    takes: Literal["any", "scan", "no scan"] = "no scan"
    does: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        first, *_ = self.run.__annotations__.values()
        given = self.run.__annotations__["return"]
        object.__setattr__(self, "requires", (*_property(first), *self.requires))
        object.__setattr__(self, "ensures", (*_property(given), *self.ensures))
        if first in ("Scan", "Blocked"):
            object.__setattr__(self, "takes", "scan")

    def applies(self, cascade: Cascade) -> bool:
        """Whether the pass is for this kind of cascade."""
        return self.takes == "any" or (self.takes == "scan") == isinstance(cascade, Scan)

    def cascades(self, cascade: Cascade, options: Mapping[str, Any]) -> tuple[Cascade, ...]:
        """The cascades that the pass makes of one; none where a transform does not apply. Unknown options are ignored."""
        return _found(self.run(cascade, **{name: options[name] for name in self.options if name in options}))


def _property(annotation: str) -> tuple[Property, ...]:
    return (_STAGES[annotation],) if annotation in _STAGES else ()


def truth(text: str) -> bool:
    """``true`` or ``false``"""
    return {"true": True, "false": False}[text]


def _build(cascade: Cascade) -> Cascade:
    return cascade


PIPELINE: tuple[Pass, ...] = (
    Pass(
        "build",
        _build,
        takes="any",
        does="the cascade as elaborated",
        why="the interpreter, our oracle, runs on this one",
    ),
    Pass(
        "infer_space",
        infer_space.run,
        ensures=("spaced",),
        takes="any",
        does="writes on every statement the predicate it inherits from what it reads",
        why="later passes may move a statement away from its `where`",
    ),
    Pass(
        "chunk",
        chunk.run,
        requires=("spaced",),
        does="derives the form in blocks of a scan from its update",
        why="a scan in blocks needs none of the later passes",
    ),
    Pass(
        "relocate",
        relocate.run,
        requires=("spaced",),
        does="computes what pairs read of other pairs where it is read",
        why="a block of pairs holds no others, and nothing of the size of all pairs is stored",
    ),
    Pass(
        "canonicalise",
        canonicalise.run,
        ensures=("canonical",),
        does="inlines pointwise statements into the reductions that read them",
        why="the rank test of the next pass needs whole maps",
    ),
    Pass(
        "online_fuse",
        online_fuse.run,
        requires=("canonical",),
        ensures=("fused",),
        options={"strict": truth},
        does="fuses the reductions over a rank into as few folds as the algebra allows",
        why="one fold is one pass over memory",
    ),
    Pass(
        "name_scores",
        name_scores.run,
        requires=("fused",),
        ensures=("fused",),
        does="names the common subexpressions of a fold",
        why="fusing copies them, and a copy would be computed twice",
    ),
    Pass(
        "schedule",
        schedule.run,
        requires=("fused",),
        ensures=("fused", "scheduled"),
        options={"block": int, "step": int},
        does="chooses the tile and the steps",
        why="no pass before it depends on tiles, so their result is shared by all tilings",
    ),
    Pass(
        "mask_ranges",
        mask_ranges.run,
        requires=("fused", "scheduled"),
        ensures=("fused", "scheduled", "ranged"),
        does="finds which blocks are empty, partly or wholly inside the predicates",
        why="ranges are written in tiles and steps",
    ),
)


def _found(result: Any) -> tuple[Cascade, ...]:
    """The cascades of a result, in order."""
    if isinstance(result, Cascade):
        return (result,)
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        result = tuple(getattr(result, f.name) for f in dataclasses.fields(result))
    return tuple(c for part in result for c in _found(part)) if isinstance(result, tuple) else ()
