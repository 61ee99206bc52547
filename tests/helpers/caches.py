"""Caches for tests: the arguments of a cascade, cut to the tokens of each sequence, and laid in pages or slots that are in no order."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from einfuse.ir import Cascade, Scalar, interpret
from einfuse.ir import expr as ex
from einfuse.ir.passes.cache import Cached
from einfuse.runtime import binding
from einfuse.runtime.examples import Shape, example_inputs

BATCH, ROWS, P, TABLE = 2, 3, 3, 4
LENGTHS = (11, 5)
Arguments = dict[str, torch.Tensor | Scalar]


@dataclass(frozen=True, slots=True)
class Case:
    """A cascade, its form from a cache, and arguments of as many tokens as there is room for."""

    cascade: Cascade
    found: Cached
    given: Arguments

    @staticmethod
    def of(cascade: Cascade, found: Cached, seed: int = 0, dtype: torch.dtype = torch.float64) -> Case:
        room = P * TABLE
        return Case(cascade, found, example_inputs(cascade, dtype, seed, Shape(BATCH, 4, room, room, (4, 6), 2)))

    @property
    def numbers(self) -> Arguments:
        defaults: Arguments = {t.name: t.default for t in self.cascade.inputs if t.param and t.default is not None}
        return defaults | {n: x for n, x in self.given.items() if not isinstance(x, torch.Tensor)}

    def _long(self, name: str, axis: int) -> bool:
        """Whether an axis is as long as the sequence."""
        axes, held = self.cascade.input(name).axes, self.found.held.get(name)
        return (
            bool(ex.sizes(axes[axis]) & self._sizes)
            or (held is not None and axis == held[1])
            or self.found.own.get(name) == axis
        )

    @property
    def _sizes(self) -> set[str]:
        rows = next(r.size for r in self.cascade.ranks if r.name == self.found.rows.name)
        return {self.found.keys, str(rows)}

    def contiguous(self, sequence: int, rows: int = ROWS) -> dict[str, torch.Tensor]:
        """The last rows of the outputs of the cascade as it is on the tokens of a sequence."""
        length, room = LENGTHS[sequence], P * TABLE
        cut = {}
        for t in self.cascade.inputs:
            x = self.given.get(t.name)
            if isinstance(x, torch.Tensor):
                for n, a in enumerate(t.given[0]):
                    if self._long(t.name, n):
                        many = dict.fromkeys(self._sizes, length)
                        wanted = length if x.shape[n] == room else int(binding.evaluate(a, many))
                        x = x.narrow(n, 0, wanted)
                cut[t.name] = x
        sizes: dict[str, int] = binding.sizes(self.cascade, cut)  # type: ignore[assignment]  # no symbols here
        outs = interpret(self.cascade, {**cut, **self.numbers}, sizes)
        own = {x.target: (*self.cascade.over, *x.ranks) for x in self.cascade.body}  # type: ignore[union-attr]  # no scans
        batch = {n: own[n].index(self.found.batch.name) for n in outs}
        return {
            n: x.select(batch[n], sequence).narrow(_behind(own[n], self.found.rows.name, batch[n]), length - rows, rows)
            for n, x in outs.items()
        }

    def cached(self, seed: int = 1) -> Arguments:
        """The arguments of the form from a cache: rows of all sequences, and pages (or slots) in no order with rubbish between them."""
        g = torch.Generator().manual_seed(seed)
        slots = len(self.found.cascade.input(self.found.page).axes) == 2 and self.found.page.startswith("slot")
        width, table = (1, P * TABLE) if slots else (P, TABLE)
        pages = BATCH * table + 3
        page = torch.randperm(pages, generator=g)[: BATCH * table].view(BATCH, table)
        made: Arguments = {self.found.page: page.int(), self.found.length: torch.tensor(LENGTHS)}
        for name, x in self.given.items():
            if not isinstance(x, torch.Tensor):
                made[name] = x
            elif name in self.found.held:
                made[name] = self._paged(name, x, page, pages, width, slots)
            elif name in self.found.own:
                made[name] = self._rows(name, x)
            else:
                made[name] = x
        return made

    def _paged(self, name: str, x: torch.Tensor, page: torch.Tensor, pages: int, width: int, slots: bool) -> torch.Tensor:
        batch, token = self.found.held[name]
        x = x.movedim((batch, token), (0, 1))
        whole = torch.full((pages, width, *x.shape[2:]), True if x.dtype == torch.bool else 7, dtype=x.dtype)
        for b, n in enumerate(LENGTHS):
            for t in range(n):
                whole[page[b, t // width], t % width] = x[b, t]
        return whole[:, 0] if slots else whole

    def _rows(self, name: str, x: torch.Tensor) -> torch.Tensor:
        at, batch = self.found.own[name], self.cascade.input(name).axes.index(ex.size(self.found.batch.size))
        parts = [x.narrow(batch, b, 1).narrow(at, n - ROWS, ROWS) for b, n in enumerate(LENGTHS)]
        return torch.cat(parts, batch)

    def outputs(self) -> dict[str, torch.Tensor]:
        """What the form from a cache computes."""
        given = self.numbers | self.cached()
        tensors = {n: x for n, x in given.items() if isinstance(x, torch.Tensor)}
        sizes: dict[str, int] = binding.sizes(self.found.cascade, tensors)  # type: ignore[assignment]  # no symbols here
        return interpret(self.found.cascade, given, sizes)

    def check(self) -> None:
        """The form from a cache computes the last rows of each sequence."""
        outs = self.outputs()
        own = {x.target: (*self.cascade.over, *x.ranks) for x in self.cascade.body}  # type: ignore[union-attr]  # no scans
        for b in range(BATCH):
            for n, truth in self.contiguous(b).items():
                mine = outs[n].select(own[n].index(self.found.batch.name), b)
                for axis, size in enumerate(truth.shape):  # values of keys are given for all there is room for
                    mine = mine.narrow(axis, 0, size)
                torch.testing.assert_close(mine, truth, rtol=1e-9, atol=1e-9, equal_nan=True, msg=f"{n} of {self.cascade.name}")


def _behind(ranks: tuple[str, ...], rank: str, lost: int) -> int:
    at = ranks.index(rank)
    return at - (lost < at)
