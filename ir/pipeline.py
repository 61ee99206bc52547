"""The passes, in order, and why in this order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from einfuse.ir.nodes import Cascade
from einfuse.ir.passes import canonicalise, chunk, infer_space, mask_ranges, name_scores, online_fuse, schedule
from einfuse.ir.verify import Stage, verify

PassName = Literal["build", "infer_space", "chunk", "canonicalise", "online_fuse", "name_scores", "schedule", "mask_ranges"]
PASSES: tuple[PassName, ...] = (
    "build",
    "infer_space",
    "chunk",
    "canonicalise",
    "online_fuse",
    "name_scores",
    "schedule",
    "mask_ranges",
)
_AFTER: dict[str, Stage] = {
    "canonicalise": "canonical",
    "online_fuse": "fused",
    "name_scores": "fused",
    "schedule": "scheduled",
}


def run(
    cascade: Cascade,
    block: int = 64,
    step: int = 64,
    strict: bool = False,
    after: PassName = "mask_ranges",
    observe: Callable[[str, Cascade], None] | None = None,
    since: PassName | None = None,
) -> Cascade:
    """From the cascade as built to one a kernel can be lowered from; stops after the pass named ``after``.

    ``since`` says that the cascade already is what that pass gives, and goes on from there.
    ``observe`` sees every stage by name. Raises SpecError where the cascade breaks the rules of a stage.
    """
    passes: tuple[tuple[PassName, Callable[[Cascade], Cascade]], ...] = (
        ("build", lambda c: c),
        ("infer_space", infer_space.run),  # first: every later pass may move a statement away from the `where` it inherits
        ("chunk", chunk.run),  # before anything else looks at a scan; a scan in blocks needs no pass after it
        ("canonicalise", canonicalise.run),  # whole maps for the rank test, so before fusing
        ("online_fuse", lambda c: online_fuse.run(c, strict)),
        ("name_scores", name_scores.run),  # fusing is what makes the copies
        ("schedule", lambda c: schedule.run(c, block, step)),
        ("mask_ranges", mask_ranges.run),  # ranges are written in tile bounds and steps
    )
    stage: Stage = "built"
    if since is not None:
        passes = passes[1 + PASSES.index(since) :]
        stage = _AFTER.get(since, stage)
    for name, apply in passes:
        cascade = apply(cascade)
        stage = _AFTER.get(name, stage)
        verify(cascade, stage)
        if observe is not None:
            observe(name, cascade)
        if name == after or (name == "chunk" and chunk.scan_of(cascade) is not None):
            break
    return cascade
