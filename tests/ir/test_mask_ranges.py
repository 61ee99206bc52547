"""Loop bounds of masks: the contract of `ir.passes.mask_ranges`, checked point by point against the mask itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from einfuse.ir import Cascade, Expr, Fold
from einfuse.ir.passes import mask_ranges
from einfuse.ir.text import parse, show, show_expr
from einfuse.ir.verify import verify

Evaluate = Callable[[Expr, dict[str, Any]], Any]


def cascade(mask: str, tile: str = "i", block: int = 128, step: int = 64, sizes: tuple[str, str] = ("N", "N")) -> Cascade:
    """A fold over the rank that is not tiled, under ``mask``."""
    fold = "j" if tile == "i" else "i"
    return parse(f"""cascade c over b {{
      rank b: batch = B
      rank i: query = {sizes[0]}
      rank j: key = {sizes[1]}
      rank e: feature = E
      in v[B, {sizes[1]}, E]: float
      in prefix[B]: int
      in doc[B, {sizes[1]}]: int
      param w: int
      param s: int
      param x: float
      param flag: bool
      tile {tile} {block}
      fold {fold} step {step} {"where " + mask if mask else ""} {{
        state o[{tile}, e] = sum v[b, {fold}, e]
      }}
      out o
    }}""")


def fold_of(c: Cascade) -> Fold:
    (fold,) = (x for x in c.body if isinstance(x, Fold))
    return fold


def bounds(evaluate: Evaluate, c: Cascade, env: dict[str, Any]) -> Iterator[tuple[int, int, int, list[tuple[int, int, int, int]]]]:
    """For every ambient point and tile: b, the tile's first and last coordinate + 1, and (lo, full_lo, full_hi, hi) of each range."""
    fold, (rank, block) = fold_of(c), c.tile[0]
    n = env[str(c.rank(rank).size)]
    for b in range(env["B"]):
        for lo in range(0, n, block):
            here = env | {"b": b, f"{rank}.lo": lo, f"{rank}.hi": min(lo + block, n)}
            yield (
                b,
                lo,
                min(lo + block, n),
                [tuple(int(evaluate(e, here)) for e in (r.lo, r.full_lo, r.full_hi, r.hi)) for r in fold.ranges],  # type: ignore[misc]
            )


def check_contract(evaluate: Evaluate, c: Cascade, env: dict[str, Any]) -> tuple[int, int]:
    """Raises where a range breaks its contract; returns how many blocks are visited and how many hold a live point."""
    fold, (rank, _) = fold_of(c), c.tile[0]
    step, n = max(fold.step, 1), env[str(c.rank(fold.rank).size)]
    visited, useful = 0, 0
    for b, first, last, ranges in bounds(evaluate, c, env):
        x = np.arange(n)
        point = env | {"b": b, fold.rank: x[None], rank: np.arange(first, last)[:, None]}
        mask = True if fold.mask is None else evaluate(fold.mask, point)
        live = np.broadcast_to(mask, (last - first, n))
        count = np.zeros(n, int)
        for lo, full_lo, full_hi, hi in ranges:
            assert 0 <= lo <= full_lo <= full_hi <= hi
            assert lo == hi or hi <= n
            assert (lo % step, (full_lo - lo) % step, (full_hi - full_lo) % step) == (0, 0, 0)
            assert live[:, full_lo:full_hi].all(), "a full phase holds a dead point"
            for start, stop in ((lo, full_lo), (full_lo, full_hi), (full_hi, hi)):
                for k in range(start, stop, step):
                    end = min(k + step, stop) if len(ranges) > 1 else k + step  # the bound of several ranges, see codegen
                    count[k:end] += 1
                    visited += 1
        assert count.max(initial=0) <= 1, "a coordinate is visited twice"
        assert (count[live.any(0)] == 1).all(), "a live coordinate is not visited"
        useful += sum(bool(live[:, k : k + step].any()) for k in range(0, n, step))
    return visited, useful


CLOSED = {
    "no mask": "",
    "true": "true",
    "false": "false",
    "causal": "j <= i",
    "strictly causal": "j < i",
    "anti-causal": "j >= i",
    "offset": "j <= i + Nk - Nq",
    "window": "i - j < w[] and j - i < w[]",
    "window by abs": "abs(i - j) < w[]",
    "causal window": "j <= i and i - j < w[]",
    "forward window": "j > i - w[]",
    "prefix": "j <= i or j < prefix[b]",
    "length": "j < prefix[b]",
    "lengths": "j < prefix[b] and i < prefix[b]",
    "chunk": "i // w[] == j // w[]",
    "causal chunk": "j <= i and i // 48 == j // 48",
    "one chunk back": "j <= i and i // 32 - j // 32 <= 1",
    "shifted chunk": "(i + 7) // w[] == (j + 7) // w[]",
    "sink + window": "j <= i and (i - j < w[] or j < s[])",
    "sink + fixed window": "(j <= i and i - j < 40) or (j < 4 and j <= i)",
    "longformer": "i - j < w[] and j - i < w[] or j < s[] or i < s[]",
    "either bound": "j < max(prefix[b], w[]) and j <= i",
    "both bounds": "i - j < min(w[], 100) and j <= i",
    "slope 2": "2 * j <= i",
    "slope 1/2": "j <= 2 * i and j >= i",
    "diagonal": "j == i + s[]",
    "not causal window": "not (j <= i and i - j < w[])",
    "flag": "flag[] or j <= i",
    "choice": "select(flag[], j <= i, j >= i)",
    "head offset": "j <= i + 5 * b",
    "product": "j < w[] * s[]",
    "stairs": "j < (i // w[] + 1) * w[]" if False else "j // w[] <= i // w[]",
}


@pytest.mark.parametrize("tile", ["i", "j"])
@pytest.mark.parametrize("name", CLOSED)
def test_ranges_keep_their_contract(name: str, tile: str, evaluate: Evaluate) -> None:
    rng = np.random.default_rng(len(name))
    for _ in range(14):
        block, step = int(rng.choice([16, 32, 128])), int(rng.choice([0, 8, 16, 64, 24]))
        ni, nj = (int(rng.choice([1, 7, 96, 127, 128, 129, 200])) for _ in range(2))
        c = mask_ranges.run(cascade(CLOSED[name], tile, block, step, ("Nq", "Nk")))
        assert fold_of(c).ranges and not fold_of(c).tabulated
        assert parse(show(verify(c))) == c
        env = {"B": 2, "Nq": ni, "Nk": nj, "w": int(rng.integers(1, 90)), "s": int(rng.integers(0, 20)), "flag": bool(rng.integers(2))}
        env["prefix"] = rng.integers(0, nj + 20, 2)
        if rng.random() < 0.15 and "//" not in CLOSED[name]:
            env["w"] = int(rng.integers(-5, 1))  # a host number may be anything
        check_contract(evaluate, c, env)
