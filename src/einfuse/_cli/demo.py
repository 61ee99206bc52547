"""The main job on one spec: text, cascade, fused cascade, proof against the oracle, time beside torch."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import einfuse
from einfuse._cli import inputs, screen
from einfuse._cli.measure import show_bench, show_rows
from einfuse.runtime.backends import interpret_triton
from einfuse.runtime.bench import BenchShape


def demo(args: argparse.Namespace) -> int:
    interpret_triton()
    attention = inputs.attention(args.spec, args)
    if Path(args.spec).is_file():
        _heading(f"The spec, {args.spec}")
        print(Path(args.spec).read_text(encoding="utf-8").strip())
    _heading("As a cascade")
    print(attention.ir(after="infer_space").strip())
    _heading("Fused")
    print(attention.ir(after="online_fuse").strip())
    for report in attention.passes():
        screen.out().print(f"\n{attention.name} over {report.rank}: {report.counted}")
        for d in report.decisions:
            screen.out().print(f"  {d.reader} reads {d.statistic}: {d.how} {d.detail} ({d.proof})")
    _heading("Kernels")
    for backend in ("triton", "cpu"):
        text = attention.source(backend, torch.float32, backward=True)
        screen.out().print(
            f"  {backend}: {len(text.splitlines())} lines, forward and backward (`einfuse emit --backend {backend}`)"
        )
    _heading("Beside the oracle in float64: values and every gradient")
    with screen.working(4) as step:
        found = einfuse.verify(attention, backends=("cpu", "triton"), dtypes=("float32", "bfloat16"), progress=step)
    show_rows(found.rows)
    _heading("Beside torch on this machine")
    shape = BenchShape(length=args.length)
    with screen.working(2) as step:
        rows = [r for way in (False, True) for r in einfuse.bench([attention], shapes=(shape,), backward=way, progress=step)]
    show_bench(rows)
    return 0 if found.ok else 1


def _heading(text: str) -> None:
    screen.out().print(f"\n== {text}\n", style="bold")
