"""What is derived from a cascade, derived once: fusing is remembered on disk, whatever dtypes, tiles and back ends ask for it later."""

from __future__ import annotations

from einfuse.ir import Cascade, Flat, derivation
from einfuse.ir.passes import online_fuse, pipeline
from einfuse.runtime import cache


def fused(cascade: Cascade, strict: bool = False) -> Cascade:
    """The cascade after every pass that does not depend on tiles."""
    name = cache.key("fused", cascade.digest, strict)
    return cache.remembered("fused", name, lambda: pipeline.before_tiles(cascade, strict))


def scheduled(cascade: Cascade, block: int, step: int, strict: bool = False) -> Cascade:
    """The cascade after all passes, as `pipeline.run` gives it."""
    return pipeline.with_tiles(fused(cascade, strict), block, step)


def derivations(cascade: Flat) -> list[derivation.Derivation]:
    """How the reads of statistics of every folded rank are resolved in a canonical cascade, rank after rank."""
    name = cache.key("derivations", cascade.digest)
    return cache.remembered("derivations", name, lambda: [found for found, _ in online_fuse.steps(cascade)])
