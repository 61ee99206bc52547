"""Correctness on a device: every kernel of a spec, values and gradients, beside the float64 oracle on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # einfuse need not be installed

import einfuse
from einfuse.runtime.verify import Row, Shape

DTYPES = ("float32", "bfloat16")
SHAPES = {
    "odd": Shape(),  # no tile divides these
    "even": Shape(batch=1, heads=4, queries=256, keys=256, widths=(64, 64), group=2),
}


def check_all(
    names: Sequence[str], workers: int, deadline: float, note: Callable[[str], None]
) -> tuple[list[Row], list[dict[str, str]], list[str]]:
    """Rows, kernels that raised, and what the deadline left out.

    Compiling takes the time, so specs are spread over processes; each has its own, so that a kernel that hangs or breaks the device's
    context takes nothing else with it.
    """
    rows: list[Row] = []
    failures: list[dict[str, str]] = []
    unreached: list[str] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        futures = {pool.submit(_in_a_process, name, deadline): name for name in names}
        for done, future in enumerate(as_completed(futures), 1):
            found, last_words = future.result()
            reached = {(f["dtype"], f["shape"]) for f in found}
            for f in found:
                if "error" in f:
                    failures.append({"name": futures[future], **f})
                rows += [Row(**r) for r in f.get("rows", ())]
            if last_words:
                failures.append({"name": futures[future], "dtype": "", "shape": "", "error": last_words})
            unreached += [f"{futures[future]} {d} {s}" for s in SHAPES for d in DTYPES if (d, s) not in reached]
            note(f"checked {done}/{len(names)}: {futures[future]}")
    return rows, failures, unreached


def _in_a_process(name: str, deadline: float) -> tuple[list[dict[str, Any]], str]:
    """What a process that checks one spec has printed by the deadline, and its last words if it died of something else."""
    left = deadline - time.monotonic()
    if left <= 0:
        return [], ""
    env = {**os.environ, "OMP_NUM_THREADS": "2"}  # for the oracle
    command = [sys.executable, __file__, name]
    last_words = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left, env=env, check=False)
        printed = done.stdout
        if done.returncode:
            last_words = done.stderr[-500:] or f"exit code {done.returncode}"
    except subprocess.TimeoutExpired as late:
        printed = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{") and line.endswith("}")], last_words


def check_one(name: str, device: str) -> None:
    """Prints a line of JSON for every dtype and shape of one spec."""
    for shape, sizes in SHAPES.items():
        for dtype in DTYPES:
            found: dict[str, Any] = {"dtype": dtype, "shape": shape}
            try:
                certificate = einfuse.verify(
                    einfuse.compile(name), backends=["triton"], dtypes=[dtype], shape=sizes, device=device
                )
                found["rows"] = [asdict(r) for r in certificate.rows]
            except Exception as error:  # a kernel that does not compile is a result here, whatever the compiler raises
                found["error"] = f"{type(error).__name__}: {str(error)[-500:]}"
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    check_one(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "cuda")
