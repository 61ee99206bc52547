"""The tile and step of a CPU kernel, from the sizes of this machine's caches.

A tile of scores (rows x step) takes three eighths of the first cache and the keys and values of a step a quarter of the second: the
scores are written and read three times a step, keys and values once for every register tile of rows. Products of narrow numbers are
done in half the time, so what a step costs besides counts twice: there it is twice as long.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from einfuse.codegen.plan import Storage

ROWS = 48  # eight register tiles of six
BACKWARD_ROWS = 96
FEWEST, MOST = 32, 256
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True, slots=True)
class Caches:
    """Bytes of the data caches of one core; what stands here is what most processors have at least."""

    first: int = 32 << 10
    second: int = 512 << 10


def tile(storage: Storage, width: int, backward: bool, caches: Caches) -> tuple[int, int]:
    """Rows of a tile and coordinates of a step, for features of this width."""
    rows = BACKWARD_ROWS if backward else ROWS
    size = 8 if storage == "f64" else 4
    share = 8 if storage in ("f32", "f64") and not backward else 4
    scores = caches.first * 3 // share // (rows * size)
    operands = caches.second // 4 // (2 * max(width, 1) * size)
    room = max(FEWEST, min(MOST, scores, operands))
    return rows, 1 << (room.bit_length() - 1)


def narrower(tiling: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """The tiling and those of shorter steps, down to the shortest that fills vectors: for masks that leave few columns of a row."""
    rows, step = tiling
    return tuple((rows, step >> k) for k in range(step.bit_length()) if step >> k >= FEWEST)


@functools.cache
def caches() -> Caches:
    """Those of this machine."""
    usual = Caches()
    return Caches(_asked(1) or usual.first, _asked(2) or usual.second)


def _asked(level: int) -> int:
    """The bytes of a level's data cache that a core has to itself, 0 where nobody says."""
    for index in sorted(_CACHES.glob("index*")):
        try:
            kind, at, size, sharing = ((index / n).read_text().strip() for n in ("type", "level", "size", "shared_cpu_list"))
            if int(at) == level and kind != "Instruction":
                return int(size.removesuffix("K")) * 1024 // max(1, _cores(sharing))
        except (OSError, ValueError):
            continue  # a kernel that tells less, or in other words
    try:
        return max(0, os.sysconf("SC_LEVEL1_DCACHE_SIZE" if level == 1 else "SC_LEVEL2_CACHE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return 0


def _cores(listed: str) -> int:
    """How many processors "0-1,4" names, two threads of a core as one where they are neighbours."""
    ends = [part.split("-") for part in listed.split(",")]
    count = sum(int(e[-1]) - int(e[0]) + 1 for e in ends)
    return 1 if count <= 2 else count
