"""Attention in chosen blocks beside causal attention over all keys: processor time of calls in turns, choice included.

    python benchmarks/selection.py [--lengths N ..] [--group G ..] [--dtype float32 bfloat16] [--backward] [--repeats K] [--threads T]
    python benchmarks/selection.py --routed [--heads 16] [--best 2]      `mixture_of_heads` beside `full`, which computes all heads

The spec is `moba`: every query and head takes the best of the blocks by their mean keys. Inputs are random, so that neighbouring queries choose
apart: what lists do worst. "tables" is the same choice with a mask in place of lists. Times are medians, in ms, "choice" is a part of "lists".
"""

from __future__ import annotations

import argparse

import harness
import torch

import einfuse
from einfuse.runtime.selection import Selection


def chosen(selection: Selection, known: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The arguments of the reader that goes through lists."""
    reader, mine = selection.reader({**known})
    assert reader is selection.listed, "the lists are worth it"
    return mine  # type: ignore[return-value]  # the spec takes no numbers


def measured(args: argparse.Namespace, length: int, group: int, dtype: torch.dtype) -> dict[str, float]:
    """The medians of every way."""
    heads = args.heads
    shapes = {"q": heads, "k": heads // group, "v": heads // group}
    known = {n: torch.randn(1, h, length, args.width, dtype=dtype).requires_grad_(args.backward) for n, h in shapes.items()}
    moba = einfuse.compile("moba", block=args.block, best=args.best)
    causal = einfuse.compile("causal")
    assert moba.selection is not None, "it chooses"
    rest, mine = moba.selection.rest, moba.selection.read_by_the_rest({**known})

    ways = {
        "causal": lambda: run(causal, known, args.backward),
        "lists": lambda: run(moba, known, args.backward),
        "choice": lambda: chosen(moba.selection, known),  # type: ignore[arg-type]  # seen above
    }
    if args.tables:
        ways["tables"] = lambda: run(rest, {n: x for n, x in mine.items() if isinstance(x, torch.Tensor)}, args.backward)
    return harness.medians(ways, args.repeats)


def routed(args: argparse.Namespace, length: int, dtype: torch.dtype) -> dict[str, float]:
    """The medians of all heads, and of the best of them; keys and values of every head."""
    known = {n: torch.randn(1, args.heads, length, args.width, dtype=dtype) for n in ("q", "k", "v")}
    known["gate"] = torch.randn(1, args.heads, length, dtype=dtype)
    for x in known.values():
        x.requires_grad_(args.backward)
    mixture, full = einfuse.compile("mixture_of_heads", best=args.best), einfuse.compile("full")
    three = {n: known[n] for n in ("q", "k", "v")}
    ways = {"all": lambda: run(full, three, args.backward), "routed": lambda: run(mixture, known, args.backward)}
    return harness.medians(ways, args.repeats)


def run(attention: einfuse.Attention, given: dict[str, torch.Tensor], backward: bool) -> None:
    out = attention(**given)
    assert isinstance(out, torch.Tensor), "one output"
    if backward:
        wanted = [x for x in given.values() if x.requires_grad]
        torch.autograd.grad(out, wanted, torch.ones_like(out))


def main() -> None:
    parser = harness.options(__doc__, repeats=5, threads=1, json=True, width=64, block=64)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--group", type=int, nargs="+", default=[4])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--routed", action="store_true", help="heads that rows choose, in place of blocks")
    parser.add_argument("--heads", type=int)
    parser.add_argument("--best", type=int)
    parser.add_argument("--backward", action="store_true", help="forward and backward")
    parser.add_argument("--tables", action="store_true", help="also the masked kernels")
    args = harness.parsed(parser)
    args.heads, args.best = args.heads or (16 if args.routed else 4), args.best or (2 if args.routed else 16)
    if args.routed:
        table = harness.Table("dtype:9", "length:7d", "all:9.0f", "routed:9.0f", "routed / all:.2f")
        for name in args.dtype:
            for length in args.lengths:
                ms = routed(args, length, getattr(torch, name))
                table.row(name, length, ms["all"], ms["routed"], ms["routed"] / ms["all"])
        harness.write(args.json, {"rows": table.rows})
        return
    figures = (f"{n}:9.0f" for n in ("causal", "lists", "choice", "tables"))
    table = harness.Table("dtype:9", "group:d", "length:7d", *figures, "lists / causal:.2f")
    for name in args.dtype:
        for group in args.group:
            for length in args.lengths:
                ms = measured(args, length, group, getattr(torch, name))
                ways = (ms.get(n) for n in ("causal", "lists", "choice", "tables"))
                table.row(name, group, length, *ways, ms["lists"] / ms["causal"])
    harness.write(args.json, {"rows": table.rows})


if __name__ == "__main__":
    main()
