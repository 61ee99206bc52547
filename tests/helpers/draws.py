"""The numbers that `random` of the language draws, one by one."""

from __future__ import annotations

from einfuse.ir.functions import hashed


def drawn(*counters: int) -> float:
    """``random(seed, a, b, ...)``: from 0 to 1, of its integers alone."""
    bits = counters[0]
    for c in counters[1:]:
        bits = hashed(bits, c)
    return (bits >> 7) * 2.0**-24
