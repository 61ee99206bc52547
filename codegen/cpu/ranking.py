"""`best`: the choice of coordinates (`einfuse.ir.ranking`) by compiled code that reads every row of scores twice."""

from __future__ import annotations

import functools
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

from einfuse.codegen.cpu.build import call, library
from einfuse.ir.reducers import MISSING

if TYPE_CHECKING:
    import torch

TEXT = Path(__file__).with_suffix(".cpp")
THREAD = 1e5
"""Candidates that are worth a thread."""


def best(values: torch.Tensor, exists: torch.Tensor | None, slots: int, folder: Path) -> torch.Tensor:
    """See `einfuse.ir.ranking.best`, for float32 ``values`` in memory and at least one candidate and slot. Raises BuildError."""
    import torch

    function = _function(folder)
    values = values.contiguous()
    *extents, span = values.shape
    out = torch.empty((*extents, slots), dtype=torch.int64)
    lives = None if exists is None else exists.expand(values.shape)
    if lives is not None and lives.stride(-1) != 1:
        lives = lives.contiguous()
    strides = () if lives is None else lives.stride()
    words = array("q", (values.data_ptr(), 0 if lives is None else lives.data_ptr(), out.data_ptr()))
    steps, sizes = array("q", strides), array("q", (len(extents), span, slots, *extents))
    threads = max(1, min(torch.get_num_threads(), int(values.numel() / THREAD)))
    if call(function, *(x.buffer_info()[0] for x in (words, steps, sizes)), 0, threads):
        raise MemoryError(f"not enough memory for a list of {slots} slots")
    return out


@functools.cache
def _function(folder: Path) -> Any:
    text = TEXT.read_text(encoding="utf-8").replace("MISSING", f"({MISSING}L)")
    return library("ranking", text, folder)[1]
