"""Commands that run kernels: verify, bench."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import einfuse
from einfuse._cli import inputs, screen
from einfuse.codegen.targets import Target
from einfuse.ir import EinfuseError
from einfuse.runtime.backends import interpret_triton
from einfuse.runtime.bench import BenchRow, BenchShape
from einfuse.runtime.cross import USUAL
from einfuse.runtime.verify import DTYPES, Row


def verify(args: argparse.Namespace) -> int:
    interpret_triton()
    attentions = inputs.attentions(args.specs, args)
    backends = tuple(args.backend or ("cpu", "triton"))
    dtypes = tuple(args.dtype or ("float32", "bfloat16"))
    targets = tuple(dict.fromkeys((*(USUAL if args.cross else ()), *(args.target or ()))))
    rows: list[Row] = []
    refused: dict[str, str] = {}
    steps = len(attentions) * (len(backends) * len(dtypes) + (len(dtypes) if targets else 0))
    with screen.working(steps) as step:
        for attention in attentions:
            gradients = not args.forward_only
            try:
                found = einfuse.verify(
                    attention, backends=backends, dtypes=dtypes, gradients=gradients, seed=args.seed, progress=step
                )
            except EinfuseError as error:
                if len(attentions) == 1:
                    raise
                refused[attention.name] = str(error)
                continue
            rows += found.rows
            for dtype in dtypes if targets else ():
                step(f"{attention.name} compiled for {', '.join(targets)}, {dtype}")
                rows += _crossed(attention, targets, dtype, gradients)
    ok = all(r.ok for r in rows) and not refused
    if args.json:
        screen.report({"ok": ok, "rows": [asdict(r) for r in rows], "refused": {**refused}})
    else:
        show_rows(rows)
        if len(attentions) > 1:
            show_counts(rows, refused)
    return 0 if ok else 1


def _crossed(attention: einfuse.Attention, targets: Sequence[Target], dtype: str, backward: bool) -> list[Row]:
    """A row a kernel and target: the error is the number of spills."""
    kernels = einfuse.cross_compile(attention, targets, DTYPES[dtype], backward)
    return [
        Row(attention.name, f"triton {k.target}", k.dtype, f"{k.name} {k.matrix}".strip(), float(k.spills), 0.0, k.ok)
        for k in kernels
    ]


def show_rows(rows: Sequence[Row]) -> None:
    """A line a spec, back end and dtype while all is well; every comparison of those where something is not."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for r in rows:
        groups.setdefault((r.name, r.backend, r.dtype), []).append(r)
    shown = screen.table("spec", "back end", "dtype", "compared", ">error", ">allowed", "")
    for key, group in groups.items():
        if all(r.ok for r in group):
            worst = max(group, key=lambda r: r.error / r.allowed if r.allowed else 0.0)
            named = ", ".join(dict.fromkeys(r.what for r in group))
            shown.add_row(*key, named, f"{worst.error:.2g}", f"{worst.allowed:.2g}", screen.verdict(True))
            continue
        for r in group:
            shown.add_row(*key, r.what, f"{r.error:.2g}", f"{r.allowed:.2g}", screen.verdict(r.ok))
    wrong = sum(not r.ok for r in rows)
    console = screen.out()
    console.print(shown)
    console.print(f"{len(rows)} comparisons, {wrong} wrong" if wrong else f"{len(rows)} comparisons, all good")
    if any(r.error != r.error for r in rows):
        console.print(
            "nan: the oracle has no number there, so nothing was compared; no example inputs were found for which it has"
        )


def show_counts(rows: Sequence[Row], refused: Mapping[str, str]) -> None:
    """Of how many specs the values are right, and the gradients; which are refused, and why."""
    values, gradients = ([r for r in rows if r.what.startswith("d ") is which] for which in (False, True))
    right = [len({r.name for r in some} - {r.name for r in some if not r.ok}) for some in (values, gradients)]
    console = screen.out()
    console.print(f"right: the values of {right[0]} specs, the gradients of {right[1]}")
    for name, why in refused.items():
        console.print(f"{name} is refused: {why}", soft_wrap=True)


def bench(args: argparse.Namespace) -> int:
    attentions = inputs.attentions(args.specs, args)
    dtypes = tuple(args.dtype or ("float32",))
    shape = BenchShape(args.batch, args.heads, args.length, args.width)
    with screen.working(len(attentions) * len(dtypes)) as step:
        rows = einfuse.bench(
            attentions, dtypes=dtypes, shapes=(shape,), backward=args.backward, repeats=args.repeats, progress=step
        )
    if args.json:
        screen.report({"rows": [asdict(r) for r in rows]})
    else:
        show_bench(rows)
    return 0


def show_bench(rows: Sequence[BenchRow]) -> None:
    shown = screen.table("variant", "dtype", "shape", "beside", ">ratio", ">spread", ">live tiles", ">per tile")
    for r in rows:
        tiles = f"{100 * r.live:.3g} %", "" if r.per_tile is None else f"{r.per_tile:.2f}"
        shown.add_row(r.variant, r.dtype, r.shape, r.peer, f"{r.ratio:.2f}", f"{r.spread:.2f}", *tiles)
    console = screen.out()
    console.print(shown)
    console.print(
        "ratio: the other's time / ours, median of interleaved runs (above 1: ours is faster); spread: quartiles apart"
    )
    console.print(
        "per tile: time for a live tile / that of the same attention without its mask for a tile (1: work follows the mask)"
    )
