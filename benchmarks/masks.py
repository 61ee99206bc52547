"""What it takes to know a mask: einfuse's analysis beside torch's create_block_mask, in one run, each case in a process of its own.

    python benchmarks/masks.py [--length N] [--long N] [--run N] [--repeats K]

Times are the least of K (torch's of one run: it takes seconds), memory is what the peak of the process grew by. Both make masks of 128 x 128
blocks. "analysis" is what a call of einfuse does (trace, and the table of tiles where there is no closed form); "blocks" asks the mask
for its exact lists as well, as torch's has them. --long goes through every mask of the library: the tiles of a CPU kernel and, where
there is no closed form, the lists that it reads. --run calls kernels, forward and backward. A length of 0 leaves a part out.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import harness
import torch

MASKS = ("causal", "window", "documents")
BLOCK = 128


def mask_mod(name: str, n: int) -> Callable[..., Any]:
    documents = (torch.arange(n) * 37 // n).int()  # 37 documents
    width = 1024
    return {
        "causal": lambda b, h, i, j: i >= j,
        "window": lambda b, h, i, j: (i >= j) & (i - j < width),
        "documents": lambda b, h, i, j: documents[i] == documents[j],
    }[name]


def torchs(name: str, n: int) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    create_block_mask(mask_mod(name, n), None, None, n, n, device="cpu", BLOCK_SIZE=BLOCK)


def analysis(name: str, n: int) -> None:
    from einfuse.flex import assemble, create_block_mask
    from einfuse.flex.block_mask import traced
    from einfuse.ir import classify

    mask = create_block_mask(mask_mod(name, n), None, None, n, n, device="cpu", BLOCK_SIZE=BLOCK)
    tracer, value = traced(mask.function(), mask.shape, mask.device)
    tensors, numbers = assemble.arguments(tracer)
    arrays = {k: x.numpy() for k, x in tensors.items()}
    classify(value.expr, ("i", n, BLOCK), ("j", n, BLOCK), assemble.sizes_of(tracer), numbers, arrays, {"b": 1, "h": 1})


def blocks(name: str, n: int) -> None:
    from einfuse.flex import create_block_mask

    create_block_mask(mask_mod(name, n), None, None, n, n, device="cpu", BLOCK_SIZE=BLOCK).kinds()


def inputs(name: str, n: int, width: int) -> dict[str, torch.Tensor]:
    """Query, key and value of two heads, and what else the spec reads."""
    import einfuse

    made: dict[str, Callable[[], torch.Tensor]] = {
        "marked": lambda: torch.arange(n)[None] % 4096 == 7,
        "view": lambda: torch.tensor([1, 4]),
        "slope": lambda: torch.tensor([0.1, 0.2]),
        "window": lambda: torch.tensor([256, 2048]),
        "live": lambda: torch.rand(2, -(-n // 64), -(-n // 64)) < 0.05,
        "prefix": lambda: torch.tensor([n // 16]),
        "pad": lambda: torch.arange(n)[None] < n * 3 // 4,
        "doc": lambda: (torch.arange(n) * 37 // n)[None],
        "temporal": lambda: torch.tensor([[True, False]]),
    }
    tensors = [t.name for t in einfuse.compile(name).cascade.inputs if not t.param]
    return {t: made[t]() if t in made else torch.randn(1, 2, n, width) for t in tensors}


def tiles(name: str, n: int) -> None:
    """What a launch has to know of a spec's mask (features are one wide: they play no part in it)."""
    import einfuse
    from einfuse.runtime.live import visited

    for found in visited(einfuse.compile(name, backend="cpu"), inputs(name, n, 1)):
        if found.fold.tabulated and found.chosen is None:
            found.tiles.csr()
        form = 2 if found.chosen is not None else int(found.fold.tabulated)
        print(json.dumps({"form": form, "live": found.share}))


def run(name: str, n: int) -> None:
    """Forward and backward, width 64."""
    import einfuse

    given = {t: x.requires_grad_(x.is_floating_point()) for t, x in inputs(name, n, 64).items()}
    einfuse.compile(name)(**given).sum().backward()  # type: ignore[union-attr]  # one output


WORK: dict[str, Callable[[str, int], None]] = {
    "torch": torchs,
    "analysis": analysis,
    "blocks": blocks,
    "tiles": tiles,
    "run": run,
}


def one(what: str, name: str, n: int, repeats: int) -> None:
    """In a process of its own: prints seconds, and the bytes that the peak grew by."""
    WORK[what](name, 256)  # imports and first uses
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run, times = partial(WORK[what], name, n), repeats if what in ("analysis", "blocks") else 1
    seconds = [harness.clocked(run, time.perf_counter) for _ in range(times)]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"seconds": min(seconds), "bytes": grown}))


def measured(what: str, name: str, n: int, repeats: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", what, name, "--length", str(n), "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} {name} at {n}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'killed'}")
    found: dict[str, float] = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line)
    return found


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    if args.one:
        what, name = args.one
        one(what, name, args.length, args.repeats)
        return 0
    if args.length:
        print(f"{args.length} queries and keys, blocks of {BLOCK}; torch {torch.__version__}")
        table = harness.Table("mask:10", "torch:22", "einfuse analysis:22", "ratios:16", "einfuse blocks:22", "ratios:16")
        for name in MASKS:
            theirs = measured("torch", name, args.length, 1)
            cells = [name, shown(theirs)]
            for what in ("analysis", "blocks"):
                mine = measured(what, name, args.length, args.repeats)
                cells += [shown(mine), ratios(theirs, mine)]
            table.row(*cells)
    if args.long:
        print(f"\n{args.long} queries and keys, every mask of the library: {args.long**2 / 2**30:.0f} Gi pairs")
        table = harness.Table("mask:18", "tiles:22", "live, %:.3f", "form:18")
        for name in listed():
            found = measured("tiles", name, args.long, 1)
            form = ("closed form", "lists of tiles", "lists of pairs")[int(found["form"])]
            table.row(name, shown(found), 100 * found["live"], form)
        print("graph: its table is itself a pair of nodes an entry; `edges` takes a list instead")
    if args.run:
        print(
            f"\nforward and backward at {args.run}, 2 heads of width 64, float32 (one matrix of scores: {args.run**2 * 8 / 2**30:.0f} GiB)"
        )
        for name in ("sliding_window", "document"):
            print(f"{name:18} {shown(measured('run', name, args.run, 1))}", flush=True)
    return 0


def listed() -> list[str]:
    import einfuse

    return [s.name for s in einfuse.list_specs() if s.family == "masks" and s.name != "graph"]


def shown(x: dict[str, float]) -> str:
    return f"{1e3 * x['seconds']:>10.2f} ms {x['bytes'] / 2**20:>5.0f} MiB"


def ratios(theirs: dict[str, float], mine: dict[str, float]) -> str:
    """How much faster, and how much smaller; a peak that did not grow counts as one MiB."""
    smaller = theirs["bytes"] / max(mine["bytes"], 2**20)
    return f"{theirs['seconds'] / mine['seconds']:>7.0f}x {smaller:>6.0f}x"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    made = harness.options(__doc__, repeats=5, length=32768, long=131072, run=32768)
    made.add_argument("--one", nargs=2, metavar=("WHAT", "MASK"), help=argparse.SUPPRESS)
    return harness.parsed(made, argv)


if __name__ == "__main__":
    sys.exit(main())
