"""What a step of serving costs: `update` and `run` on the host, decoding from pages beside contiguous keys, other specs beside causal, drafts.

    python benchmarks/serving.py [--batch 64] [--tokens 512] [--width 64] [--threads 1] [--dtype float32] [--json FILE]

Medians of processor time in turns, in microseconds. ``host``: with kernels that return at once. Heads: 8 on 2, pages of 16. ``paged``: one row
of each sequence over keys with heads before tokens and tokens before heads, and over pages in order and in none; ``large``: keys in
large pages of the system, as the pages of a cache are. ``prefix``: one row of each sequence, of whose tokens all share seven eighths,
read by each or once for 16 of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import harness
import torch

import einfuse
from einfuse import serving
from einfuse.runtime import memory

medians = functools.partial(harness.medians, skipped=5, unit=1e-6)
HEADS, SHARED, PAGE = 8, 2, 16
SPECS: dict[str, dict[str, object]] = {
    "causal": {},
    "alibi": {"slope": 2.0 ** -torch.arange(1, HEADS + 1)},
    "sink": {"sink": torch.randn(HEADS)},
    "softcap": {},
    "sigmoid": {},
    "softmax1": {},
}


def planned(
    name: str, batch: int, tokens: int, width: int, dtype: torch.dtype, rows: int = 1, shared: int = 0, prefixes: bool = False
) -> tuple[serving.Plan, torch.Tensor, torch.Tensor]:
    """A plan over a full cache whose pages lie in no order, the starts of a step, and its queries. Sequences ``shared`` so many tokens."""
    table = -(-(tokens + rows) // PAGE)
    attn = einfuse.compile(name, backend="cpu")
    token: dict[str, Any] = {"k": (SHARED, width), "v": (SHARED, width)}
    cache = serving.Cache.empty(attn, pages=batch * table + 1, width=PAGE, table=table, batch=batch, dtype=dtype, **token)
    for x in cache.tensors.values():
        x.normal_()
    cache.page.copy_(torch.randperm(batch * table).view(batch, table))
    cache.page[:, : shared // PAGE] = cache.page[0, : shared // PAGE].clone()
    cache.length.fill_(tokens)
    q = torch.randn(batch * rows, HEADS, width, dtype=dtype)
    extra = {n: x.to(dtype) if isinstance(x, torch.Tensor) else x for n, x in SPECS[name].items()}
    plan = serving.plan(attn, cache, tiles=(rows, 16) if prefixes else (rows,), prefixes=prefixes, q=q, **extra)  # type: ignore[arg-type]  # tensors and numbers
    starts = torch.arange(batch + 1, dtype=torch.int32) * rows
    plan.update(starts)
    return plan, starts, q


def measured(batch: int, tokens: int, width: int, dtype: torch.dtype, repeats: int) -> dict[str, dict[str, float]]:
    """All groups."""
    plan, starts, q = planned("causal", batch, tokens, width, dtype)
    with harness.no_kernels():
        host = medians({"update": lambda: plan.update(starts), "run": lambda: plan.run(q)}, repeats)
    found = {"host": host}

    full = einfuse.compile("full", backend="cpu")
    heads = torch.randn(2, batch, SHARED, tokens, width, dtype=dtype)
    flat = torch.randn(2, batch, tokens, SHARED, width, dtype=dtype).transpose(2, 3)
    large = memory.lasting(heads.shape, dtype, heads.device).copy_(heads)
    ordered, _, rows = planned("causal", batch, tokens, width, dtype)
    ordered.cache.page.copy_(torch.arange(ordered.cache.page.numel()).view_as(ordered.cache.page))
    paged: harness.Row = {
        "heads first": functools.partial(full, q[:, :, None], *heads),
        "heads first, large": functools.partial(full, q[:, :, None], *large),
        "tokens first": functools.partial(full, q[:, :, None], *flat),
        "in order": lambda: ordered.run(rows),
        "paged": lambda: plan.run(q),
    }
    found["paged"] = medians(paged, repeats)

    def step(name: str, *more: Any) -> Callable[[], object]:
        one, _, rows = planned(name, batch, tokens, width, dtype, *more)
        return functools.partial(one.run, rows)

    found["specs"] = medians({name: step(name) for name in SPECS}, repeats)
    shared = {"each": False, "once": True}
    found["prefix"] = medians({how: step("causal", 1, tokens * 7 // 8, prefixes) for how, prefixes in shared.items()}, repeats)
    found["drafts"] = medians({f"{n} rows": step("causal", n) for n in (1, 4, 8)}, repeats)
    return found


def main(argv: list[str] | None = None) -> int:
    made = harness.options(__doc__, repeats=30, threads=1, json=True, batch=64, tokens=512, width=64)
    made.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = harness.parsed(made, argv)
    with torch.no_grad():
        found = measured(args.batch, args.tokens, args.width, getattr(torch, args.dtype), args.repeats)
    table = harness.Table("group:8", "call:20", "us:7.0f")
    for group, row in found.items():
        for name, time in row.items():
            table.row(group, name, time)
    harness.write(args.json, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
