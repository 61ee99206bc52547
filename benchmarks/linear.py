"""Linear attention on the CPU: time a token at growing lengths, beside the quadratic form of the same attention.

    python benchmarks/linear.py [--lengths 4096 16384 65536] [--width 64] [--heads 2] [--backward]

Medians of one run on an otherwise idle machine; ratios between lines of one run are what counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import einfuse
from einfuse.runtime.verify import Shape, example_inputs

QUADRATIC = """attention quadratic over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in slope[h]
  s = sum[d](q * k) * exp(-abs(slope) * (i - j)) / sqrt(D) where j <= i
  o = sum[j](s * v)
  out o
}"""
NAMES = ("retention", "linear", "gla", "delta", "gated_delta")


def median(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def seconds(source: str, n: int, heads: int, width: int, backward: bool, repeats: int = 5) -> float:
    """The time of one call, with ``backward`` of a call and its gradients."""
    attention = einfuse.compile(source, backend="cpu")
    x = example_inputs(attention.cascade, torch.float32, 0, Shape(1, heads, n, n, (width, width), 1))
    leaves = {k: v.contiguous().requires_grad_(backward) for k, v in x.items() if isinstance(v, torch.Tensor)}

    def run() -> None:
        out = attention(**leaves)
        first = out[0] if isinstance(out, tuple) else out
        if backward:
            torch.autograd.grad(first.sum(), list(leaves.values()))

    return median(run, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384, 65536, 131072])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument(
        "--quadratic", type=int, default=16384, help="the length at which the quadratic form runs too; 0: never"
    )
    parser.add_argument("--backward", action="store_true")
    args = parser.parse_args()
    print(f"{'':14}" + "".join(f"{n:>12}" for n in args.lengths) + "   ns per token and head")
    at: dict[str, float] = {}
    for name in NAMES:
        cells = []
        for n in args.lengths:
            taken = seconds(name, n, args.heads, args.width, args.backward)
            at |= {name: taken} if n == args.quadratic else {}
            cells.append(f"{taken / n / args.heads * 1e9:12.0f}")
        print(f"{name:14}" + "".join(cells) + f"   longest / shortest {float(cells[-1]) / float(cells[0]):.2f}", flush=True)
    if args.quadratic:
        slow = seconds(QUADRATIC, args.quadratic, args.heads, args.width, args.backward, 3)
        ratio = f", {slow / at['retention']:.1f} times retention in blocks" if "retention" in at else ""
        print(f"the quadratic form of retention at {args.quadratic}: {slow * 1e3:.0f} ms{ratio}")


if __name__ == "__main__":
    main()
