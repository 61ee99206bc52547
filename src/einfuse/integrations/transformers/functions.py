"""Mask functions that say what they are: transformers makes its windows, chunks and packed sequences as these.

A mask function takes indices (b, h, q, k), tensors that broadcast, and gives booleans. Those of transformers are closures, which cannot be
asked; these are the same functions as data, also inside a graph of torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Index = torch.Tensor
FOUND = "_einfuse_packed"
"""The attribute of a tensor of sequence numbers that transformers found in positions: they count up by one within each sequence."""


@dataclass(frozen=True, slots=True)
class Band:
    """The pairs of positions that lie close enough."""

    causal: bool = False
    window: int | None = None
    both: bool = False

    def __call__(self, b: Index, h: Index, q: Index, k: Index) -> torch.Tensor:
        seen = k <= q if self.causal else q >= 0
        if self.window is not None:
            seen = seen & (k > q - self.window)
            seen = seen & (k < q + self.window) if self.both else seen
        return seen

    @property
    def band(self) -> Band:
        return self

    def documents(self, start: int, length: int) -> torch.Tensor | None:
        """The part [b, n] of its row that each of these positions is in; a query sees keys of its own part. None: all are in one."""
        return None


@dataclass(frozen=True, slots=True)
class Chunks:
    """Causal in chunks, which are counted from the first real token of a row."""

    size: int
    first: torch.Tensor

    def __call__(self, b: Index, h: Index, q: Index, k: Index) -> torch.Tensor:
        return ((k - self.first[b]) // self.size == (q - self.first[b]) // self.size) & (k <= q)

    @property
    def band(self) -> Band:
        return Band(causal=True)

    def documents(self, start: int, length: int) -> torch.Tensor:
        at = torch.arange(start, start + length, device=self.first.device)
        return ((at - self.first[:, None]) // self.size).int()


@dataclass(frozen=True, slots=True)
class Packed:
    """A band within each of the sequences that are packed into a row. Their ``positions`` count up by one, so distances are those of places."""

    band: Band
    positions: torch.Tensor
    numbers: torch.Tensor

    def __call__(self, b: Index, h: Index, q: Index, k: Index) -> torch.Tensor:
        within = self.band(b, h, self.positions[b, q], self.positions[b, k])
        return within & (self.numbers[b, q] == self.numbers[b, k])

    def documents(self, start: int, length: int) -> torch.Tensor:
        return self.numbers[:, start : start + length].int()


@dataclass(frozen=True, slots=True)
class Remapped:
    """A mask function of positions within a packed sequence, in place of those in the row."""

    function: Callable[..., torch.Tensor]
    positions: torch.Tensor

    def __call__(self, b: Index, h: Index, q: Index, k: Index) -> torch.Tensor:
        return self.function(b, h, self.positions[b, q], self.positions[b, k])


@dataclass(frozen=True, slots=True)
class SameSequence:
    """The pairs within one of the packed sequences of a row."""

    numbers: torch.Tensor

    def __call__(self, b: Index, h: Index, q: Index, k: Index) -> torch.Tensor:
        return self.numbers[b, q] == self.numbers[b, k]


Known = Band | Chunks | Packed


def known(function: Any) -> Known | None:
    """A mask function as one that says what it is; None for any other."""
    from transformers import masking_utils

    if function is masking_utils.causal_mask_function:
        return Band(causal=True)
    if function is masking_utils.bidirectional_mask_function:
        return Band()
    return function if isinstance(function, Band | Chunks | Packed) else None


# -- in place of transformers' functions of the same names ---------------------------------------------------------------------------

_STOCK: dict[str, Callable[..., Any]] = {}


def sliding_window_causal_mask_function(sliding_window: int) -> Callable[..., Any]:
    return Band(causal=True, window=sliding_window)


def sliding_window_bidirectional_mask_function(sliding_window: int) -> Callable[..., Any]:
    return Band(window=sliding_window + 1, both=True)


def chunked_causal_mask_function(chunk_size: int, left_padding: torch.Tensor) -> Callable[..., Any]:
    return Chunks(chunk_size, left_padding)


def remap_positions_for_packed_sequence(mask_function: Callable[..., Any], position_ids: torch.Tensor) -> Callable[..., Any]:
    return Remapped(mask_function, position_ids)


def packed_sequence_mask_function(packed_sequence_mask: torch.Tensor) -> Callable[..., Any]:
    return SameSequence(packed_sequence_mask)


def find_packed_sequence_indices(position_ids: torch.Tensor) -> torch.Tensor | None:
    found: torch.Tensor | None = _STOCK["find_packed_sequence_indices"](position_ids)
    if found is not None:
        setattr(found, FOUND, True)
    return found


def and_masks(*mask_functions: Callable[..., Any]) -> Callable[..., Any]:
    if len(mask_functions) == 2:
        first, second = mask_functions
        if isinstance(first, Remapped) and isinstance(second, SameSequence) and getattr(second.numbers, FOUND, False):
            within = known(first.function)
            if isinstance(within, Band):
                return Packed(within, first.positions, second.numbers)
    return _STOCK["and_masks"](*mask_functions)  # type: ignore[no-any-return]  # a function


def replace_functions() -> None:
    """Has transformers make its mask functions as those of this file. What it composes of others stays as it is."""
    from transformers import masking_utils

    for made in (
        sliding_window_causal_mask_function,
        sliding_window_bidirectional_mask_function,
        chunked_causal_mask_function,
        remap_positions_for_packed_sequence,
        packed_sequence_mask_function,
        find_packed_sequence_indices,
        and_masks,
    ):
        stock = getattr(masking_utils, made.__name__, None)
        if stock is not None and stock is not made:
            _STOCK[made.__name__] = stock
            setattr(masking_utils, made.__name__, made)


def stock(name: str) -> Callable[..., Any]:
    """transformers' own function, which one of this file is in place of."""
    return _STOCK[name]
