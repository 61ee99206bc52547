"""What a call costs beside its kernel, and how long a process takes to its first result.

    python benchmarks/cpu_calls.py [--threads 1] [--start] [--json FILE]

Microseconds of a call on one small tile, the best of several runs of many calls each; seconds of a new process beyond importing torch, by
the wall's clock and the processors', with an empty cache of kernels and with a full one: medians of five. ``--start`` measures these alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import einfuse  # noqa: E402

_PROCESS = """
import os, time
import torch
def spent():
    t = os.times()
    return time.perf_counter(), t.user + t.system + t.children_user + t.children_system
begin = spent()
import einfuse
imported = spent()
attn = einfuse.compile("causal")
compiled = spent()
q = torch.randn(1, 2, 100, 64)
attn(q, q, q)
ended = spent()
for a, b in ((begin, imported), (imported, compiled), (compiled, ended)):
    print(b[0] - a[0], b[1] - a[1])
"""


def calls(repeats: int) -> dict[str, float]:
    """Microseconds of a call: 8 queries and keys of one head."""
    q = torch.randn(1, 1, 8, 64)
    grown = [torch.randn(1, 1, n, 64) for n in range(8, 8 + repeats)]
    doc, slope = torch.zeros(1, 8, dtype=torch.int32), torch.rand(1)
    causal, alibi, document, full = map(einfuse.compile, ("causal", "alibi", "document", "full"))
    keys = iter(grown * 6)

    def new_shape() -> torch.Tensor:
        k = next(keys)
        out = full(q, k, k)
        assert isinstance(out, torch.Tensor)
        return out

    asked = q.clone().requires_grad_()
    runs: dict[str, Callable[[], object]] = {
        "sdpa": lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True),
        "causal": lambda: causal(q, q, q),
        "alibi": lambda: alibi(q, q, q, slope=slope),
        "document": lambda: document(q, q, q, doc=doc),
        "full, new number of keys": new_shape,
        "causal, for gradients": lambda: causal(asked, q, q),
    }
    return {name: _best(run, repeats) for name, run in runs.items()}


def _best(run: Callable[[], object], repeats: int) -> float:
    for _ in range(10):
        run()
    found = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(repeats):
            run()
        found.append((time.perf_counter() - begin) / repeats)
    return min(found) * 1e6


def starts(repeats: int = 5) -> dict[str, dict[str, tuple[float, float]]]:
    """Seconds of importing, compiling a spec and its first call, in a new process: without and with kept kernels.

    By wall and by processors (those of the compiler too), medians of so many processes each.
    """
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {
            "PYTHONPATH": str(ROOT / "src"),
            "PYTHONPYCACHEPREFIX": folder,
        }
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        subprocess.run([sys.executable, "-c", "import einfuse"], env=env, check=True)  # bytecode, as installing leaves it
        cold = [_started(env | {"EINFUSE_CACHE": f"{folder}/kernels{n}"}) for n in range(repeats)]
        warm = [_started(env | {"EINFUSE_CACHE": f"{folder}/kernels0"}) for _ in range(repeats)]
        return {"cold": _medians(cold), "warm": _medians(warm)}


def _started(env: dict[str, str]) -> dict[str, tuple[float, float]]:
    done = subprocess.run([sys.executable, "-c", _PROCESS], env=env, check=True, capture_output=True, text=True)
    pairs = [(float(wall), float(spent)) for wall, spent in (line.split() for line in done.stdout.splitlines())]
    parts = dict(zip(("import", "compile", "first call"), pairs, strict=True))
    return parts | {"all": (sum(w for w, _ in pairs), sum(s for _, s in pairs))}


def _medians(found: list[dict[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    return {part: (median(f[part][0] for f in found), median(f[part][1] for f in found)) for part in found[0]}


def main(argv: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--repeats", type=int, default=1000)
    made.add_argument("--json", type=Path)
    made.add_argument("--start", action="store_true", help="only how long a process takes to its first result")
    args = made.parse_args(argv)
    torch.set_num_threads(args.threads)
    found: dict[str, float] = {}
    if not args.start:
        with torch.no_grad():
            found = {n: t for n, t in calls(args.repeats).items() if "gradients" not in n}
        found |= {"causal, for gradients": calls(max(1, args.repeats // 5))["causal, for gradients"]}
    for name, t in found.items():
        print(f"{name:<26} {t:7.1f} us a call")
    begun = starts()
    for which, parts in begun.items():
        text = ", ".join(f"{part} {wall:.3f} ({spent:.3f})" for part, (wall, spent) in parts.items())
        print(f"{which} start, seconds beyond importing torch (of processors): {text}")
    if args.json is not None:
        args.json.write_text(json.dumps({"calls": found, "starts": begun}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
