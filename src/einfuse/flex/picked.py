"""Slices of a block mask: which coordinates of the original a slice's coordinates are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from einfuse.flex.masks import MaskFunction


def sliced_mask_error(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> NoReturn:
    """What ``mask_mod`` of a slice is. Raises RuntimeError: which coordinates it would take is not clear."""
    raise RuntimeError(
        "a slice of a BlockMask has no mask_mod of its own: use the one of the whole mask, or attend with the slice as it is"
    )


@dataclass(frozen=True, slots=True)
class Picked:
    """Coordinates of the original by coordinates of the slice: of batch elements, heads and rows of blocks.

    ``own_*`` are those of the mask that was sliced last. ``length`` is the number of queries, in blocks of ``height``.
    """

    batch: torch.Tensor
    heads: torch.Tensor
    rows: torch.Tensor
    own_batch: torch.Tensor
    own_heads: torch.Tensor
    own_rows: torch.Tensor
    height: int
    length: int

    @classmethod
    def of_index(
        cls, index: tuple[Any, ...], extents: tuple[int, int, int], length: int, height: int, before: Picked | None
    ) -> Picked:
        """``index`` has up to three ints, slices or tensors. Raises IndexError outside of the mask, ValueError for a cut block."""
        if len(index) > 3:
            raise IndexError(f"a BlockMask is sliced by batch, head and row of blocks, found {len(index)} indices")
        padded = (*index, *(slice(None),) * (3 - len(index)))
        batch, heads, rows = (_picked(i, n) for i, n in zip(padded, extents, strict=True))
        last = extents[2] - 1
        missing = extents[2] * height - length
        cut = bool((rows[:-1] == last).any()) if len(rows) else False
        if missing and cut:
            raise ValueError(
                f"the last row of blocks holds {height - missing} queries, not {height}: it can only stand last in a slice"
            )
        ends = missing if len(rows) and int(rows[-1]) == last else 0
        n = len(rows) * height - ends
        if before is None:
            return cls(batch, heads, rows, batch, heads, rows, height, n)
        return cls(before.batch[batch], before.heads[heads], before.rows[rows], batch, heads, rows, height, n)

    def of(self, mask_mod: MaskFunction) -> MaskFunction:
        """``mask_mod`` at the coordinates of the original."""
        height = self.height

        def sliced(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            shift = _shift(self.rows)
            q = self.rows[q_idx // height] * height + q_idx % height if shift is None else q_idx + shift * height
            return mask_mod(_at(self.batch, b), _at(self.heads, h), q, kv_idx)

        return sliced


def _picked(index: Any, extent: int) -> torch.Tensor:
    every = torch.arange(extent)
    if isinstance(index, int):
        if not -extent <= index < extent:
            raise IndexError(f"index {index} is outside of an axis of {extent}")
        return every[index % extent : index % extent + 1]
    if isinstance(index, torch.Tensor):
        return every[index.cpu().long() if index.dtype != torch.bool else index.cpu()].reshape(-1)
    return every[index]


def _shift(picked: torch.Tensor) -> int | None:
    """The distance of coordinates that are all moved by the same."""
    moved = picked - torch.arange(len(picked))
    return int(moved[0]) if len(moved) and bool((moved == moved[0]).all()) else None


def _at(picked: torch.Tensor, coordinate: Any) -> Any:
    """The original's coordinate: a sum where that says it, else a table read."""
    shift = _shift(picked)
    return picked[coordinate] if shift is None else coordinate + shift
