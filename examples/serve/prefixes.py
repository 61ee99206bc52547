"""`Prefixes`: a tree of full pages by the tokens in them. The path to a page spells all the tokens before it, on which its keys depend."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from serve.pages import Pages

Tokens = tuple[int, ...]


@dataclass(eq=False, slots=True)
class Node:
    """A page, and those that came after it."""

    page: int = -1
    used: int = 0
    after: dict[Tokens, Node] = field(default_factory=dict)


class Prefixes:
    """Pages that stay after their request has ended, for later ones with the same first tokens. The tree is a holder of each."""

    def __init__(self, pages: Pages, width: int) -> None:
        self.pages, self.width = pages, width
        self._root, self._clock = Node(), itertools.count(1)

    def find(self, tokens: Sequence[int]) -> list[int]:
        """The pages of the longest prefix of ``tokens`` that is known, of which the caller is a holder now."""
        node, found = self._root, []
        for key in self._keys(tokens):
            if key not in node.after:
                break
            node = node.after[key]
            node.used = next(self._clock)
            found.append(node.page)
        self.pages.hold(found)
        return found

    def add(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Remembers the full pages of ``tokens``; where it knows one for the same tokens, that one stays."""
        node = self._root
        for key, page in zip(self._keys(tokens), pages, strict=False):
            if key not in node.after:
                self.pages.hold([page])
                node.after[key] = Node(page)
            node = node.after[key]
            node.used = next(self._clock)

    @property
    def idle(self) -> int:
        """How many pages only the tree holds."""
        return sum(self.pages.holders[child.page] == 1 for _, _, child in self._edges())

    def forget(self) -> bool:
        """Gives back the page that was not used for longest, of those that nobody else holds and none comes after. Whether there was one."""
        ends = [edge for edge in self._edges() if not edge[2].after and self.pages.holders[edge[2].page] == 1]
        if not ends:
            return False
        parent, key, child = min(ends, key=lambda edge: edge[2].used)
        del parent.after[key]
        self.pages.release([child.page])
        return True

    def _keys(self, tokens: Sequence[int]) -> Iterator[Tokens]:
        return (tuple(tokens[n : n + self.width]) for n in range(0, len(tokens) - self.width + 1, self.width))

    def _edges(self) -> Iterator[tuple[Node, Tokens, Node]]:
        left = [self._root]
        while left:
            node = left.pop()
            for key, child in node.after.items():
                yield node, key, child
                left.append(child)
