"""Which calls one graph serves: the key of a forward holds what the text and the nodes depend on, and no length that kernels read.

    causal, 8 heads on 2, width 64, one query        keys 1025, 1026, ... 2048: one graph    keys 2049: another one

A length counts by the next power of two, as for the choice of a kernel (`tiles.rounded`), with 0 and 1 apart: there is nothing to do, and
heads may be rows. Host numbers count where they may choose the tiling, exact lengths where they may choose lists of pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

from einfuse.ir import Cascade
from einfuse.ir import expr as ex
from einfuse.ir.passes.walk import Pair
from einfuse.runtime import split, tiles
from einfuse.runtime.given import Given
from einfuse.runtime.walks import FEWEST

LOOKED_AT = FEWEST // 2
"""Rows beyond which numbers or exact lengths may choose the kernel: rounded to a power of two, they are as many as that takes."""
Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Kinds:
    """The kinds of calls of one cascade. ``fixed`` are the sizes that count as they are, ``growing`` the lengths of its sequences, ``rows``
    the sizes of those that may be tiled. ``masked``: a mask has a say in how; ``walked``: its pairs may be walked by lists.
    """

    fixed: tuple[str, ...]
    growing: tuple[str, ...]
    rows: tuple[int | str, ...]
    masked: bool
    walked: bool

    @staticmethod
    def of(cascade: Cascade, sizes: tuple[str, ...], pair: Pair | None) -> Kinds:
        """Of a cascade without folds whose calls have these sizes."""
        free = [r for r in cascade.ranks if r.is_sequence and r.name not in cascade.over]
        whole = {r.size for r in cascade.ranks if r not in free}
        growing = tuple(dict.fromkeys(r.size for r in free if isinstance(r.size, str) and r.size not in whole))
        given_out = {r for x in cascade.einsums if x.target in cascade.outs for r in x.ranks}
        rows = tuple(r.size for r in free if r.name in given_out)
        divided = pair is not None and any(e.op in ("//", "%") for c in pair.conditions for e in ex.walk(c))
        return Kinds(tuple(n for n in sizes if n not in growing), growing, rows, tiles.masked(cascade), divided)

    def key(self, given: Given, workers: int) -> Key:
        """The kind of a call; ``workers`` are those of its back end."""
        sizes = given.sizes
        parts: list[object] = [sizes[n] for n in self.fixed]
        for x in given.tensors.values():
            parts += (x.dtype, None if x.is_cpu else x.device)
        lengths = [sizes[n] for n in self.growing]
        parts += [n if n < 2 else 1 << (n - 1).bit_length() for n in lengths]
        rows = [n if isinstance(n, int) else sizes[n] for n in self.rows]
        if workers > 1:  # into how many parts the keys go (`split.planned`)
            parts += [min(n // split.FEWEST, workers) for n in lengths]
            parts += [min(-(-n // split.TILE), workers) for n in rows]
        if self.masked and rows and max(rows) > LOOKED_AT:
            parts += [x if x else str(x) for x in given.numbers.values()]  # -0.0 is not 0.0 here
            parts += sizes.values() if self.walked else ()
        return tuple(parts)
