"""`Cache`: the tokens of sequences in pages, and where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from einfuse.ir.passes import cache as reading
from einfuse.runtime import memory
from einfuse.runtime.attention import Attention


def _laid(pages: int, width: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Pages whose tokens come right before the features, behind heads: what one head reads of a page is one piece of memory."""
    heads = shape[:-1]
    return memory.lasting((pages, *heads, width, *shape[len(heads) :]), dtype, device).movedim(1 + len(heads), 1)


def counts(starts: Any) -> Any:
    """How many rows each sequence has."""
    return starts[1:] - starts[:-1]


@dataclass(frozen=True, eq=False)
class Cache:
    """What tokens bring to an attention, in pages: ``tensors`` [pages, P, ...] by the names of its inputs.

    ``page`` [B, table] lists the pages of each sequence, ``length`` [B] says how many tokens it has, those of the rows of a call among
    them; both are int32 or int64, and whoever gives out pages writes them in place. A sequence that is not there has no tokens. Tensors may
    have any strides: keys and values of one tensor, heads before tokens, a flat row of slots (pages of one token) are views.
    """

    tensors: Mapping[str, torch.Tensor]
    page: torch.Tensor
    length: torch.Tensor

    def __post_init__(self) -> None:
        first = {n: tuple(x.shape[:2]) for n, x in self.tensors.items()}
        if not first or len(set(first.values())) != 1:
            raise ValueError(f"a cache holds tensors [pages, P, ...] of as many pages and tokens, found {first}")
        if self.page.ndim != 2 or self.length.shape != self.page.shape[:1]:
            raise ValueError(
                f"page must be [B, table] and length [B], found {tuple(self.page.shape)} and {tuple(self.length.shape)}"
            )

    @staticmethod
    def empty(
        attention: Attention,
        *,
        pages: int,
        width: int,
        table: int,
        batch: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        **token: Sequence[int] | torch.Tensor,
    ) -> Cache:
        """A cache of so many pages of ``width`` tokens, for sequences of up to ``table`` pages: zeros, in which a head has its rows of a page
        side by side.

        ``k=(heads, D)`` is the shape of what a token brings of an input, for each that is read at keys; a tensor is a token of another dtype.
        Raises TypeError where inputs are left out, or are none that tokens bring.
        """
        held = reading.run(attention.cascade).held
        if set(token) != set(held):
            raise TypeError(f"{attention.name}: tokens bring {', '.join(held)}; found {', '.join(token) or 'nothing'}")
        shapes = {n: (tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else (tuple(x), dtype) for n, x in token.items()}
        tensors = {n: _laid(pages, width, shape, kind, torch.device(device)) for n, (shape, kind) in shapes.items()}
        page, length = (
            torch.zeros(batch, table, dtype=torch.int32, device=device),
            torch.zeros(batch, dtype=torch.int32, device=device),
        )
        return Cache(tensors, page, length)

    @property
    def width(self) -> int:
        """How many tokens a page holds."""
        return next(iter(self.tensors.values())).shape[1]

    @property
    def room(self) -> int:
        """How many tokens a sequence may have."""
        return self.page.shape[1] * self.width

    def append(self, starts: torch.Tensor, **token: torch.Tensor) -> None:
        """Writes the last tokens of the sequences, which ``length`` counts already: ``k`` [T, heads, D] holds those of all sequences in a row.

        Sequence b brings the rows ``starts[b] .. starts[b + 1] - 1``. Reads nothing back; rows behind the last start are written to
        the first place of the last page, which should be no sequence's.
        """
        self.write(self.places(starts, next(iter(token.values())).shape[0]), **token)

    def places(self, starts: torch.Tensor, total: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The pages of so many rows, and where in them the rows are: the same for the caches of all layers, which share ``page``."""
        at = torch.arange(total, device=self.page.device)
        b = torch.searchsorted(starts, at, right=True).sub_(1).clamp_(0, len(self.length) - 1)
        place = self.length[b] - starts[b + 1] + at
        page = torch.where(at < starts[-1], self.page[b, (place // self.width).clamp_(0, self.page.shape[1] - 1)], -1).long()
        return page, place % self.width

    def write(self, places: tuple[torch.Tensor, torch.Tensor], **token: torch.Tensor) -> None:
        """Writes tokens ``k`` [T, heads, D] where `places` says."""
        for n, x in token.items():
            self.tensors[n][places] = x

    def copy(self, page: int, to: int) -> None:
        """Copies a page, which sequences shared until one of them writes to it."""
        for x in self.tensors.values():
            x[to] = x[page]
