"""Block masks that are formulas: made at once whatever the length, and answering what torch's answer.

Which blocks hold no points, some points or all points is found by the symbolic analysis, and from points only where it is not sure.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from einfuse.flex import assemble
from einfuse.flex.masks import Blocks, MaskFunction, Picked, noop_mask, sliced_mask_error
from einfuse.flex.tracer import Tracer, outside_of_graphs
from einfuse.flex.value import Value
from einfuse.ir import at_points, classify
from einfuse.ir.interpreter import evaluate_indices
from einfuse.ir.tiles import EMPTY, FULL, PARTIAL

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
        found = kinds(self.function(), self.shape, self.BLOCK_SIZE, self.device)
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
        return _text(self.to_dense(), _pair(grid_size), limit)

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
    traced(made.function(), made.shape, made.device)
    return made


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or any(n < 1 for n in pair):
        raise ValueError(f"a size of blocks is one or two positive numbers, found {size}")
    return pair


# -- which blocks hold points ----------------------------------------------------------------------------------------------------

POINTS = 1 << 22
"""The most points that are evaluated at once."""

Kinds = npt.NDArray[np.int8]


def kinds(mask: MaskFunction, shape: tuple[int, int, int, int], block: tuple[int, int], device: torch.device) -> Kinds:
    """``[B, H, row block, column block]``: 0 empty, 1 partial, 2 full, exactly.

    Memory is that of the blocks. Raises SpecError where the mask cannot be traced.
    """
    return _Blocks(*traced(mask, shape, device), shape, block).kinds()


def traced(mask: MaskFunction, shape: tuple[int, int, int, int], device: torch.device) -> tuple[Tracer, Value]:
    """A mask function as a condition. Raises SpecError where it cannot be traced."""
    tracer = Tracer(dict(zip(("b", "h", "i", "j"), shape, strict=True)), torch.float32, device)
    return tracer, tracer.condition(mask)


class _Blocks:
    def __init__(self, tracer: Tracer, mask: Value, shape: tuple[int, int, int, int], block: tuple[int, int]) -> None:
        self.mask, self.shape, self.block = mask, shape, block
        self.cascade = assemble.condition(tracer, mask)
        self.sizes = assemble.sizes_of(tracer)
        tensors, self.numbers = assemble.arguments(tracer)
        self.tensors = {n: x.detach().cpu() for n, x in tensors.items()}

    def kinds(self) -> Kinds:
        batch, heads, rows, columns = self.shape
        height, width = self.block
        arrays = {n: x.numpy() for n, x in self.tensors.items() if x.dtype != torch.bfloat16}
        found = classify(
            self.mask.expr,
            ("i", rows, height),
            ("j", columns, width),
            self.sizes,
            self.numbers,
            arrays,
            {"b": batch, "h": heads},
        )
        kind = found.kind.copy()
        for at, window, blocks in self._unsure(self._mixed_or(kind, found.ranks, arrays), found.ranks):
            live = self._points(window)
            for n in blocks:
                lo = n * width - window["j"][0]
                tile = live[:, lo : lo + width]
                whole = bool(tile.all()) and tile.shape == (height, width)
                kind[(*at, n)] = FULL if whole else PARTIAL if bool(tile.any()) else EMPTY
        for n, size, edge in ((rows, height, kind[..., -1:, :]), (columns, width, kind[..., -1:])):
            if n % size:  # as torch has it: what lies beyond the mask is not there
                np.minimum(edge, PARTIAL, out=edge)
        own = [r in found.ranks for r in ("b", "h")]
        kind = kind.reshape(*(n if mine else 1 for n, mine in zip((batch, heads), own, strict=True)), *kind.shape[-2:])
        return np.broadcast_to(kind, (batch, heads, *kind.shape[-2:]))

    def _mixed_or(
        self, kind: Kinds, ranks: tuple[str, ...], arrays: Mapping[str, npt.NDArray[np.generic]]
    ) -> npt.NDArray[np.bool_]:
        """The blocks to be looked through: what may be partial, less those of whose corners some hold and some do not."""
        unsure: npt.NDArray[np.bool_] = np.equal(kind, PARTIAL)
        place = np.nonzero(unsure)
        seen = np.zeros((2, len(place[0])), np.bool_)
        _, _, rows, columns = self.shape
        for down, across in itertools.product((False, True), repeat=2):
            at = dict(zip(ranks, place[:-2], strict=True))
            for r, x, tile, n, last in (
                ("i", place[-2], self.block[0], rows, down),
                ("j", place[-1], self.block[1], columns, across),
            ):
                at[r] = np.minimum((x + last) * tile, n) - last
            known = at_points(self.mask.expr, at, self.sizes, self.numbers, arrays)
            seen |= known == np.array([[EMPTY], [FULL]])
        unsure[place] = ~seen.all(0)
        return unsure

    def _unsure(
        self, unsure: npt.NDArray[np.bool_], ranks: tuple[str, ...]
    ) -> Iterator[tuple[tuple[int, ...], dict[str, tuple[int, int]], list[int]]]:
        """Runs of such blocks in one row of blocks, with the window of points they span."""
        height, width = self.block
        most = max(1, POINTS // (height * width))
        for at in map(tuple, np.argwhere(unsure.any(-1)).tolist()):
            columns = np.nonzero(unsure[at])[0]
            window = {r: (k, k + 1) for r, k in zip(ranks, at[:-1], strict=True)}
            window["i"] = (at[-1] * height, min((at[-1] + 1) * height, self.shape[2]))
            start = 0
            for stop in range(1, len(columns) + 1):
                if stop == len(columns) or columns[stop] - columns[start] >= most or columns[stop] - columns[stop - 1] > 1:
                    run = [int(c) for c in columns[start:stop]]
                    yield at, {**window, "j": (run[0] * width, min((run[-1] + 1) * width, self.shape[3]))}, run
                    start = stop

    def _points(self, window: dict[str, tuple[int, int]]) -> torch.Tensor:
        """The mask at every point of a window of queries and keys."""
        ranks = ("b", "h", "i", "j")
        inputs = {**self.tensors, **self.numbers}
        full = {r: window.get(r, (0, 1)) for r in ranks}
        (live,) = evaluate_indices(self.cascade, (self.mask.expr,), ranks, inputs, self.sizes, full)
        return live.bool().expand(1, 1, *(full[r][1] - full[r][0] for r in ("i", "j")))[0, 0]


# -- blocks as text --------------------------------------------------------------------------------------------------------------

_CELLS = " \u2591\u2588"
"""Of no points, some and all."""


def _text(dense: torch.Tensor, grid: tuple[int, int], limit: int) -> str:
    """Every head of ``dense[B, H, rows, columns]`` in cells of several blocks, so that ``grid`` rows and columns are enough."""
    *ambient, rows, columns = dense.shape
    height, width = (max(1, -(-n // g)) for n, g in zip((rows, columns), grid, strict=True))
    out = []
    for n, at in enumerate(itertools.product(*map(range, ambient))):
        if n == limit:
            out += ["...", "to_string(limit=N) shows more, mask[batch, head] one"]
            break
        lines = [
            "".join(_cell(dense[at][r : r + height, c : c + width]) * 2 for c in range(0, columns, width))
            for r in range(0, rows, height)
        ]
        out.append(f"{at}\n" + "\n".join(lines) + "\n")
    return "\n".join(out)


def _cell(part: torch.Tensor) -> str:
    share = float(part.float().mean())
    return _CELLS[2] if share == 1 else _CELLS[0] if share == 0 else _CELLS[1]
