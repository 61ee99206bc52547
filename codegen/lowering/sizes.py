"""`Sizes`: which sizes are numbers in a kernel (those of its feature ranks, which it holds whole), and which it is told at launch."""

from __future__ import annotations

from collections.abc import Mapping

from einfuse.codegen import plan as kp
from einfuse.ir import Cascade, SpecError
from einfuse.ir.passes.schedule import feature_ranks


class Sizes:
    """``launch`` gathers the names of the sizes that were asked for and are no numbers. Raises SpecError where a feature rank has none."""

    def __init__(self, cascade: Cascade, given: Mapping[str, int]) -> None:
        self.cascade = cascade
        self.features = feature_ranks(cascade)
        self.launch: set[str] = set()
        self.static: dict[str, int] = {}
        for r in cascade.ranks:
            if r.name in self.features and isinstance(r.size, str):
                if r.size not in given:
                    raise SpecError(f"the size {r.size} of rank {r.name} must be known to build a kernel", r.loc)
                self.static[r.size] = given[r.size]

    def named(self, name: str) -> int | str:
        """The size of this name: a number, or the name itself."""
        if name in self.static:
            return self.static[name]
        self.launch.add(name)
        return name

    def of(self, rank: str) -> int | str:
        size = self.cascade.rank(rank).size
        return size if isinstance(size, int) else self.named(size)

    def feature(self, rank: str) -> int:
        size = self.of(rank)
        assert isinstance(size, int), "sizes of features are known"
        return size

    def block(self, rank: str, width: int) -> kp.Block:
        """A rank of the plan of which a block holds so many coordinates."""
        return kp.Block(rank, self.of(rank), width)
