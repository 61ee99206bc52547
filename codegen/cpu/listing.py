"""`by_block`: rows in the order of the blocks that they list, by compiled code that reads every list twice and compares no two entries."""

from __future__ import annotations

import functools
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

from einfuse.codegen.cpu.build import call, library

if TYPE_CHECKING:
    import torch

TEXT = Path(__file__).with_suffix(".cpp")
THREAD = 2e5
"""Entries that are worth a thread."""


def by_block(
    lists: torch.Tensor, index: torch.Tensor, span: int, tile: int, room: int, folder: Path
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `einfuse.runtime.lists.by_block`. Raises BuildError."""
    import torch

    lists, index = lists.long().contiguous(), index.contiguous()
    lanes, length = index.shape
    rows = torch.empty((lanes, room), dtype=torch.int32)
    start, count = torch.empty((2, lanes, span), dtype=torch.int32)
    words = array("q", (x.data_ptr() for x in (lists, index, rows, start, count)))
    sizes = array("q", (lanes, length, lists.shape[-1], span, tile, room))
    threads = max(1, min(torch.get_num_threads(), lanes, int(index.numel() * lists.shape[-1] / THREAD)))
    if call(_function(folder), words.buffer_info()[0], 0, sizes.buffer_info()[0], 0, threads):
        raise MemoryError(f"not enough memory to sort the lists of {span} blocks")
    return rows, start, count


@functools.cache
def _function(folder: Path) -> Any:
    return library("listing", TEXT.read_text(encoding="utf-8"), folder)[1]
