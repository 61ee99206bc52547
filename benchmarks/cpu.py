"""Times attention on this machine's CPU beside `scaled_dot_product_attention` and `flex_attention`, and beside the machine's own limit.

    python benchmarks/cpu.py [--variants full causal ...] [--dtypes float32 bfloat16] [--lengths 2048] [--widths 64] [--backward]

All calls of a variant run in turns in one process; figures are medians, ratios are medians of the ratios of a turn. Writes
benchmarks/results/cpu.json and cpu.png. Stops within its budget and names what it did not reach. On a machine that does other work as
well, `--threads 1 --clock cpu` counts the processor's time instead of the wall clock's. Exit code 1 where our result is not SDPA's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).parent)]

import torch  # noqa: E402
from cpu_cases import VARIANTS, Call, Case, Shape, flex_calls, made  # noqa: E402
from cpu_peak import peaks  # noqa: E402

import einfuse  # noqa: E402
from einfuse.codegen.cpu.build import processor  # noqa: E402

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
SLOW = 2.0  # seconds: a peer that takes longer runs once
WRONG = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # largest difference to SDPA that rounding explains


@dataclass(frozen=True, slots=True)
class Row:
    """One variant at one shape: milliseconds (median) and ratio to ours (median of turns, distance of its quartiles) by who answered."""

    variant: str
    direction: str
    dtype: str
    heads: int
    length: int
    width: int
    milliseconds: dict[str, float]
    ratio: dict[str, float]
    spread: dict[str, float]
    gflops: float
    of_peak: float
    gigabytes: float
    of_copy: float
    difference: float | None
    load: float


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    start = time.monotonic()
    limits = peaks(args.threads, CLOCKS[args.clock])
    print(
        f"limits on {args.threads} threads: {limits['f32']:.0f} GFLOP/s f32, {limits['bf16']:.0f} bf16, copy {limits['copy']:.1f} GB/s"
    )
    rows: list[Row] = []
    missed: list[str] = []
    for variant, shape in shapes(args):
        if time.monotonic() - start > args.budget:
            missed.append(f"{variant} {shape.dtype} {shape.length}x{shape.width}")
            continue
        case = made(variant, shape)
        rows.append(forward(variant, case, shape, args, limits))
        show(rows[-1])
        if args.backward and case.trained:
            rows.append(backward(variant, case, shape, args, limits))
            show(rows[-1])
    result = {
        "processor": processor_name(),
        "threads": args.threads,
        "clock": args.clock,
        "torch": torch.__version__,
        "einfuse": einfuse.__version__,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "limits": limits,
        "rows": [asdict(r) for r in rows],
        "not_reached": missed,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{args.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(rows, limits, args.out / f"{args.name}.png")
    print(f"{time.monotonic() - start:.0f} s; written to {args.out / args.name}.json and .png")
    if missed:
        print("not reached:", "; ".join(missed))
    wrong = [r for r in rows if r.difference is not None and not r.difference <= WRONG[getattr(torch, r.dtype)]]
    for r in wrong:
        print(f"WRONG: {r.variant} {r.dtype} differs from SDPA by {r.difference:.1e}")
    return 1 if wrong else 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME", help="all unless given"
    )
    made.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    made.add_argument("--lengths", nargs="+", type=int, default=[2048], metavar="S")
    made.add_argument("--widths", nargs="+", type=int, default=[64], metavar="D")
    made.add_argument("--heads", type=int, default=8)
    made.add_argument("--runs", type=int, default=5, help="turns; %(default)s unless given")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    made.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for one thread")
    made.add_argument(
        "--peers", nargs="*", default=["sdpa", "flex compiled", "flex eager"], choices=("sdpa", "flex compiled", "flex eager")
    )
    made.add_argument("--backward", action="store_true", help="forward and backward together too, where SDPA has the variant")
    made.add_argument("--budget", type=float, default=330.0, help="seconds after which no further variant starts")
    made.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    made.add_argument("--name", default="cpu", help="of the files")
    args = made.parse_args(argv)
    if args.clock == "cpu" and args.threads != 1:
        made.error("--clock cpu counts the time of all threads, waiting ones too: it needs --threads 1")
    return args


def shapes(args: argparse.Namespace) -> Iterator[tuple[str, Shape]]:
    for dtype in args.dtypes:
        for length in args.lengths:
            for width in args.widths:
                for variant in args.variants:
                    yield variant, Shape(args.heads, length, width, getattr(torch, dtype))


def turns(calls: dict[str, Call], runs: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every call, in turns after a warm-up; a slow one runs once."""
    took: dict[str, list[float]] = {}
    slow = set()
    for name, call in calls.items():
        call()
        begin = clock()
        call()
        if clock() - begin > SLOW:
            slow.add(name)
            took[name] = [clock() - begin]
    for _ in range(runs):
        for name, call in calls.items():
            if name not in slow:
                begin = clock()
                call()
                took.setdefault(name, []).append(clock() - begin)
    return {n: took[n] * (runs if n in slow else 1) for n in calls}


def forward(variant: str, case: Case, shape: Shape, args: argparse.Namespace, limits: dict[str, float]) -> Row:
    """Without gradients."""
    calls = {n: c for n, c in case.calls.items() if n == "einfuse" or n in args.peers}
    if any(n.startswith("flex") for n in args.peers):
        torch.compiler.reset()  # every variant compiles once: no limit on recompilations is met
        calls |= {n: c for n, c in flex_calls(case).items() if n in args.peers}
    with torch.no_grad():
        took = turns(calls, args.runs, CLOCKS[args.clock])
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
    took = turns(calls, args.runs, CLOCKS[args.clock])
    return row(variant, "forward and backward", case, shape, took, 14 * case.pairs, limits, None)


def row(
    variant: str, direction: str, case: Case, shape: Shape, took: dict[str, list[float]], work: float, limits: dict[str, float],
    difference: float | None,
) -> Row:  # fmt: skip
    ours = took["einfuse"]
    ratios = {n: [a / b for a, b in zip(t, ours, strict=True)] for n, t in took.items() if n != "einfuse"}
    median = statistics.median(ours)
    rate = work * shape.heads * shape.width / median / 1e9
    traffic = sum(x.numel() * x.element_size() for x in case.inputs) / median / 1e9
    peak = limits["bf16" if shape.dtype == torch.bfloat16 else "f32"]
    return Row(
        variant, direction, str(shape.dtype)[6:], shape.heads, shape.length, shape.width,
        {n: statistics.median(t) * 1e3 for n, t in took.items()},
        {n: statistics.median(r) for n, r in ratios.items()},
        {n: quartiles(r) for n, r in ratios.items()},
        rate, rate / peak, traffic, traffic / limits["copy"], difference, os.getloadavg()[0],
    )  # fmt: skip


def quartiles(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return high - low


def show(r: Row) -> None:
    peers = "  ".join(f"{n} {r.ratio[n]:.2f} (+-{r.spread[n]:.2f})" for n in r.ratio) or "no peer"
    share = f"{r.of_copy:4.0%} of a copy" if r.variant == "decode" else f"{r.of_peak:4.0%} of peak"
    label = f"{r.variant}{' +backward' if 'back' in r.direction else ''}"
    print(
        f"{label:<18} {r.dtype:<8} S{r.length:<5} D{r.width:<3} {r.milliseconds['einfuse']:8.2f} ms  {share}   {peers}",
        flush=True,
    )


def processor_name() -> str:
    return next(
        (x.split(":")[1].strip() for x in processor().splitlines() if x.startswith("model name")), processor().split("\n")[0]
    )


def draw(rows: list[Row], limits: dict[str, float], path: Path) -> None:
    """How many times faster than each peer, by variant; one panel a dtype."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    dtypes = list(dict.fromkeys(r.dtype for r in rows))
    figure, panels = plt.subplots(len(dtypes), 1, figsize=(9, 3.2 * max(1, len(dtypes))), squeeze=False)
    for (panel,), dtype in zip(panels, dtypes, strict=True):
        mine = [r for r in rows if r.dtype == dtype]
        peers = list(dict.fromkeys(n for r in mine for n in r.ratio))
        for k, peer in enumerate(peers):
            at = [n + 0.8 * (k - (len(peers) - 1) / 2) / max(1, len(peers)) for n in range(len(mine))]
            panel.bar(at, [r.ratio.get(peer, 0.0) for r in mine], 0.8 / max(1, len(peers)), label=peer)
        panel.axhline(1.0, color="black", linewidth=0.8)
        panel.set_yscale("log")
        labels = [
            f"{r.variant}{chr(10) + 'fwd+bwd' if 'back' in r.direction else ''}\n{r.length}x{r.width}\n{r.of_peak:.0%}"
            for r in mine
        ]
        panel.set_xticks(range(len(mine)), labels, fontsize=7)
        panel.set_ylabel("times faster than")
        panel.set_title(
            f"{dtype}: peak {limits['bf16' if dtype == 'bfloat16' else 'f32']:.0f} GFLOP/s, share of it below each name",
            fontsize=9,
        )
        if peers:
            panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
