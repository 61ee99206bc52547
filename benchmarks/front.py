"""How long the front end takes, as a user waits for it: `einfuse check FILE` as a process, and every spec of the library elaborated.

    python benchmarks/front.py [--repeats 11]

Medians of wall time. The first check of a text proves how its reductions fuse; later ones read that from disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPEC = ROOT / "examples" / "alibi_window.attn"
ELABORATE = """
import time; start, spent = time.perf_counter(), time.process_time()
from einfuse import dsl
from einfuse.runtime.specs import library
found = library()
for path in found.values():
    dsl.elaborate(dsl.parse(dsl.read_spec(path), path.name), search=(path.parent,))
print(f"{len(found)} specs elaborated in {time.perf_counter() - start:.2f} s ({time.process_time() - spent:.2f} s of processor time)")
"""


def checked(folder: str) -> tuple[float, float]:
    """Wall time and processor time: they are the same on a quiet machine."""
    start, before = time.perf_counter(), os.times()
    command = [sys.executable, "-m", "einfuse", "check", str(SPEC)]
    env = {n: x for n, x in os.environ.items() if n != "PYTHONDONTWRITEBYTECODE"} | {"EINFUSE_CACHE": folder}
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, spent


def shown(times: list[tuple[float, float]]) -> str:
    wall, spent = (statistics.median(x) for x in zip(*times, strict=True))
    return f"{wall:.2f} s ({spent:.2f} s of processor time)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        checked(folder)  # byte code, the tables of the grammar
        again = [checked(folder) for _ in range(repeats)]
    first = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            first.append(checked(folder))
    print(f"einfuse check {SPEC.name}: {shown(again)}; the first time {shown(first)}")
    subprocess.run([sys.executable, "-c", ELABORATE], check=True)


if __name__ == "__main__":
    main()
