"""Runs what follows only some ambient ranks when one of them moves: buffers of a thread keep their values from item to item.

const bool h_moved = h_before != h;        the bias of a head, gathered once for the windows that follow each other
h_before = h;
if (h_moved) { ...bias... }
"""

from __future__ import annotations

from dataclasses import dataclass, field

from einfuse.codegen.cpu.schedule import Nest, Node, Single
from einfuse.codegen.cpu.text import Scope, Text
from einfuse.codegen.plan import Op
from einfuse.codegen.steady import Steady


@dataclass(slots=True)
class Repeats:
    """The nodes of an item that need not run every time; ``lines`` go where the item's coordinates are known."""

    text: Text
    scope: Scope
    steady: Steady
    lines: list[str] = field(default_factory=list)
    _moved: dict[str, str] = field(default_factory=dict)  # ambient rank -> whether it moved; "": whether this is the first item

    def condition(self, node: Node) -> str | None:
        """When a node has to run, None for always: what it stores, or gives in a variable, does not outlast the item."""
        if isinstance(node, Single):
            return None
        ops: tuple[Op, ...] = node.ops if isinstance(node, Nest) else (node.op,)
        ranks = frozenset[str]().union(*map(self.steady.of, ops))
        if ranks == set(self.steady.order) or (isinstance(node, Nest) and not all(v.dims for v in node.kept)):
            return None
        return " | ".join(map(self._has_moved, sorted(ranks) or [""]))

    def _has_moved(self, rank: str) -> str:
        if rank not in self._moved:
            before, moved = (self.text.unique(f"{rank or 'item'}_{w}") for w in ("before", "moved"))
            here = self.scope.scalars[f"coordinate {rank}"].text if rank else "0"
            self.text.buffers.append(f"long {before} = -1;")
            self.lines += [f"const bool {moved} = {before} != {here};", f"{before} = {here};"]
            self._moved[rank] = moved
        return self._moved[rank]
