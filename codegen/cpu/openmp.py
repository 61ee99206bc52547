"""The OpenMP runtime that torch has loaded: kernels linked with it share torch's pool of threads instead of bringing a second one."""

from __future__ import annotations

import functools
import re
from pathlib import Path

_NAME = re.compile(r"lib(?:gomp|iomp5|omp)\b[-.\w]*")
_USUAL = frozenset({"libgomp.so.1", "libiomp5.so", "libomp.so", "libomp.so.5"})


@functools.cache
def loaded() -> Path | None:
    """Its file: that in torch's own folder, else one with a usual name (others belong to other packages). None where none is found."""
    import torch

    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    files = [Path(line.split(maxsplit=5)[5]) for line in maps.splitlines() if line.count("/")]
    mine = dict.fromkeys(f for f in files if _NAME.fullmatch(f.name) and f.exists())
    own = Path(torch.__file__).parent / "lib"
    return next((f for f in mine if f.parent == own), None) or next((f for f in mine if f.name in _USUAL), None)


def link_options() -> list[str]:
    """What makes the linker take that file, and the compiler's own runtime only where something is missing."""
    file = loaded()
    return [] if file is None else ["-x", "none", "-Wl,--no-as-needed", str(file), "-Wl,--as-needed"]
