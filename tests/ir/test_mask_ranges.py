"""Loop bounds of masks: the contract of `ir.passes.mask_ranges`, checked point by point against the mask itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from mask_oracle import evaluate

from einfuse.ir import Cascade, Fold, Range, interpret
from einfuse.ir.passes import mask_ranges
from einfuse.ir.text import parse, show
from einfuse.ir.verify import verify


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
    (fold,) = c.folds
    return fold


def closed_form_table(c: Cascade, env: dict[str, Any]) -> Iterator[tuple[int, int, int, list[tuple[int, int, int, int]]]]:
    """Of each ambient point and tile: b, its first coordinate, one past its last, (lo, full_lo, full_hi, hi) of its ranges."""
    fold, (rank, block) = fold_of(c), c.tile[0]
    n = env[str(c.rank(rank).size)]
    for b in range(env["B"]):
        for lo in range(0, n, block):
            here = env | {"b": b, f"{rank}.lo": lo, f"{rank}.hi": min(lo + block, n)}
            yield (
                b,
                lo,
                min(lo + block, n),
                [_numbers(r, here) for r in fold.ranges],
            )


def _numbers(r: Range, env: dict[str, Any]) -> tuple[int, int, int, int]:
    lo, full_lo, full_hi, hi = (int(evaluate(e, env)) for e in (r.lo, r.full_lo, r.full_hi, r.hi))
    return lo, full_lo, full_hi, hi


def check_contract(c: Cascade, env: dict[str, Any]) -> tuple[int, int]:
    """Raises where a range breaks its contract; returns how many blocks are visited and how many hold a live point."""
    fold, (rank, _) = fold_of(c), c.tile[0]
    step, n = max(fold.step, 1), env[str(c.rank(fold.rank).size)]
    visited, useful = 0, 0
    for b, first, last, ranges in closed_form_table(c, env):
        x = np.arange(n)
        point = env | {"b": b, fold.rank: x[None], rank: np.arange(first, last)[:, None]}
        mask = True if fold.mask is None else evaluate(fold.mask, point)
        live = np.broadcast_to(mask, (last - first, n))
        counts = np.zeros((2, n + step), int)
        for lo, full_lo, full_hi, hi in ranges:
            assert 0 <= lo <= full_lo <= full_hi <= hi
            assert lo == hi or hi <= n
            assert (lo % step, (full_lo - lo) % step, (full_hi - full_lo) % step) == (0, 0, 0)
            assert live[:, full_lo:full_hi].all(), "a full phase holds a dead point"
            for start, stop in ((lo, full_lo), (full_lo, full_hi), (full_hi, hi)):
                for k in range(start, stop, step):
                    counts[0, k : k + step] += 1  # with and without the bound ``x < hi`` on the last block
                    counts[1, k : min(k + step, hi)] += 1
                    visited += 1
        assert counts.max(initial=0) <= 1, "a coordinate is visited twice"
        assert (counts[:, :n][:, live.any(0)] == 1).all(), "a live coordinate is not visited"
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
    "stairs": "j // w[] <= i // w[]",
    "sum of quotients": "j // 8 + i // 4 < 40",
    "shifted stairs": "(j + 3) // w[] < i // w[] + 2",
}


@pytest.mark.slow
@pytest.mark.parametrize("tile", ["i", "j"])
@pytest.mark.parametrize("name", CLOSED)
def test_ranges_keep_their_contract(name: str, tile: str) -> None:
    rng = np.random.default_rng(len(name))
    plain = cascade(CLOSED[name], tile, sizes=("Nq", "Nk"))
    fold = fold_of(plain)
    for _ in range(8):
        block, step = int(rng.choice([16, 32, 128])), int(rng.choice([0, 8, 16, 64, 24]))
        c = mask_ranges.run(replace(plain, tile=((tile, block),), body=(replace(fold, step=step),)))
        assert fold_of(c).ranges
        assert not fold_of(c).tabulated
        assert verify(c) is c
        ni, nj = (int(rng.choice([1, 7, 96, 127, 128, 129, 200])) for _ in range(2))
        env: dict[str, Any] = {"B": 2, "Nq": ni, "Nk": nj, "w": int(rng.integers(1, 90)), "s": int(rng.integers(0, 20))}
        env |= {"flag": bool(rng.integers(2)), "prefix": rng.integers(0, nj + 20, 2)}
        if rng.random() < 0.15:
            env["w"] = int(rng.integers(-5, 0))  # a host number may be anything
        check_contract(c, env)
    assert parse(show(c)) == c


@pytest.mark.parametrize("tile", ["i", "j"])
@pytest.mark.parametrize("name", ["causal", "causal window", "chunk", "prefix", "sink + window", "offset"])
def test_ranges_visit_few_dead_blocks(name: str, tile: str) -> None:
    """At most the block on either side of what a tile needs, for each range."""
    c = mask_ranges.run(cascade(CLOSED[name], tile, 32, 16, ("Nq", "Nk")))
    env: dict[str, Any] = {"B": 2, "Nq": 400, "Nk": 500, "w": 48, "s": 5, "prefix": np.array([0, 130])}
    visited, useful = check_contract(c, env)
    tiles = 2 * -(-env[str(c.rank(tile).size)] // 32)
    assert useful <= visited <= useful + len(fold_of(c).ranges) * tiles
    assert visited < 0.8 * tiles * (500 if tile == "i" else 400) / 16


def test_closed_forms_are_those_of_the_books() -> None:
    def head(mask: str) -> str:
        text = show(mask_ranges.run(cascade(mask)))
        return " ".join(text[text.index("fold") : text.index(" where")].split())

    assert head("j <= i") == "fold j step 64 range (0, i.hi) full (0, i.lo)"
    assert head("j <= i and i - j < 65") == (
        "fold j step 64 range (max(0, i.lo - 64), i.hi) "
        "full (max(i.lo - 64, min(max(0, 64 * ((i.hi + 62) // 64) - 64), i.lo)), i.lo)"
    )
    assert head("true") == "fold j step 64 range (0, N) full (0, 64 * (N // 64))"
    assert head("false") == "fold j step 64 range (0, 0) full (0, 0)"


def test_no_mask_is_one_range_over_the_rank() -> None:
    fold = fold_of(mask_ranges.run(cascade("")))
    (r,) = fold.ranges
    assert _numbers(r, {"N": 200}) == (0, 0, 192, 200)


def test_sink_and_window_are_two_ranges() -> None:
    assert len(fold_of(mask_ranges.run(cascade(CLOSED["sink + window"]))).ranges) == 2
    assert len(fold_of(mask_ranges.run(cascade(CLOSED["prefix"]))).ranges) == 1  # both parts start at 0


# solved for i, the bounds in j are numbers of the tile
_CLOSED_FOR_ROWS = {("unordered union", "j"), ("quotient and coordinate", "j")}
TABULATED = {
    "documents": "doc[b, i] == doc[b, j]",
    "remainder": "(i - j) % 4 == 0 and j <= i",
    "table of rows": "j < doc[b, i]",
    "float": "0.5 * j < i + x[]",
    "product of coordinates": "i * j < 100",
    "unordered union": "(j < w[] and j > s[]) or (j > prefix[b] and j < s[] + prefix[b])",
    "quotient and coordinate": "j // 8 + j < i",
}


@pytest.mark.parametrize(("name", "tile"), [(n, t) for n in TABULATED for t in "ij" if (n, t) not in _CLOSED_FOR_ROWS])
def test_the_rest_is_tabulated(name: str, tile: str) -> None:
    c = mask_ranges.run(cascade(TABULATED[name], tile))
    assert fold_of(c).tabulated
    assert fold_of(c).ranges == ()
    assert parse(show(verify(c))) == c


def test_without_a_tile_the_mask_stays_on_the_whole_rank() -> None:
    c = mask_ranges.run(replace(cascade("(i - j) % 4 == 0"), tile=()))
    (r,) = fold_of(c).ranges
    assert _numbers(r, {"N": 200}) == (0, 0, 0, 200)
    c = mask_ranges.run(replace(cascade("j < prefix[b]"), tile=()))
    assert [evaluate(fold_of(c).ranges[0].hi, {"N": 200, "b": 0, "prefix": np.array([77])})] == [77]


def test_a_scan_visits_every_block_in_order() -> None:
    c = cascade("j <= i")
    fold = fold_of(c)
    c = mask_ranges.run(c.with_body([replace(fold, body=tuple(replace(y, red="set") for y in fold.body))]))
    (r,) = fold_of(c).ranges
    assert _numbers(r, {"N": 200}) == (0, 0, 0, 200)


@pytest.mark.parametrize("tile", ["i", "j"])
@pytest.mark.parametrize("name", ["", "causal window", "prefix", "lengths", "chunk", "sink + window", "longformer"])
def test_the_pass_changes_no_result(name: str, tile: str) -> None:
    c = cascade(CLOSED.get(name, ""), tile, 32, 8)
    rng = np.random.default_rng(3)
    inputs: dict[str, Any] = {
        "v": torch.randn(2, 75, 3, dtype=torch.float64),
        "prefix": torch.tensor([11, 70]),
        "w": 19,
        "s": 3,
    }
    inputs |= {"doc": torch.from_numpy(rng.integers(0, 3, (2, 75))), "x": 0.5, "flag": False}
    sizes = {"B": 2, "N": 75, "E": 3}
    before, after = interpret(c, inputs, sizes), interpret(mask_ranges.run(c), inputs, sizes)
    torch.testing.assert_close(after["o"], before["o"], rtol=1e-12, atol=1e-12)


def test_cases_that_cannot_be_are_dropped() -> None:
    """Both bounds negated: the window's complement is two ranges, not four."""
    assert len(fold_of(mask_ranges.run(cascade("not (j <= i and i - j < 40)"))).ranges) == 2


@pytest.mark.slow
def test_random_masks_keep_the_contract() -> None:
    """Unions of conjunctions of random bounds, in both orientations; most have a closed form."""
    rng = np.random.default_rng(11)

    def term(x: str) -> str:
        w = ("3", "16", "w[]", "s[]")[rng.integers(4)]
        forms = (
            x,
            x,
            f"{rng.integers(2, 4)} * {x}",
            f"{x} // {w}",
            f"({x} + {rng.integers(9)}) // {w}",
            f"max({x}, s[])",
            f"-{x}",
        )
        return forms[rng.integers(len(forms))]

    def bound() -> str:
        other = (term("i"), term("i"), term("i"), "prefix[b]", "w[]", str(rng.integers(200)))[rng.integers(6)]
        op = ("<", "<=", ">", ">=", "==", "!=")[rng.choice(6, p=[0.3, 0.3, 0.15, 0.15, 0.05, 0.05])]
        return f"{term('j')} {op} {other} + {rng.integers(-30, 30)}"

    closed = 0
    for n in range(60):
        text = " or ".join(
            "(" + " and ".join(bound() for _ in range(rng.integers(1, 4))) + ")" for _ in range(rng.integers(1, 3))
        )
        c = mask_ranges.run(
            cascade(text, "ij"[n % 2], int(rng.choice([16, 32, 48])), int(rng.choice([0, 8, 16, 24])), ("Nq", "Nk"))
        )
        if fold_of(c).tabulated:
            continue
        closed += 1
        for _ in range(3):
            env = {"B": 2, "Nq": int(rng.integers(1, 140)), "Nk": int(rng.integers(1, 140)), "prefix": rng.integers(0, 150, 2)}
            env |= {"w": int(rng.choice([-7, -1, 1, 5, 40])), "s": int(rng.choice([-3, 1, 2, 9]))}
            check_contract(c, env)
    assert closed > 40
