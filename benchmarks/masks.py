"""What it takes to know a mask: einfuse's analysis beside torch's create_block_mask, in one run, each case in a process of its own.

    python benchmarks/masks.py [--length N] [--long N] [--repeats K]

Times are the least of K (torch's of one run: it takes seconds), memory is what the peak of the process grew by while the mask was made.
Both make masks of 128 x 128 blocks. "analysis" is what a call of einfuse does (trace, and the table of tiles where there is no closed form);
"blocks" asks the mask for its exact lists as well, as torch's has them. Prints ratios; a length of 0 leaves a part out.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # einfuse need not be installed

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
    from einfuse.flex.analysis import traced
    from einfuse.ir import classify

    mask = create_block_mask(mask_mod(name, n), None, None, n, n, device="cpu", BLOCK_SIZE=BLOCK)
    tracer, value = traced(mask.function(), mask.shape, mask.device)
    tensors, numbers = assemble.arguments(tracer)
    arrays = {k: x.numpy() for k, x in tensors.items()}
    classify(value.expr, ("i", n, BLOCK), ("j", n, BLOCK), assemble.sizes_of(tracer), numbers, arrays, {"b": 1, "h": 1})


def blocks(name: str, n: int) -> None:
    from einfuse.flex import create_block_mask

    create_block_mask(mask_mod(name, n), None, None, n, n, device="cpu", BLOCK_SIZE=BLOCK).kinds()


WORK: dict[str, Callable[[str, int], None]] = {"torch": torchs, "analysis": analysis, "blocks": blocks}


def one(what: str, name: str, n: int, repeats: int) -> None:
    """In a process of its own: prints seconds, and the bytes that the peak grew by."""
    WORK[what](name, 256)  # imports and first uses
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(1 if what == "torch" else repeats):
        start = time.perf_counter()
        WORK[what](name, n)
        seconds.append(time.perf_counter() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"seconds": min(seconds), "bytes": grown}))


def measured(what: str, name: str, n: int, repeats: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", what, name, "--length", str(n), "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} {name} at {n}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'killed'}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    if args.one:
        one(*args.one, args.length, args.repeats)
        return 0
    if args.length:
        print(f"{args.length} queries and keys, blocks of {BLOCK}; torch {torch.__version__}")
        print(f"{'':10} {'torch':>22} {'einfuse analysis':>22} {'ratios':>16} {'einfuse blocks':>22} {'ratios':>16}")
        for name in MASKS:
            theirs = measured("torch", name, args.length, 1)
            cells = [f"{name:10}", shown(theirs)]
            for what in ("analysis", "blocks"):
                mine = measured(what, name, args.length, args.repeats)
                cells += [shown(mine), ratios(theirs, mine)]
            print(" ".join(cells), flush=True)
    if args.long:
        print(f"\n{args.long} queries and keys: analysis alone")
        for name in MASKS:
            print(f"{name:10} {shown(measured('analysis', name, args.long, args.repeats))}", flush=True)
    return 0


def shown(x: dict[str, float]) -> str:
    return f"{1e3 * x['seconds']:>10.2f} ms {x['bytes'] / 2**20:>5.0f} MiB"


def ratios(theirs: dict[str, float], mine: dict[str, float]) -> str:
    """How much faster, and how much smaller; a peak that did not grow counts as one MiB."""
    smaller = theirs["bytes"] / max(mine["bytes"], 2**20)
    return f"{theirs['seconds'] / mine['seconds']:>7.0f}x {smaller:>6.0f}x"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--length", type=int, default=32768, metavar="N", help="beside torch; %(default)s unless given")
    made.add_argument("--long", type=int, default=131072, metavar="N", help="analysis alone; %(default)s unless given")
    made.add_argument("--repeats", type=int, default=5, metavar="K", help="%(default)s unless given")
    made.add_argument("--one", nargs=2, metavar=("WHAT", "MASK"), help=argparse.SUPPRESS)
    return made.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
