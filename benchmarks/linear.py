"""Linear attention on the CPU: time a token at growing lengths, beside the quadratic form of the same attention.

    python benchmarks/linear.py [--lengths 4096 16384 65536 131072] [--threads 1 2] [--width 64] [--heads 2] [--backward]
    python benchmarks/linear.py --crossover [--widths 16 32 64] [--heads 2]

The first takes the lengths by turns, as many calls of each in a round as make the longest, and the medians over the rounds. It does so twice:
with the memory of outputs as the C library gives it, where every call of more than 32 MB has the kernel of the system clear fresh pages, and
with memory kept between calls, as most serving processes do. The difference is none of the attention's.

The second prints, for TaylorShift, the length from which on its linear form is faster as measured and as the cost model predicts it (what a
call goes by; its rates are measured in the same run), without gradients and with them, and for causal linear attention written with weights
over (i, j) both forms at 16,384 points.

Ratios between lines of one run on an otherwise idle machine are what counts.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import harness
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
WALL = partial(harness.clocked, clock=time.perf_counter)
NAMES = ("retention", "linear", "gla", "delta", "gated_delta")


def call(source: str, n: int, heads: int, width: int, backward: bool) -> Callable[[], object]:
    """One call at this length, with ``backward`` and its gradients."""
    attention = einfuse.compile(source, backend="cpu", form="quadratic")
    x = example_inputs(attention.cascade, torch.float32, 0, Shape(1, heads, n, n, (width, width), 1))
    leaves = {k: v.contiguous().requires_grad_(backward) for k, v in x.items() if isinstance(v, torch.Tensor)}

    def run() -> None:
        out = attention(**leaves)
        first = out[0] if isinstance(out, tuple) else out
        if backward:
            torch.autograd.grad(first.sum(), list(leaves.values()))

    return run


def medians(calls: Mapping[int, Callable[[], object]], rounds: int) -> dict[int, float]:
    """Seconds of each call by its length: in every round all lengths by turns, each for as many tokens as the longest."""
    times = {n: max(1, max(calls) // n) for n in calls}
    row = {n: partial(repeated, run, times[n]) for n, run in calls.items()}
    # What ran before a call has left the caches full of its own.
    taken = harness.turns(row, rounds, 0, WALL, before=lambda n: calls[n]())
    return {n: statistics.median(t) / times[n] for n, t in taken.items()}


def repeated(run: Callable[[], object], times: int) -> None:
    for _ in range(times):
        run()


def keep_memory() -> None:
    """From here on freed memory stays with the process (glibc: nothing is mapped for one block alone, nothing given back)."""
    libc = ctypes.CDLL("libc.so.6")
    m_trim_threshold, m_mmap_max = -1, -4
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


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
ENOUGH = 2.0
"""Seconds of calls after which two are repeats enough: what disturbs one is short beside it."""


def form_seconds(source: str, n: int, heads: int, width: int, backward: bool, repeats: int = 7) -> tuple[float, float]:
    """The least time of one call in each form, by turns, two and more as they take long; with ``backward`` of a call and its gradients."""
    attentions = [einfuse.compile(source, backend="cpu", form=form) for form in FORMS]
    x = example_inputs(attentions[0].cascade, torch.float32, 0, Shape(1, heads, n, n, (width, width), 1))
    leaves = [v.contiguous().requires_grad_(backward) for v in x.values() if isinstance(v, torch.Tensor)]

    def run(attention: einfuse.Attention) -> None:
        out = attention(*leaves)
        assert isinstance(out, torch.Tensor), "the specs measured here have one output"
        if backward:
            torch.autograd.grad(out, leaves, torch.ones_like(out))

    row = {n: partial(run, a) for n, a in enumerate(attentions)}
    taken = harness.turns(row, 2, measure=WALL)
    while len(taken[0]) < repeats and sum(map(sum, taken.values())) < ENOUGH:
        for n, call in row.items():
            taken[n].append(WALL(call))
    return min(taken[0]), min(taken[1])


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
    table = harness.Table(
        "width:d", "N* measured:.0f", "predicted:d", "ratio:.2f", "what a call takes 1.3 times below and above"
    )
    forms = einfuse.compile("taylor_shift", backend="cpu").forms
    assert forms.found is not None, "TaylorShift has a linear form"
    device = torch.device("cpu")
    for width in widths:
        sizes = {"B": 1, "H": heads, "Nq": 1, "Nk": 1, "D": width, "E": width, "group": 1}
        for kind in ("quadratic", forms.found.kind):
            forms.calibrate(kind, sizes, torch.float32, device, backward)
        predicted = forms.crossover(sizes, torch.float32, device, backward)
        found = measured_crossover("taylor_shift", heads, width, backward)
        x = torch.empty(0)
        taken = [forms.choose(sizes | {"Nq": n, "Nk": n}, x, backward) for n in (int(found / 1.3), int(found * 1.3))]
        table.row(width, found, predicted, predicted / found, " -> ".join(taken))


def causal(heads: int, width: int, n: int) -> None:
    slow, fast = form_seconds(CAUSAL, n, heads, width, backward=False, repeats=3)
    print(f"causal linear attention as weights, {n} points: {slow * 1e3:.0f} ms, {fast * 1e3:.1f} ms: {slow / fast:.1f} times")


def lengthening(args: argparse.Namespace) -> None:
    """Time a token at every length, and where asked for the quadratic form beside it."""
    made = {name: {n: call(name, n, args.heads, args.width, args.backward) for n in args.lengths} for name in args.names}
    for memory in ("as given", "kept"):
        if memory == "kept":
            keep_memory()
        for threads in args.threads:
            torch.set_num_threads(threads)
            print(f"{threads} threads, memory {memory}: ns per token and head")
            table = harness.Table("spec:12", *(f"{n}:8.0f" for n in args.lengths), "longest / shortest:.2f", "most / least:.2f")
            for name, calls in made.items():
                found = medians(calls, args.rounds)
                each = [found[n] / n / args.heads * 1e9 for n in args.lengths]
                table.row(name, *each, each[-1] / each[0], max(each) / min(each))
    if args.quadratic:
        slow, fast = (
            medians({args.quadratic: call(x, args.quadratic, args.heads, args.width, args.backward)}, 3)[args.quadratic]
            for x in (QUADRATIC, "retention")
        )
        print(
            f"retention at {args.quadratic}: {slow * 1e3:.0f} ms in the quadratic form, {slow / fast:.1f} times that in blocks"
        )


def main() -> None:
    parser = harness.options(__doc__, rounds=5, width=64, heads=2)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384, 65536, 131072])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quadratic", type=int, default=0, help="the length at which the quadratic form runs too; 0: never")
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--crossover", action="store_true", help="where the linear form takes over, measured and predicted")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    args = harness.parsed(parser)
    if not args.crossover:
        lengthening(args)
        return
    causal(args.heads, args.width, 16384)
    for backward in (False, True):
        crossovers(args.widths, args.heads, backward)


if __name__ == "__main__":
    main()
