"""Lists of blocks as tables that a mask function reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from einfuse.flex.masks import MaskFunction

if TYPE_CHECKING:
    from einfuse.flex.picked import Picked


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
