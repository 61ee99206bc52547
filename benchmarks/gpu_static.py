"""What GPU kernels are made of, read from their machine code: no GPU is needed, and nothing is timed.

    python benchmarks/gpu_static.py                                   # every case, widths 64 and 128, forward and backward, for sm_90
    python benchmarks/gpu_static.py causal "window 256" --widths 128 --loops
    python benchmarks/gpu_static.py causal --target sm_80 --json out.json

Each call (4 sequences, 16 heads, 4096 tokens, bf16) is recorded up to its launches; those very kernels, with what Triton would know of
their arguments, are compiled for the target. "predicted" is by the model in codegen/triton/issue_model.py: ratios between kernels of one
shape are worth something, levels less. Compiling takes about ten seconds a kernel; what is not changed is not compiled again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import harness

HEAD = "| case | width | kernel | tile | warps, stages | registers, spills | on an SM | instructions per score | waits | predicted |"


def main(argv: Sequence[str] | None = None) -> int:
    from gpu_cases import CASES

    args = arguments(argv, CASES)
    import einfuse
    from einfuse.runtime.static import KernelReport, static

    print(f"{HEAD}\n{'|---' * (HEAD.count('|') - 1)}|", flush=True)
    rows: list[dict[str, object]] = []
    for name in args.cases or CASES:
        case = CASES[name]
        attention = einfuse.compile(case.spec, **dict[str, Any](case.numbers))
        for width in args.widths:
            inference = static(attention, case.arguments(width), False, args.target)
            training: list[KernelReport] = []
            if args.backward and case.backward:
                training = static(attention, case.arguments(width), True, args.target)
            for kernel in (*inference, *training[len(inference) :]):
                print(line(name, width, kernel), flush=True)
                if args.loops:
                    print("\n".join(f"|  |  | {x}" for x in loops(kernel)), flush=True)
            flops = 4.0 * width * case.pairs() * 4 * 16
            parts = (("forward", inference, 1.0), ("backward", training[len(inference) :], 2.5))
            for what, kernels, factor in parts:
                if kernels and all(k.seconds is not None for k in kernels):
                    seconds = sum(k.seconds or 0.0 for k in kernels)
                    rate = factor * flops / seconds / 1e12
                    print(f"| {name} | {width} | **{what}** |  |  |  |  |  |  | {seconds * 1e6:.0f} us, {rate:.0f} TFLOP/s |")
            rows += [{"case": name, "width": width, **asdict(k)} for k in (*inference, *training)]
    harness.write(args.json, {"target": args.target, "rows": rows})
    return 0


def arguments(argv: Sequence[str] | None, known: Iterable[str]) -> argparse.Namespace:
    made = harness.options(__doc__, json=True)
    made.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(known)}; all unless given")
    made.add_argument("--widths", type=int, nargs="+", default=[64, 128], help="features of a head; %(default)s unless given")
    made.add_argument("--target", choices=("sm_80", "sm_90"), default="sm_90")
    made.add_argument("--forward", dest="backward", action="store_false", help="without the kernels of a training step")
    made.add_argument("--loops", action="store_true", help="the instructions of every loop by kind")
    args = harness.parsed(made, argv)
    unknown = [x for x in args.cases if x not in known]
    if unknown:
        made.error(f"no case {unknown[0]!r}; choose from {', '.join(known)}")
    return args


def line(case: str, width: int, k) -> str:  # type: ignore[no-untyped-def]  # a KernelReport, imported late
    per = " / ".join(f"{x.label} {x.per_score:.1f}" if x.label else f"{x.per_score:.1f}" for x in k.loops)
    waits = "serialised" if k.serialised else ""
    seconds = "" if k.seconds is None else f"{k.seconds * 1e6:.0f} us"
    spills = f", **{k.spills}**" if k.spills else ", 0"
    codes = " ".join(k.warnings)
    return (
        f"| {case} | {width} | {k.name} | {'x'.join(map(str, k.tiling))} | {k.warps}, {k.stages} | {k.registers}{spills} "
        f"| {k.resident} of {k.programs} | {per} | {waits} {codes} | {seconds} |"
    )


def loops(k) -> list[str]:  # type: ignore[no-untyped-def]  # a KernelReport, imported late
    out = []
    for x in k.loops:
        made = ", ".join(f"{kind} {n}" for kind, n in sorted(x.counts.items(), key=lambda c: -c[1]))
        trips = "" if x.trips is None else f", {x.trips:.1f} iterations a program"
        out.append(f"{x.label or 'loop'}: {made}; matrix {x.matrix:.0f}, {x.bound} {x.arithmetic:.0f} cycles{trips} |")
    return out


if __name__ == "__main__":
    sys.exit(main())
