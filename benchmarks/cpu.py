"""Times attention on this machine's CPU beside `scaled_dot_product_attention` and `flex_attention`, and beside the machine's own limit.

    python benchmarks/cpu.py [--variants full causal ...] [--dtypes float32 bfloat16] [--lengths 2048] [--widths 64] [--backward]

All calls of a variant run in turns in one process; figures are medians, ratios are medians of the ratios of a turn, and beside a ratio
stands the largest that this machine's peak would allow. Writes benchmarks/results/cpu.json after every row, and cpu.png. Stops within its
budget and names what it did not reach; the same command goes on there, for rows that the file has are kept (``--again`` measures anew). On
a machine that does other work as well, `--threads 1 --clock cpu` counts the processor's time instead of the wall clock's. Exit code 1 where
our result is not SDPA's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import harness
import torch
from cpu_cases import TRAINED, VARIANTS, Call, Case, Shape, flex_calls, made
from cpu_peak import peaks
from cpu_picture import draw

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
SLOW = 2.0  # seconds: a peer that takes longer runs once
WRONG = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # largest difference to SDPA that rounding explains


@dataclass(frozen=True, slots=True)
class Row:
    """One variant at one shape: milliseconds (median) and ratio to ours (median of turns, distance of its quartiles) by who answered.

    ``most`` is the ratio of a kernel at the machine's peak of multiply-adds, or of one as fast as a copy where a query looks at every key
    once. ``of``: what the case's yardsticks took in the same turns, over ours.
    """

    variant: str
    direction: str
    dtype: str
    heads: int
    length: int
    width: int
    milliseconds: dict[str, float]
    ratio: dict[str, float]
    spread: dict[str, float]
    most: dict[str, float]
    gflops: float
    of_peak: float
    gigabytes: float
    of: dict[str, float]
    difference: float | None
    load: float


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    start = time.monotonic()
    limits = peaks(args.threads, CLOCKS[args.clock])
    print(
        f"limits on {args.threads} threads: {limits['f32']:.0f} GFLOP/s f32, {limits['bf16']:.0f} bf16, copy {limits['copy']:.1f} GB/s"
    )
    path = args.out / f"{args.name}.json"
    rows = [] if args.again else measured(path, args)
    missed: list[str] = []
    table = harness.Table("variant:18", "dtype:8", "S:5d", "D:3d", "ms:8.2f", "of peak:.0%", "beside")
    for variant, shape in shapes(args):
        known = {r.direction for r in rows if of(r, variant, shape)}
        wanted = {"forward"} | ({"forward and backward"} if args.backward and variant in TRAINED else set())
        if wanted <= known:
            continue
        if time.monotonic() - start > args.budget:
            missed.append(f"{variant} {str(shape.dtype)[6:]} {shape.length}x{shape.width}")
            continue
        case = made(variant, shape)
        if "forward" not in known:
            rows.append(forward(variant, case, shape, args, limits))
            show(table, rows[-1])
        if "forward and backward" in wanted - known:
            rows.append(backward(variant, case, shape, args, limits))
            show(table, rows[-1])
        write(path, rows, missed, limits, args)
    write(path, rows, missed, limits, args)
    draw(rows, limits, args.out / f"{args.name}.png")
    print(f"{time.monotonic() - start:.0f} s; written to {args.out / args.name}.json and .png")
    if missed:
        print("not reached:", "; ".join(missed))
    wrong = [r for r in rows if r.difference is not None and not r.difference <= WRONG[getattr(torch, r.dtype)]]
    for r in wrong:
        print(f"WRONG: {r.variant} {r.dtype} differs from SDPA by {r.difference:.1e}")
    return 1 if wrong else 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    made = harness.options(__doc__, threads=torch.get_num_threads(), heads=8)
    made.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    made.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    made.add_argument("--lengths", nargs="+", type=int, default=[2048], metavar="S")
    made.add_argument("--widths", nargs="+", type=int, default=[64], metavar="D")
    made.add_argument("--runs", "--repeats", type=int, default=5, help="turns; %(default)s unless given")
    made.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for one thread")
    made.add_argument(
        "--peers", nargs="*", default=["sdpa", "flex compiled", "flex eager"], choices=("sdpa", "flex compiled", "flex eager")
    )
    made.add_argument("--backward", action="store_true", help="forward and backward together too, where SDPA has the variant")
    made.add_argument("--budget", type=float, default=330.0, help="seconds after which no further variant starts")
    made.add_argument("--again", action="store_true", help="measure rows that the file has already")
    made.add_argument("--out", type=Path, default=harness.RESULTS)
    made.add_argument("--name", default="cpu", help="of the files")
    args = harness.parsed(made, argv)
    if args.clock == "cpu" and args.threads != 1:
        made.error("--clock cpu counts the time of all threads, waiting ones too: it needs --threads 1")
    return args


def of(row: Row, variant: str, shape: Shape) -> bool:
    """Whether a row is of this variant and shape."""
    return (row.variant, row.dtype, row.heads, row.length, row.width) == (
        variant,
        str(shape.dtype)[6:],
        shape.heads,
        shape.length,
        shape.width,
    )


def measured(path: Path, args: argparse.Namespace) -> list[Row]:
    """The rows of an earlier run on as many threads of the same processor; none where there is no such file."""
    if not path.exists():
        return []
    held = json.loads(path.read_text())
    same = (held["processor"], held["threads"], held["clock"]) == (harness.processor(), args.threads, args.clock)
    if not same or any(r.keys() != {f.name for f in fields(Row)} for r in held["rows"]):
        return []
    return [Row(**r) for r in held["rows"]]


def write(path: Path, rows: list[Row], missed: list[str], limits: dict[str, float], args: argparse.Namespace) -> None:
    """The results so far."""
    found = {"rows": [asdict(r) for r in rows], "not_reached": missed}
    harness.write(path, {"clock": args.clock, "limits": limits, **found})


def shapes(args: argparse.Namespace) -> Iterator[tuple[str, Shape]]:
    for dtype in args.dtypes:
        for length in args.lengths:
            for width in args.widths:
                for variant in args.variants:
                    yield variant, Shape(args.heads, length, width, getattr(torch, dtype))


def turns(
    calls: dict[str, Call], args: argparse.Namespace, between: Callable[[], object] | None = None
) -> dict[str, list[float]]:
    """Seconds of every call, ``between`` before each; a slow one runs once."""
    before = (lambda _: between()) if between else (lambda _: None)
    return harness.turns(calls, args.runs, 2, partial(harness.clocked, clock=CLOCKS[args.clock]), before, SLOW)


def forward(variant: str, case: Case, shape: Shape, args: argparse.Namespace, limits: dict[str, float]) -> Row:
    """Without gradients."""
    calls = {n: c for n, c in case.calls.items() if n == "einfuse" or n in args.peers}
    if any(n.startswith("flex") for n in args.peers):
        torch.compiler.reset()  # every variant compiles once: no limit on recompilations is met
        calls |= {n: c for n, c in flex_calls(case).items() if n in args.peers}
    with torch.no_grad():
        took = turns(calls | case.yardsticks, args, case.between)
        difference = (calls["einfuse"]() - calls["sdpa"]()).abs().max().item() if "sdpa" in calls else None
    return row(variant, "forward", case, shape, took, 4 * case.pairs, limits, difference)


def backward(variant: str, case: Case, shape: Shape, args: argparse.Namespace, limits: dict[str, float]) -> Row:
    """Forward and backward together."""
    held = [x.detach().requires_grad_() for x in case.inputs]
    upstream = torch.randn_like(held[0])
    calls: dict[str, Call] = {
        n: lambda f=f: torch.autograd.grad(f(*held), held, upstream)[0]  # type: ignore[misc]
        for n, f in case.trained.items()
        if n == "einfuse" or n in args.peers
    }
    took = turns(calls, args)
    return row(variant, "forward and backward", case, shape, took, 14 * case.pairs, limits, None)


def row(
    variant: str, direction: str, case: Case, shape: Shape, took: dict[str, list[float]], work: float, limits: dict[str, float],
    difference: float | None,
) -> Row:  # fmt: skip
    ours = took["einfuse"]
    turned = {n: [a / b for a, b in zip(t, ours, strict=True)] for n, t in took.items() if n != "einfuse"}
    ratios = {n: r for n, r in turned.items() if n not in case.yardsticks}
    of = {n: statistics.median(turned[n]) for n in case.yardsticks}
    median = statistics.median(ours)
    rate = work * shape.heads * shape.width / median / 1e9
    traffic = sum(x.numel() * x.element_size() for x in case.inputs) / median / 1e9
    peak = limits["bf16" if shape.dtype == torch.bfloat16 else "f32"]
    share = of.get("copy", rate / peak)
    return Row(
        variant, direction, str(shape.dtype)[6:], shape.heads, shape.length, shape.width,
        {n: statistics.median(t) * 1e3 for n, t in took.items() if n not in case.yardsticks},
        {n: statistics.median(r) for n, r in ratios.items()},
        {n: harness.spread(r).width for n, r in ratios.items()},
        {n: statistics.median(r) / share for n, r in ratios.items()},
        rate, rate / peak, traffic, of, difference, os.getloadavg()[0],
    )  # fmt: skip


def show(table: harness.Table, r: Row) -> None:
    peers = [f"{n} {r.ratio[n]:.2f} (+-{r.spread[n]:.2f}, at most {r.most[n]:.2f})" for n in r.ratio] or ["no peer"]
    label = f"{r.variant}{' +backward' if 'back' in r.direction else ''}"
    yards = [f"{1 / x:.2f} x {n}" for n, x in r.of.items()]
    table.row(label, r.dtype, r.length, r.width, r.milliseconds["einfuse"], r.of_peak, "  ".join(yards + peers))


if __name__ == "__main__":
    sys.exit(main())
