"""The pass language of `einfuse opt`: passes and transforms by name, run on any cascade.

canonicalise,online_fuse{strict=true}          the pipeline up to fusing
canonicalise,differentiate{wanted=q,k}         the kernels of a backward
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from einfuse.ir.errors import EinfuseError, SpecError
from einfuse.ir.nodes import Cascade
from einfuse.ir.passes.registry import find
from einfuse.ir.passes.sequence import PIPELINE, Pass
from einfuse.ir.verify import Property, verify


@dataclass(frozen=True)
class Step:
    """A pass with the options that a text gave it."""

    of: Pass
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, cascade: Cascade) -> tuple[Cascade, ...]:
        """Verifies what the pass requires and what it ensures. Raises SpecError, and EinfuseError where it does not apply."""
        p = self.of
        for name in p.requires:
            _required(p, cascade, name)
        if not p.applies(cascade):
            raise EinfuseError(
                f"{p.name} is for cascades with {'a' if p.takes == 'scan' else 'no'} scan, and not for {cascade.name}"
            )
        made = p.cascades(cascade, self.options)
        if not made:
            raise EinfuseError(f"{p.name} does not apply to {cascade.name}")
        return tuple(verify(c, *p.ensures) for c in made)


def parse(text: str) -> tuple[Step, ...]:
    """``canonicalise,schedule{block=32 step=16}``: passes and transforms in order. Raises EinfuseError."""
    pattern = r"\s*(\w+)(?:\{([^{}]*)\})?\s*(?:,|$)"
    if not re.fullmatch(f"({pattern})+", text):
        raise EinfuseError(f"{text!r} is not a list of passes: write NAME,NAME{{OPTION=VALUE OPTION=VALUE}}")
    return tuple(_step(find(m[1]), m[2] or "") for m in re.finditer(pattern, text) if m[1])


def _step(p: Pass, text: str) -> Step:
    options = {}
    for part in text.split():
        name, equals, value = part.partition("=")
        if name not in p.options or not equals:
            known = f"its options are {', '.join(p.options)}" if p.options else "it has none"
            raise EinfuseError(f"{part!r} is no option of {p.name}: {known}")
        try:
            options[name] = p.options[name](value)
        except (KeyError, ValueError):
            raise EinfuseError(f"{value!r} is no value for {name} of {p.name}") from None
    return Step(p, options)


def apply(
    steps: Iterable[Step], cascade: Cascade, observe: Callable[[str, Cascade, float], None] | None = None
) -> list[Cascade]:
    """The cascades after all steps, each applied to every result of the one before. ``observe`` sees each with its seconds."""
    current = [cascade]
    for step in steps:
        following: list[Cascade] = []
        for c in current:
            start = time.perf_counter()
            made = step(c)
            seconds = time.perf_counter() - start
            for m in made:
                if observe is not None:
                    observe(step.of.name, m, seconds / len(made))
            following += made
        current = following
    return current


def default(cascade: Cascade) -> tuple[Step, ...]:
    """The whole pipeline, for a cascade as built."""
    return tuple(Step(p) for p in PIPELINE if p.applies(cascade))


def _required(p: Pass, cascade: Cascade, name: Property) -> None:
    try:
        verify(cascade, name)
    except SpecError as error:
        makers = [q.name for q in PIPELINE if name in q.ensures and q is not p]
        hint = f"run {makers[0]} first" if makers else error.hint
        raise SpecError(f"{p.name} needs a cascade that is {name}: {error.message}", error.loc, hint) from None
