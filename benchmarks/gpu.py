"""Checks every generated Triton kernel on this machine's GPU, then times them beside what torch offers.

    python benchmarks/gpu.py [--budget SECONDS] [--specs NAME ...]

Needs torch and Triton; einfuse itself need not be installed. Writes benchmarks/results/<device>.json and stops within its budget:
what was not reached is named there. Exit code 1 where a kernel is wrong; 0 where there is no GPU, which it says.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import harness

NEEDED = ("torch", "triton", "jinja2", "lark", "numpy", "platformdirs", "rich", "sympy")
CAPTURED = ("full", "causal", "alibi", "sliding_window", "gqa", "document", "sigmoid", "rope", "retention", "gla")
CHECKING, TIMING = 0.44, 0.88  # the parts of the budget after which no more is checked, and no more timed beside peers


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"missing Python packages: {' '.join(missing)} (all but torch and triton are small pure-Python wheels)")
        return 2
    import torch

    if not torch.cuda.is_available():
        print("no GPU found: nothing was checked or timed. The tests run every kernel in Triton's interpreter instead.")
        return 0
    start = time.monotonic()
    result = run(args, start)
    path = write(result, args.out)
    summary(result)
    print(f"\n{time.monotonic() - start:.0f} s of {args.budget:.0f} s; written to {path}")
    return 0 if result["ok"] else 1


def arguments(argv: list[str] | None) -> argparse.Namespace:
    made = harness.options(__doc__)
    made.add_argument("--budget", type=float, default=480.0, help="seconds for everything; %(default)s unless given")
    made.add_argument("--specs", nargs="+", metavar="NAME", help="all of the library unless given")
    made.add_argument("--workers", type=int, default=os.cpu_count() or 8, help="processes that check; %(default)s unless given")
    made.add_argument("--out", type=Path, default=harness.RESULTS, help="folder of the result")
    made.add_argument("--no-timing", action="store_true")
    return made.parse_args(argv)


def run(args: argparse.Namespace, start: float) -> dict[str, Any]:
    import gpu_check
    import gpu_search
    import gpu_time
    import gpu_workers
    import torch
    import triton

    import einfuse

    names = args.specs or [s.name for s in einfuse.list_specs()]
    deadline, checked_by = start + args.budget, start + args.budget * (1.0 if args.no_timing else CHECKING)
    (first,) = gpu_workers.run([gpu_workers.Task("gpu_check:smoke")], 1, deadline)
    note(f"a first kernel: {first.value or first.error}")
    if first.error:
        raise SystemExit(f"the first kernel failed, and nothing else was begun: {first.error}")
    warm = [] if args.no_timing else [*gpu_time.tasks(names, warm=True), *gpu_search.tasks(warm=True)]
    replays = [gpu_workers.Task("gpu_check:captured", (n, "bfloat16")) for n in CAPTURED if n in names]
    rows, failures, unchecked = gpu_check.check_all(names, args.workers, checked_by, note, before=[*replays, *warm])
    timed, untimed = ([], []) if args.no_timing else gpu_time.time_all(names, start + args.budget * TIMING, note)
    found = [] if args.no_timing else gpu_workers.run(gpu_search.tasks(), 1, deadline, lambda a: note(f"tried {a.error}"))
    return {
        "device": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "triton": triton.__version__,
        "first": first.value,
        "ok": all(r.ok for r in rows) and not failures,
        "checks": [asdict(r) for r in rows],
        "failures": failures,
        "times": [asdict(t) for t in timed],
        "tilings": [a.value or {"task": list(a.task.arguments), "error": a.error} for a in found if a.reached],
        "not_reached": {"checks": unchecked, "times": untimed},
    }


def note(text: str) -> None:
    """Progress, on stderr: on a GPU machine output is often a log."""
    print(datetime.now(UTC).strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def write(result: dict[str, Any], folder: Path) -> Path:
    path = folder / (re.sub(r"[^A-Za-z0-9]+", "-", result["device"]).strip("-").lower() + ".json")
    harness.write(path, result)
    return path


def summary(result: dict[str, Any]) -> None:
    wrong = [r for r in result["checks"] if not r["ok"]]
    print(
        f"{result['device']}: {len(result['checks'])} comparisons, {len(wrong)} wrong, {len(result['failures'])} kernels failed"
    )
    for r in wrong[:20]:
        print(f"  WRONG {r['name']} {r['dtype']} {r['what']}: error {r['error']:.2g}, allowed {r['allowed']:.2g}")
    for f in result["failures"][:20]:
        print(f"  FAILED {f['name']}: {f['error']}")
    for t in result["times"]:
        who = f"{t['variant']} {t['direction']} {t['dtype']} {t['shape']} beside {t['peer']}"
        print(f"  {who}: {t['rate']:.3g} {t['unit']}, ratio {t['ratio']:.2f} (+-{t['spread'] / 2:.2f}){t['remark']}")
    for what, left in result["not_reached"].items():
        if left:
            print(f"not reached within the budget, {what}: {', '.join(left)}")


if __name__ == "__main__":
    sys.exit(main())
