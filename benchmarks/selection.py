"""Attention in chosen blocks beside causal attention over all keys: processor time of calls in turns, choice included.

    python benchmarks/selection.py [--lengths N ..] [--group G ..] [--dtype float32 bfloat16] [--backward] [--repeats K] [--threads T]
    python benchmarks/selection.py --routed [--heads 16] [--best 2]      `mixture_of_heads` beside `full`, which computes all heads

The spec is `moba`: every query and head takes the best of the blocks by their mean keys. Inputs are random, so that neighbouring queries choose
apart: what lists do worst. "tables" is the same choice with a mask in place of lists. Times are medians, in ms, "choice" is a part of "lists".
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # einfuse need not be installed

import torch

import einfuse
from einfuse.runtime.selection import Selection


def clocked(run: Callable[[], object]) -> float:
    """Milliseconds of processor time."""
    begin = time.process_time()
    run()
    return 1e3 * (time.process_time() - begin)


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
    return medians(ways, args.repeats)


def routed(args: argparse.Namespace, length: int, dtype: torch.dtype) -> dict[str, float]:
    """The medians of all heads, and of the best of them; keys and values of every head."""
    known = {n: torch.randn(1, args.heads, length, args.width, dtype=dtype) for n in ("q", "k", "v")}
    known["gate"] = torch.randn(1, args.heads, length, dtype=dtype)
    for x in known.values():
        x.requires_grad_(args.backward)
    mixture, full = einfuse.compile("mixture_of_heads", best=args.best), einfuse.compile("full")
    three = {n: known[n] for n in ("q", "k", "v")}
    ways = {"all": lambda: run(full, three, args.backward), "routed": lambda: run(mixture, known, args.backward)}
    return medians(ways, args.repeats)


def run(attention: einfuse.Attention, given: dict[str, torch.Tensor], backward: bool) -> None:
    out = attention(**given)
    assert isinstance(out, torch.Tensor), "one output"
    if backward:
        wanted = [x for x in given.values() if x.requires_grad]
        torch.autograd.grad(out, wanted, torch.ones_like(out))


def medians(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Milliseconds of every way, in turns."""
    for way in ways.values():
        way()
    found: dict[str, list[float]] = {n: [] for n in ways}
    for _ in range(repeats):
        for n, way in ways.items():
            found[n].append(clocked(way))
    return {n: statistics.median(x) for n, x in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--group", type=int, nargs="+", default=[4])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--routed", action="store_true", help="heads that rows choose, in place of blocks")
    parser.add_argument("--heads", type=int)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--best", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backward", action="store_true", help="forward and backward")
    parser.add_argument("--tables", action="store_true", help="also the masked kernels")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.heads, args.best = args.heads or (16 if args.routed else 4), args.best or (2 if args.routed else 16)
    if args.routed:
        print(f"{'dtype':9} {'length':>7} {'all':>9} {'routed':>9}   routed / all")
        for name in args.dtype:
            for length in args.lengths:
                ms = routed(args, length, getattr(torch, name))
                print(f"{name:9} {length:7} {ms['all']:9.0f} {ms['routed']:9.0f}   {ms['routed'] / ms['all']:.2f}", flush=True)
        return
    print(f"{'dtype':9} {'group':>5} {'length':>7} {'causal':>9} {'lists':>9} {'choice':>9}   lists / causal")
    for name in args.dtype:
        for group in args.group:
            for length in args.lengths:
                ms = measured(args, length, group, getattr(torch, name))
                beside = f"   tables {ms['tables']:.0f}" if args.tables else ""
                print(
                    f"{name:9} {group:5} {length:7} {ms['causal']:9.0f} {ms['lists']:9.0f} {ms['choice']:9.0f}   "
                    f"{ms['lists'] / ms['causal']:.2f}{beside}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
