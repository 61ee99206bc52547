"""Functions that make mask functions of others: of several, of lists of blocks, of slices of a block mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

MaskFunction = Callable[..., Any]
"""``(b, h, q_idx, kv_idx) -> condition``"""
ScoreFunction = Callable[..., Any]
"""``(score, b, h, q_idx, kv_idx) -> score``"""


def noop_mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """Every query sees every key."""
    return kv_idx == kv_idx


def and_masks(*mask_mods: MaskFunction) -> MaskFunction:
    """The mask of what all the masks let through. Raises TypeError for what is no function."""
    functions = _functions(mask_mods)

    def and_mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        result = noop_mask(b, h, q_idx, kv_idx)
        for mask in functions:
            result = result & mask(b, h, q_idx, kv_idx)
        return result

    return and_mask


def or_masks(*mask_mods: MaskFunction) -> MaskFunction:
    """The mask of what any of the masks lets through. Raises TypeError for what is no function."""
    functions = _functions(mask_mods)

    def or_mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        result = kv_idx != kv_idx
        for mask in functions:
            result = result | mask(b, h, q_idx, kv_idx)
        return result

    return or_mask


def _functions(mask_mods: tuple[MaskFunction, ...]) -> tuple[MaskFunction, ...]:
    wrong = [m for m in mask_mods if not callable(m)]
    if wrong:
        raise TypeError(f"mask functions are called with (b, h, q_idx, kv_idx); found {type(wrong[0]).__name__} {wrong[0]!r}")
    return mask_mods


# -- lists of blocks -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Blocks:
    """``full`` and ``partial``: conditions ``[B, H, rows, columns]`` of blocks of ``size``."""

    full: torch.Tensor
    partial: torch.Tensor
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.full.shape)

    @classmethod
    def of_lists(
        cls,
        number: torch.Tensor,
        indices: torch.Tensor,
        full_number: torch.Tensor | None,
        full_indices: torch.Tensor | None,
        size: tuple[int, int],
    ) -> Blocks:
        """From counts ``[..., rows]`` and lists ``[..., rows, columns]``. Raises ValueError where they do not fit."""
        if (full_number is None) != (full_indices is None):
            raise ValueError("full_kv_num_blocks and full_kv_indices are given together or not at all")
        partial = _dense(number, indices)
        full = torch.zeros_like(partial) if full_number is None or full_indices is None else _dense(full_number, full_indices)
        shape = tuple(map(max, full.shape, partial.shape))
        full, partial = full.expand(shape), partial.expand(shape)
        return cls(full.contiguous(), partial.contiguous(), size)

    def of(self, mask_mod: MaskFunction) -> MaskFunction:
        """The points of full blocks, and those of partial blocks that ``mask_mod`` lets through."""
        height, width = self.size
        full, partial = self.full, self.partial
        one_batch, one_head = full.shape[0] == 1, full.shape[1] == 1

        def listed(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            at = (0 if one_batch else b, 0 if one_head else h, q_idx // height, kv_idx // width)
            return full[at] | (partial[at] & mask_mod(b, h, q_idx, kv_idx))

        return listed

    def cropped(self, rows: int, columns: int) -> Blocks:
        """The upper left blocks of a shorter mask. Raises ValueError for a longer one."""
        n, m = -(-rows // self.size[0]), -(-columns // self.size[1])
        if n > self.shape[2] or m > self.shape[3]:
            raise ValueError(f"lists of {self.shape[2]} x {self.shape[3]} blocks cannot be extended to {n} x {m}")
        return Blocks(self.full[:, :, :n, :m].contiguous(), self.partial[:, :, :n, :m].contiguous(), self.size)

    def picked(self, p: Picked) -> Blocks:
        """The blocks of some batch elements, heads and rows."""
        full, partial = (x[p.own_batch][:, p.own_heads][:, :, p.own_rows].contiguous() for x in (self.full, self.partial))
        return Blocks(full, partial, self.size)


def _dense(number: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Counts and lists as conditions."""
    if indices.dim() < 2 or number.shape != indices.shape[:-1]:
        found = f"kv_num_blocks {tuple(number.shape)} and kv_indices {tuple(indices.shape)}"
        raise ValueError(f"lists of blocks are [..., rows] counts and [..., rows, columns] indices, found {found}")
    number, indices = (x[(None,) * (4 - indices.dim())] for x in (number, indices))
    columns = indices.shape[-1]
    listed = torch.arange(columns, device=indices.device) < number[..., None]
    wide = torch.zeros((*indices.shape[:-1], columns + 1), dtype=torch.bool, device=indices.device)
    return wide.scatter_(-1, torch.where(listed, indices.long(), columns), True)[..., :columns]


# -- slices ----------------------------------------------------------------------------------------------------------------------


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
