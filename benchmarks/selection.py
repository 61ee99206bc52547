"""Attention in chosen blocks beside causal attention over all keys: processor time of calls in turns, choice included.

    python benchmarks/selection.py [--lengths N ..] [--group G ..] [--dtype float32 bfloat16] [--backward] [--repeats K] [--threads T]

The spec is `moba`: every query and head takes the best of the blocks by their mean keys. Inputs are random, so that neighbouring queries choose
apart: what lists do worst. "tables" is the same choice with a mask in place of lists. Times are medians, in ms, "choice" is a part of "lists".
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # einfuse need not be installed

import torch

import einfuse
from einfuse.runtime.selection import Selection
from einfuse.runtime.through import ListedProgram


def clocked(run: Callable[[], object]) -> float:
    """Milliseconds of processor time."""
    begin = time.process_time()
    run()
    return 1e3 * (time.process_time() - begin)


def chosen(selection: Selection, known: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The arguments of the reader that goes through lists."""
    reader, mine = selection.reader({**known})
    assert isinstance(reader.program, ListedProgram), "the lists are worth it"
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

    def run(attention: einfuse.Attention, given: dict[str, torch.Tensor]) -> None:
        out = attention(**given)
        assert isinstance(out, torch.Tensor), "one output"
        if args.backward:
            torch.autograd.grad(out, list(known.values()), torch.ones_like(out))

    ways = {
        "causal": lambda: run(causal, known),
        "lists": lambda: run(moba, known),
        "choice": lambda: chosen(moba.selection, known),  # type: ignore[arg-type]  # seen above
    }
    if args.tables:
        ways["tables"] = lambda: run(rest, mine)  # type: ignore[arg-type]  # tensors alone
    for way in ways.values():
        way()
    found: dict[str, list[float]] = {n: [] for n in ways}
    for _ in range(args.repeats):
        for n, way in ways.items():
            found[n].append(clocked(way))
    return {n: statistics.median(x) for n, x in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--group", type=int, nargs="+", default=[4])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--best", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backward", action="store_true", help="forward and backward")
    parser.add_argument("--tables", action="store_true", help="also the masked kernels")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
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
