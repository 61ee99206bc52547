"""What a call costs beside its kernel, and how long a process takes to its first result.

    python benchmarks/cpu_calls.py [--threads 1] [--only decode] [--start] [--json FILE]

Microseconds of a call beside `scaled_dot_product_attention`: small calls, steps of decoding over a cache that grows, training calls, a cache
in pages whose lengths change. Processor time, medians, in turns. ``host``: the same with kernels that are not run. Seconds of a new process
beyond importing torch, by the wall's clock and the processors', with an empty cache of kernels and with a full one: medians of five.
``--start`` measures these alone.
"""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import harness
import torch
import torch.nn.functional as F
from harness import Row

import einfuse
from einfuse.integrations.compiled import general

_PROCESS = """
import os, time
import torch
def spent():
    t = os.times()
    return time.perf_counter(), t.user + t.system + t.children_user + t.children_system
begin = spent()
import einfuse
imported = spent()
attn = einfuse.compile("causal")
compiled = spent()
q = torch.randn(1, 2, 100, 64)
attn(q, q, q)
ended = spent()
for a, b in ((begin, imported), (imported, compiled), (compiled, ended)):
    print(b[0] - a[0], b[1] - a[1])
"""


def small() -> Iterator[tuple[str, Row]]:
    """Forwards of a few tiles. Here as below, the first call is the peer."""
    causal, alibi = einfuse.compile("causal"), einfuse.compile("alibi")
    for shape in ((1, 1, 1, 64), (1, 8, 16, 64), (1, 12, 64, 64)):
        for dtype in (torch.float32, torch.bfloat16):
            q, slope = torch.randn(shape).to(dtype), torch.rand(shape[1])
            yield (
                f"{list(shape)} {str(dtype).removeprefix('torch.')}",
                {
                    "sdpa": functools.partial(F.scaled_dot_product_attention, q, q, q, is_causal=True),
                    "causal": functools.partial(causal, q, q, q),
                    "alibi": functools.partial(alibi, q, q, q, slope=slope),
                },
            )


def decode() -> Iterator[tuple[str, Row]]:
    """Steps over a cache with one more key at every call, by the attention of the integrations: 8 heads on 2, width 64."""
    for batch, first in ((1, 64), (1, 1024), (8, 512)):
        q = torch.randn(batch, 8, 1, 64)
        cache = torch.randn(2, batch, 2, first + 4000, 64)
        pad = torch.ones(batch, first + 4000, dtype=torch.bool)
        at = itertools.count(first + 1)

        def step(q: torch.Tensor = q, cache: torch.Tensor = cache, **more: Any) -> Any:
            n = next(more.pop("at"))
            padding = more.pop("pad", None)
            given = {} if padding is None else {"pad": padding[:, :n]}
            shift = n - 1 if more.get("window") else 0
            return general(q, cache[0, :, :, :n], cache[1, :, :, :n], given, causal=True, shift=shift, **more)

        def sdpa(q: torch.Tensor = q, cache: torch.Tensor = cache, at: Iterator[int] = at) -> torch.Tensor:
            n = next(at)
            return F.scaled_dot_product_attention(q, cache[0, :, :, :n], cache[1, :, :, :n], enable_gqa=True)

        yield (
            f"batch {batch}, {first}+ keys",
            {
                "sdpa": sdpa,
                "plain": functools.partial(step, at=at),
                "padded": functools.partial(step, at=at, pad=pad),
                "window": functools.partial(step, at=at, window=256),
            },
        )


def train() -> Iterator[tuple[str, Row]]:
    """Forward and backward."""
    causal = einfuse.compile("causal")

    def step(run: Callable[..., Any], xs: Sequence[torch.Tensor], g: torch.Tensor) -> object:
        return torch.autograd.grad(run(*xs), xs, g)

    for shape in ((1, 1, 1, 64), (1, 8, 16, 64), (8, 12, 64, 32)):
        xs, g = [torch.randn(shape, requires_grad=True) for _ in range(3)], torch.randn(shape)
        sdpa = functools.partial(F.scaled_dot_product_attention, is_causal=True)
        yield str(list(shape)), {"sdpa": functools.partial(step, sdpa, xs, g), "causal": functools.partial(step, causal, xs, g)}


def pages() -> Iterator[tuple[str, Row]]:
    """One query of each sequence over a cache in pages of 16; the peer's keys lie side by side."""
    paged = einfuse.compile("paged")
    for batch in (1, 16, 64):
        q, (k, v) = torch.randn(batch, 8, 1, 64), torch.randn(2, batch * 32, 16, 2, 64)
        page, length = torch.randperm(batch * 32).view(batch, 32).int(), torch.full((batch,), 200)
        whole = torch.randn(2, batch, 2, 200, 64)

        def moving(
            q: torch.Tensor = q, k: torch.Tensor = k, v: torch.Tensor = v, page: torch.Tensor = page, n: torch.Tensor = length
        ) -> Any:
            n.sub_(199).remainder_(100).add_(200)
            return paged(q, k, v, page, n)

        sdpa = functools.partial(F.scaled_dot_product_attention, q, whole[0], whole[1], enable_gqa=True)
        yield f"{batch} sequences", {"sdpa": sdpa, "moving lengths": moving}


GROUPS = {"small": small, "decode": decode, "train": train, "pages": pages}


medians = functools.partial(harness.medians, skipped=5, unit=1e-6)


def calls(only: Sequence[str], repeats: int) -> dict[str, dict[str, float]]:
    """Microseconds of every call of the groups, and of the host's part of ours."""
    found: dict[str, dict[str, float]] = {}
    for group in only:
        table: harness.Table | None = None
        with torch.set_grad_enabled(group == "train"):
            for name, row in GROUPS[group]():
                times = medians(row, repeats)
                ours = dict(list(row.items())[1:])
                with harness.no_kernels():
                    times |= {f"host of {n}": t for n, t in medians(ours, repeats).items()}
                found[f"{group}: {name}"] = times
                table = table or harness.Table(f"{group}, us:24", *(f"{n}:.0f" for n in times))
                table.row(name, *times.values())
    return found


def starts(repeats: int = 5) -> dict[str, dict[str, tuple[float, float]]]:
    """Seconds of importing, compiling a spec and its first call, in a new process: without and with kept kernels.

    By wall and by processors (those of the compiler too), medians of so many processes each.
    """
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {
            "PYTHONPATH": str(harness.ROOT / "src"),
            "PYTHONPYCACHEPREFIX": folder,
        }
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        subprocess.run([sys.executable, "-c", "import einfuse"], env=env, check=True)  # bytecode, as installing leaves it
        cold = [_started(env | {"EINFUSE_CACHE": f"{folder}/kernels{n}"}) for n in range(repeats)]
        warm = [_started(env | {"EINFUSE_CACHE": f"{folder}/kernels0"}) for _ in range(repeats)]
        return {"cold": _medians(cold), "warm": _medians(warm)}


def _started(env: dict[str, str]) -> dict[str, tuple[float, float]]:
    done = subprocess.run([sys.executable, "-c", _PROCESS], env=env, check=True, capture_output=True, text=True)
    pairs = [(float(wall), float(spent)) for wall, spent in (line.split() for line in done.stdout.splitlines())]
    parts = dict(zip(("import", "compile", "first call"), pairs, strict=True))
    return parts | {"all": (sum(w for w, _ in pairs), sum(s for _, s in pairs))}


def _medians(found: list[dict[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    return {part: (median(f[part][0] for f in found), median(f[part][1] for f in found)) for part in found[0]}


def main(argv: list[str] | None = None) -> int:
    made = harness.options(__doc__, repeats=100, threads=1, only=GROUPS, json=True)
    made.add_argument("--start", action="store_true", help="only how long a process takes to its first result")
    made.add_argument("--calls", action="store_true", help="only what calls cost")
    args = harness.parsed(made, argv)
    found = {} if args.start else calls(args.only, args.repeats)
    if args.calls:
        harness.write(args.json, {"calls": found})
        return 0
    begun = starts()
    beyond = harness.Table("seconds beyond importing torch:24", *(f"{part} (of processors):16" for part in begun["cold"]))
    for which, parts in begun.items():
        beyond.row(f"{which} start", *(f"{wall:.3f} ({spent:.3f})" for wall, spent in parts.values()))
    harness.write(args.json, {"calls": found, "starts": begun})
    return 0


if __name__ == "__main__":
    sys.exit(main())
