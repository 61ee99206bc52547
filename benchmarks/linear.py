"""Linear attention on the CPU: time a token at growing lengths, beside the quadratic form of the same attention.

    python benchmarks/linear.py [--lengths 4096 16384 65536] [--width 64] [--heads 2] [--backward]
    python benchmarks/linear.py --crossover [--widths 16 32 64] [--heads 2] [--backward]

The second prints, for TaylorShift, the length from which on its linear form is faster as measured and as the cost model predicts it (what a
call goes by), and for causal linear attention written with weights over (i, j) both forms at 16,384 points.

Medians of one run on an otherwise idle machine; ratios between lines of one run are what counts.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch

import einfuse
from einfuse.runtime.forms import FormName
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
    attention = einfuse.compile(source, backend="cpu", form="quadratic")
    x = example_inputs(attention.cascade, torch.float32, 0, Shape(1, heads, n, n, (width, width), 1))
    leaves = {k: v.contiguous().requires_grad_(backward) for k, v in x.items() if isinstance(v, torch.Tensor)}

    def run() -> None:
        out = attention(**leaves)
        first = out[0] if isinstance(out, tuple) else out
        if backward:
            torch.autograd.grad(first.sum(), list(leaves.values()))

    return median(run, repeats)


CAUSAL = """attention causal_linear over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  w = sum[d]((elu(q) + 1) * (elu(k) + 1)) where j <= i
  o = sum[j](w * v) / sum[j](w)
  out o
}"""


FORMS: tuple[FormName, FormName] = ("quadratic", "linear")


def form_seconds(source: str, n: int, heads: int, width: int, backward: bool, repeats: int = 7) -> tuple[float, float]:
    """The least time of one call in each form, by turns; with ``backward`` of a call and its gradients."""
    attentions = [einfuse.compile(source, backend="cpu", form=form) for form in FORMS]
    x = example_inputs(attentions[0].cascade, torch.float32, 0, Shape(1, heads, n, n, (width, width), 1))
    leaves = [v.contiguous().requires_grad_(backward) for v in x.values() if isinstance(v, torch.Tensor)]

    def run(attention: einfuse.Attention) -> float:
        start = time.perf_counter()
        out = attention(*leaves)
        assert isinstance(out, torch.Tensor), "the specs measured here have one output"
        if backward:
            torch.autograd.grad(out, leaves, torch.ones_like(out))
        return time.perf_counter() - start

    for attention in attentions:
        run(attention)
    taken = [[run(a) for a in attentions] for _ in range(repeats)]
    return min(t[0] for t in taken), min(t[1] for t in taken)


def measured_crossover(source: str, heads: int, width: int, backward: bool) -> float:
    """Where the two forms take the same time: lengths are doubled until the linear one wins, then interpolated in logarithms."""
    before: tuple[float, float] | None = None
    n = 128
    while True:
        slow, fast = form_seconds(source, n, heads, width, backward)
        gap = math.log(fast / slow)
        if gap <= 0 and before is None:
            return float(n)
        if gap <= 0 and before is not None:
            length, old = before
            return math.exp(length + (math.log(n) - length) * old / (old - gap))
        before = (math.log(n), gap)
        n = n * 3 // 2


def crossovers(widths: Sequence[int], heads: int, backward: bool) -> None:
    """Measured and predicted lengths, side by side."""
    print(f"TaylorShift, {heads} heads{', with gradients' if backward else ''}")
    print("              N* measured, predicted, ratio; what a call takes 1.3 times below and above")
    forms = einfuse.compile("taylor_shift", backend="cpu").forms
    device = torch.device("cpu")
    for kind in forms.unmeasured(torch.float32, device, backward):
        forms.calibrate(kind, torch.float32, device, backward)
    for width in widths:
        sizes = {"B": 1, "H": heads, "Nq": 1, "Nk": 1, "D": width, "E": width, "group": 1}
        predicted = forms.crossover(sizes, torch.float32, device, backward)
        found = measured_crossover("taylor_shift", heads, width, backward)
        x = torch.empty(0)
        taken = [forms.choose(sizes | {"Nq": n, "Nk": n}, x, backward) for n in (int(found / 1.3), int(found * 1.3))]
        print(f"  width {width:4}  {found:8.0f} {predicted:8}  {predicted / found:6.2f}   {' -> '.join(taken)}", flush=True)


def causal(heads: int, width: int, n: int, backward: bool) -> None:
    slow, fast = form_seconds(CAUSAL, n, heads, width, backward, 3)
    print(f"causal linear attention as weights, {n} points: {slow * 1e3:.0f} ms, {fast * 1e3:.1f} ms: {slow / fast:.1f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384, 65536, 131072])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument(
        "--quadratic", type=int, default=16384, help="the length at which the quadratic form runs too; 0: never"
    )
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--crossover", action="store_true", help="where the linear form takes over, measured and predicted")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    args = parser.parse_args()
    if args.crossover:
        causal(args.heads, args.width, 16384, args.backward)
        crossovers(args.widths, args.heads, args.backward)
        return
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
