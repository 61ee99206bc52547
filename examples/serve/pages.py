"""`Pages`: which pages of a cache are free, and how many hold each of the others."""

from __future__ import annotations

from collections.abc import Iterable


class Pages:
    """The pages 0 to ``total - 1``. One that is taken has one holder; it is free again when its last holder lets it go."""

    def __init__(self, total: int) -> None:
        self.holders = [0] * total
        self._free = list(reversed(range(total)))

    @property
    def free(self) -> int:
        """How many pages nobody holds."""
        return len(self._free)

    def take(self) -> int:
        """A free page, which the caller holds from now on. Raises IndexError where there is none."""
        page = self._free.pop()
        self.holders[page] = 1
        return page

    def hold(self, pages: Iterable[int]) -> None:
        """One more holder for each page."""
        for page in pages:
            assert self.holders[page], f"page {page} is free: who shares it must know a holder"
            self.holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One holder less for each page."""
        for page in pages:
            assert self.holders[page], f"page {page} is free already"
            self.holders[page] -= 1
            if not self.holders[page]:
                self._free.append(page)
