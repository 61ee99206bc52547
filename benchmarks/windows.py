"""Masks over an image walked by lists and by tiles, and windows that were cut out before: pairs visited and times, in one run.

    python benchmarks/windows.py [--side N] [--batch B] [--heads H] [--width D] [--repeats K] [--threads T]

Times are the least of calls in turns, forward and forward with backward. "visited" is what a forward computes of all pairs of an image.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import harness
import torch

import einfuse
from einfuse.runtime.live import live_share


@dataclass(frozen=True, slots=True)
class Case:
    """One way to compute a pattern, its arguments, and the share of an image's pairs that it visits."""

    name: str
    attention: einfuse.Attention
    tensors: Mapping[str, torch.Tensor]
    visited: float

    def forward(self) -> None:
        with torch.no_grad():
            self.attention(**self.tensors)

    def both(self) -> None:
        out = self.attention(**self.tensors)
        assert isinstance(out, torch.Tensor), "one output"
        torch.autograd.grad(out, [self.tensors[n] for n in "qkv"], torch.ones_like(out))


def cases(args: argparse.Namespace, spec: str, **params: Any) -> list[Case]:
    """A mask over whole images, by lists and by tiles."""
    n = args.side**2
    image = {x: torch.randn(args.batch, args.heads, n, args.width, requires_grad=True) for x in "qkv"}
    lists = einfuse.compile(spec, columns=args.side, **params)
    tiles = einfuse.compile(spec, columns=args.side, strict=True, **params)  # strict: a program of its own
    tiles.program.walks.fewest = sys.maxsize
    return [Case(name, a, image, live_share(a, image)) for name, a in (("mask, lists", lists), ("mask, tiles", tiles))]


def windows(args: argparse.Namespace, shift: int, side: int = 7) -> Case:
    """The same windows as a rank, one batch element each, with the table of offsets that they have."""
    across = args.side // side
    cut = {x: torch.randn(args.batch, across**2, args.heads, side**2, args.width, requires_grad=True) for x in "qkv"}
    attention = einfuse.compile("swin_window", side=side, down=across, across=across, shift=max(shift, 1), shifted=shift > 0)
    table = torch.randn(args.heads, 2 * side - 1, 2 * side - 1)
    return Case("windows cut out", attention, {**cut, "table": table}, 1 / across**2)


def main(argv: list[str] | None = None) -> int:
    made = harness.options(__doc__, repeats=15, threads=1, json=True, side=56, batch=2, heads=3, width=32)
    args = harness.parsed(made, argv)
    print(
        f"{args.side} x {args.side} tokens, batch {args.batch}, {args.heads} heads of width {args.width}, {args.threads} thread(s)"
    )
    rows = {f"7 x 7, shift {s}": [windows(args, s), *cases(args, "swin", shift=s)] for s in (0, 3)}
    rows["neighbourhood 7 x 7"] = cases(args, "neighbourhood_2d")
    table = harness.Table("pattern:20", "by:16", "M visited:.3f", "ms:7.2f", "with backward, ms:7.2f")
    clock = partial(harness.clocked, clock=time.perf_counter)
    for title, found in rows.items():
        forward = harness.turns({c.name: c.forward for c in found}, args.repeats, 2, clock)
        both = harness.turns({c.name: c.both for c in found}, args.repeats, 2, clock)
        for c in found:
            table.row(title, c.name, c.visited * args.side**4 / 1e6, 1e3 * min(forward[c.name]), 1e3 * min(both[c.name]))
    harness.write(args.json, {"rows": table.rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
