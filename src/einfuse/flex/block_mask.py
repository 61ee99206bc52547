"""Block masks that are formulas: made at once whatever the length, and answering what torch's answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from einfuse.flex import analysis, picture
from einfuse.flex.blocks import Blocks
from einfuse.flex.masks import MaskFunction, noop_mask
from einfuse.flex.picked import Picked, sliced_mask_error
from einfuse.flex.watch import outside_of_graphs
from einfuse.ir.tiles import FULL, PARTIAL

DEFAULT_BLOCK = 128


class BlockMask:
    """A mask over ``[B, H, Q_LEN, KV_LEN]``, kept as its function; blocks of ``BLOCK_SIZE`` are found when somebody asks.

    ``flex_attention`` reads the function and nothing else, with whatever its captures hold at that time. Lists of blocks given to
    `from_kv_blocks` are kept, and hold.
    """

    def __init__(
        self,
        mask_mod: MaskFunction,
        shape: Sequence[int],
        BLOCK_SIZE: int | tuple[int, int] = DEFAULT_BLOCK,
        device: torch.device | str = "cpu",
        *,
        blocks: Blocks | None = None,
        picked: Picked | None = None,
    ) -> None:
        batch, heads, rows, columns = shape
        self._mask_mod, self._blocks, self._picked = mask_mod, blocks, picked
        self.batch, self.heads = batch, heads
        self.seq_lengths: tuple[int, int] = (rows, columns)
        self.BLOCK_SIZE = _pair(BLOCK_SIZE)
        self.device = torch.device(device)

    # -- the function ------------------------------------------------------------------------------------------------------

    @property
    def mask_mod(self) -> MaskFunction:
        """The function this was made from. A slice has none of its own: torch's raises an error, and so does this."""
        return self._mask_mod if self._picked is None else sliced_mask_error

    @mask_mod.setter
    def mask_mod(self, fn: MaskFunction) -> None:
        self._mask_mod, self._picked = fn, None

    def function(self) -> MaskFunction:
        """What decides: the function at the coordinates of the original mask, and the lists of blocks."""
        fn = self._mask_mod if self._picked is None else self._picked.of(self._mask_mod)
        return fn if self._blocks is None else self._blocks.of(fn)

    # -- making ------------------------------------------------------------------------------------------------------------

    @classmethod
    def from_kv_blocks(
        cls,
        kv_num_blocks: torch.Tensor,
        kv_indices: torch.Tensor,
        full_kv_num_blocks: torch.Tensor | None = None,
        full_kv_indices: torch.Tensor | None = None,
        BLOCK_SIZE: int | tuple[int, int] = DEFAULT_BLOCK,
        mask_mod: MaskFunction | None = None,
        seq_lengths: tuple[int, int] | None = None,
        compute_q_blocks: bool = True,
        **_: Any,
    ) -> BlockMask:
        """A mask from lists of blocks: the partial ones under ``mask_mod`` (if given), the full ones without it.

        ``kv_num_blocks[B, H, rows]`` counts, ``kv_indices[B, H, rows, columns]`` lists. ``compute_q_blocks`` and options of other back
        ends change nothing. Raises ValueError where the shapes do not fit.
        """
        blocks = Blocks.of_lists(kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices, _pair(BLOCK_SIZE))
        *ambient, rows, columns = blocks.shape
        lengths = seq_lengths or (rows * blocks.size[0], columns * blocks.size[1])
        if (-(-lengths[0] // blocks.size[0]), -(-lengths[1] // blocks.size[1])) != (rows, columns):
            raise ValueError(f"{rows} x {columns} blocks of {blocks.size} do not make up the lengths {tuple(lengths)}")
        return cls(mask_mod or noop_mask, (*ambient, *lengths), blocks.size, kv_indices.device, blocks=blocks)

    @classmethod
    def of(cls, mask: Any) -> BlockMask:
        """A mask of torch's as one of ours: its lists hold, as in a compiled call. Raises TypeError for anything else."""
        if isinstance(mask, cls):
            return mask
        if not all(hasattr(mask, n) for n in ("kv_num_blocks", "kv_indices", "mask_mod", "BLOCK_SIZE", "seq_lengths")):
            raise TypeError(f"block_mask must be a BlockMask (see create_block_mask), found {type(mask).__name__}")
        lists = (mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices)
        return cls.from_kv_blocks(*lists, mask.BLOCK_SIZE, mask.mask_mod, mask.seq_lengths)

    def to(self, device: torch.device | str) -> BlockMask:
        """The same mask; what its function captures stays where it is."""
        return self._like(self.shape, self._blocks, self._picked, device)

    def _adjust(self, new_q_len: int, new_kv_len: int) -> BlockMask:
        """The upper left part (or, of a mask without lists of blocks, an extension)."""
        blocks = None if self._blocks is None else self._blocks.cropped(new_q_len, new_kv_len)
        return self._like((self.batch, self.heads, new_q_len, new_kv_len), blocks, self._picked, self.device)

    def __getitem__(self, index: Any) -> BlockMask:
        """The mask of some batch elements, heads and rows of blocks; axes stay, so an int keeps an axis of one."""
        index = index if isinstance(index, tuple) else (index,)
        rows = -(-self.seq_lengths[0] // self.BLOCK_SIZE[0])
        picked = Picked.of_index(index, (self.batch, self.heads, rows), self.seq_lengths[0], self.BLOCK_SIZE[0], self._picked)
        shape = (len(picked.batch), len(picked.heads), picked.length, self.seq_lengths[1])
        blocks = None if self._blocks is None else self._blocks.picked(picked)
        return self._like(shape, blocks, picked, self.device)

    def _like(
        self, shape: Sequence[int], blocks: Blocks | None, picked: Picked | None, device: torch.device | str
    ) -> BlockMask:
        return BlockMask(self._mask_mod, shape, self.BLOCK_SIZE, device, blocks=blocks, picked=picked)

    # -- answering ---------------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(B, H, Q_LEN, KV_LEN)``"""
        return (self.batch, self.heads, *self.seq_lengths)

    def numel(self) -> int:
        return self.batch * self.heads * self.seq_lengths[0] * self.seq_lengths[1]

    def kinds(self) -> torch.Tensor:
        """``[B, H, rows, columns]`` of blocks, int8: 0 empty, 1 partial, 2 full, with what the function captures now."""
        found = analysis.kinds(self.function(), self.shape, self.BLOCK_SIZE, self.device)
        return torch.from_numpy(found.copy()).to(self.device)

    def to_dense(self) -> torch.Tensor:
        """``[B, H, rows, columns]`` of blocks, int32: 1 where a block holds a point. Blocks, not points: as torch's."""
        return (self.kinds() > 0).int()

    def sparsity(self) -> float:
        """The percentage of blocks that nobody computes, by torch's formula (blocks that reach beyond the mask count whole)."""
        live = int((self.kinds() > 0).sum()) * self.BLOCK_SIZE[0] * self.BLOCK_SIZE[1]
        return 100 * (1 - live / self.numel())

    @property
    def kv_num_blocks(self) -> torch.Tensor:
        return self._lists(PARTIAL)[0]

    @property
    def kv_indices(self) -> torch.Tensor:
        return self._lists(PARTIAL)[1]

    @property
    def full_kv_num_blocks(self) -> torch.Tensor:
        return self._lists(FULL)[0]

    @property
    def full_kv_indices(self) -> torch.Tensor:
        return self._lists(FULL)[1]

    def _lists(self, kind: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Counts, and columns: those of the kind first, in order."""
        chosen = (self.kinds() == kind).int()
        return chosen.sum(-1, dtype=torch.int32), torch.argsort(chosen, dim=-1, descending=True, stable=True).int()

    def to_string(self, grid_size: int | tuple[int, int] = (20, 20), limit: int = 4) -> str:
        """The blocks as text, at most ``limit`` heads of them: full, partial and empty cells."""
        return picture.text(self.to_dense(), _pair(grid_size), limit)

    def __str__(self) -> str:
        return f"BlockMask(shape={self.shape}, sparsity={self.sparsity():.2f}%, \n{self.to_string().strip()}\n)"

    def __repr__(self) -> str:
        name = getattr(self._mask_mod, "__name__", repr(self._mask_mod))
        return f"BlockMask(shape={self.shape}, BLOCK_SIZE={self.BLOCK_SIZE}, mask_mod={name})"


@outside_of_graphs  # type: ignore[untyped-decorator]  # torch types it so
def create_block_mask(
    mask_mod: MaskFunction,
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    device: torch.device | str | None = None,
    BLOCK_SIZE: int | tuple[int, int] = DEFAULT_BLOCK,
    _compile: bool = False,
    **_: Any,
) -> BlockMask:
    """The mask of ``mask_mod(b, h, q_idx, kv_idx)`` as a formula: no memory and no time, whatever the lengths.

    Options of other back ends change nothing. Raises SpecError where the function cannot be traced, ValueError for a bad size.
    """
    for name, n in (("Q_LEN", Q_LEN), ("KV_LEN", KV_LEN), ("B", B), ("H", H)):
        if n is not None and n < 0:
            raise ValueError(f"create_block_mask: {name} must not be negative, found {n}")
    place = device if device is not None else torch.accelerator.current_accelerator() or "cpu"
    made = BlockMask(mask_mod, (B or 1, H or 1, Q_LEN, KV_LEN), BLOCK_SIZE, place)
    analysis.traced(made.function(), made.shape, made.device)
    return made


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or any(n < 1 for n in pair):
        raise ValueError(f"a size of blocks is one or two positive numbers, found {size}")
    return pair
