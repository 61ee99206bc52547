"""Runs the pipeline, or the part of it that does or does not depend on tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from einfuse.ir import debug
from einfuse.ir.errors import EinfuseError
from einfuse.ir.nodes import Cascade
from einfuse.ir.passes.sequence import PIPELINE, Pass
from einfuse.ir.text import show
from einfuse.ir.verify import verify

PASSES: tuple[str, ...] = tuple(p.name for p in PIPELINE)
_TILES = next(n for n, p in enumerate(PIPELINE) if "block" in p.options)
Observer = Callable[[str, Cascade], None]


def run(
    cascade: Cascade,
    block: int = 64,
    step: int = 64,
    strict: bool = False,
    after: str = PASSES[-1],
    observe: Observer | None = None,
) -> Cascade:
    """From the cascade as built to one that a kernel can be lowered from; stops after the pass named ``after``.

    ``observe`` sees every stage by name. Raises SpecError where the cascade breaks a rule that a pass ensures.
    """
    if after not in PASSES:
        raise EinfuseError(f"there is no stage {after!r}; the stages are {', '.join(PASSES)}")
    chosen = PIPELINE[: 1 + PASSES.index(after)]
    return _through(cascade, chosen, {"block": block, "step": step, "strict": strict}, observe)


def before_tiles(cascade: Cascade, strict: bool = False) -> Cascade:
    """The cascade after every pass that does not depend on tiles."""
    return _through(cascade, PIPELINE[:_TILES], {"strict": strict})


def with_tiles(cascade: Cascade, block: int, step: int) -> Cascade:
    """The cascade that `before_tiles` returned, after the other passes."""
    return _through(cascade, PIPELINE[_TILES:], {"block": block, "step": step})


def _through(cascade: Cascade, passes: Iterable[Pass], options: Mapping[str, Any], observe: Observer | None = None) -> Cascade:
    for p in passes:
        if not p.applies(cascade):
            continue
        (cascade,) = p.cascades(cascade, options)
        verify(cascade, *p.ensures)
        if debug.enabled("passes"):
            debug.show(f"{cascade.name} after {p.name}", show(cascade))
        if observe is not None:
            observe(p.name, cascade)
    return cascade
