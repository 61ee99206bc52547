"""Calls over a cache in pages by plans that are kept for their shapes: one serves all numbers of rows and pages up to a power of two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from einfuse.ir import Scalar
from einfuse.ir.passes import cache as reading
from einfuse.ir.passes.cache import Cached
from einfuse.runtime.attention import Attention
from einfuse.runtime.recent import Recent
from einfuse.serving import Cache, Plan, plan

TILE = 16
Given = Mapping[str, torch.Tensor | Scalar]


@dataclass(frozen=True, eq=False)
class Plans:
    """The plans of calls like earlier ones. They hold none of the tensors of a call."""

    known: Recent[tuple[object, ...], Plan] = field(default_factory=Recent)
    forms: Recent[str, Cached] = field(default_factory=Recent)

    def __call__(
        self, attention: Attention, given: Given, table: torch.Tensor, starts: torch.Tensor, length: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """The outputs [T, ...] for what ``given`` holds by the names of the inputs: rows [T, ...], tokens in pages [pages, P, ...], the rest
        as it is. ``table`` [B, table] lists the pages, ``starts`` [B + 1] and ``length`` [B] as in `Plan.update` and `Cache`.
        """
        form = self.forms.made(attention.key, lambda: reading.run(attention.cascade))
        tensors = {n: x for n, x in given.items() if isinstance(x, torch.Tensor)}
        total = tensors[next(iter(form.own))].shape[0]
        tensors |= {n: _padded(tensors[n], room(total)) for n in form.own}
        numbers = {n: x for n, x in given.items() if not isinstance(x, torch.Tensor)}
        shapes = tuple((n, x.shape, x.dtype, x.device) for n, x in tensors.items())
        key = (attention.key, attention.backend, len(length), room(table.shape[1]), *numbers.items(), *shapes)

        def planned() -> Plan:
            page = torch.zeros(len(length), room(table.shape[1]), dtype=table.dtype, device=table.device)
            kept = Cache({n: tensors[n] for n in form.held}, page, torch.zeros_like(length))
            rest: dict[str, Any] = {n: x for n, x in (tensors | numbers).items() if n not in form.held}
            made = plan(attention, kept, tiles=(1, TILE) if total > len(length) else (1,), **rest)
            made.forget()
            return made

        found = self.known.made(key, planned)
        found.cache.page[:, : table.shape[1]].copy_(table)
        found.cache.length.copy_(length)
        found.update(starts)
        outs = tuple(torch.zeros_like(x) for x in found.out)
        found.run(out=outs, **tensors)
        return tuple(x[:total] for x in outs)


def room(n: int) -> int:
    """The next power of two."""
    return 1 << max(n - 1, 0).bit_length()


def _padded(x: torch.Tensor, rows: int) -> torch.Tensor:
    return x if x.shape[0] == rows else torch.cat((x, x.new_zeros(rows - x.shape[0], *x.shape[1:])))
