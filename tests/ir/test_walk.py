"""Walks by lists: digits, groups and the rewritten cascade against every pair, and the interpreter before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

import einfuse
from einfuse.ir import Cascade, interpret
from einfuse.ir import expr as ex
from einfuse.ir.digits import Related, related
from einfuse.ir.groups import Groups, grouped
from einfuse.ir.interpreter import evaluate_indices
from einfuse.ir.passes import walk
from einfuse.ir.text import parse, show
from einfuse.ir.tiles import numeric
from einfuse.ir.verify import verify
from einfuse.runtime.walks import listed

SIZES = {"B": 1, "H": 2, "D": 3, "E": 3, "group": 1}


def found(cascade: Cascade, n: int) -> tuple[walk.Pair, Related]:
    pair = walk.pair(cascade)
    assert pair is not None
    numbers = {t.name: t.default for t in cascade.inputs if t.param and t.default is not None}
    conditions = [numeric(c, {**SIZES, "Nq": n, "Nk": n}, numbers) for c in pair.conditions]
    digits = related(conditions, (pair.rows, n), (pair.columns, n))
    assert digits is not None
    return pair, digits


def pairs(groups: Groups, n: int) -> np.ndarray:
    """How often each pair is visited; a row that stands several times in a group counts once."""
    out = np.zeros((n, n), int)
    for g, (rows, columns) in enumerate(zip(groups.rows, groups.columns, strict=True)):
        live = np.ones((len(rows), len(columns)), bool)
        for t in groups.tests:
            live &= (t.lo[g][:, None] <= t.at[g]) & (t.at[g] < t.hi[g][:, None])
        own, first = np.unique(rows, return_index=True)
        np.add.at(out, (own[:, None], columns[None]), live[first])
    return out


PATTERNS: list[tuple[str, int, Mapping[str, int | str]]] = [
    ("swin", 196, {}),
    ("swin", 190, {"shift": 0}),
    ("swin", 400, {"columns": 20, "window": 6, "shift": 2}),
    ("neighbourhood_2d", 225, {"columns": 15}),
    ("neighbourhood_2d", 230, {"columns": 15, "window": 5, "dilation": 3}),
    ("halo", 256, {}),
    ("window_3d", 256, {}),
    ("axial", 240, {"along": "column"}),
    ("grid", 256, {}),
    ("block_dilated", 300, {}),
]


@pytest.mark.parametrize(("name", "n", "given"), PATTERNS)
@pytest.mark.parametrize("turned", [False, True])
def test_groups_visit_every_live_pair_once(name: str, n: int, given: Mapping[str, Any], turned: bool) -> None:
    cascade = einfuse.compile(name, **given).cascade
    pair, digits = found(cascade, n)
    said = ex.conjunction(*(pair.conditions[k] for k in digits.said))
    assert said is not None
    (live,) = evaluate_indices(cascade, [said], ["i", "j"], {}, {**SIZES, "Nq": n, "Nk": n})
    wanted = live.expand(n, n).numpy().T if turned else live.expand(n, n).numpy()
    groups = grouped([d.turned() for d in digits.digits] if turned else digits.digits, (n, n), 64)
    assert groups is not None
    assert (pairs(groups, n) == wanted).all()
    assert set(groups.rows.flat) == set(range(n))
    assert groups.rows.shape[1] <= 64


def test_shifted_windows_make_as_few_groups_as_whole_ones() -> None:
    """What the shift cuts off at two borders is put together again."""
    for shift, tests in ((0, 0), (3, 1)):
        _, digits = found(einfuse.compile("swin", columns=56, shift=shift).cascade, 3136)
        groups = grouped(digits.digits, (3136, 3136), 64)
        assert groups is not None
        assert (groups.rows.shape, groups.columns.shape, len(groups.tests)) == ((64, 49), (64, 49), tests)


def test_digits_are_those_that_the_mask_divides_by() -> None:
    _, digits = found(einfuse.compile("window_3d").cascade, 512)
    assert [d.weight for d in digits.digits] == [1, 4, 8, 32, 64, 128]
    _, digits = found(einfuse.compile("neighbourhood_2d", dilation=2).cascade, 196)
    assert [d.weight for d in digits.digits] == [1, 14]  # a condition that mentions two digits joins them


@pytest.mark.parametrize("name", ["causal", "sliding_window", "strided", "cross_shaped", "document", "full"])
def test_masks_that_are_no_relation_of_digits_are_left_alone(name: str) -> None:
    cascade = einfuse.compile(name).cascade
    pair = walk.pair(cascade)
    sizes = {**SIZES, "Nq": 64, "Nk": 64}
    numbers = {t.name: t.default or 4 for t in cascade.inputs if t.param}
    assert pair is None or related([numeric(c, sizes, numbers) for c in pair.conditions], ("i", 64), ("j", 64)) is None


def test_a_limit_is_kept() -> None:
    _, digits = found(einfuse.compile("swin").cascade, 196)
    groups = grouped(digits.digits, (196, 196), 64)
    assert groups is not None
    assert grouped(digits.digits, (196, 196), 64, groups.work) is not None
    assert grouped(digits.digits, (196, 196), 64, groups.work - 1) is None
    assert grouped(digits.digits, (196, 196), 6) is not None


SPEC = """attention relative over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in table[h, 2 * Nk]
  s = sum[d](q * k) + table[h, i - j + Nk] where i // 12 // 4 == j // 12 // 4 and i % 12 // 4 == j % 12 // 4 and j <= i + 2
  o[i, e] = sum[j](softmax[j](s) * v) * i
  z[i] = sum[j](exp(s))
  out o, z
}"""


@pytest.mark.parametrize("n", [72, 65])
@pytest.mark.parametrize("source", ["swin", SPEC])
def test_the_walked_cascade_means_the_same(source: str, n: int) -> None:
    """Forward and backward cascades, with positions read outside the mask and conditions that lists do not stand for."""
    params: dict[str, Any] = {"columns": 12, "window": 4, "shift": 1} if source == "swin" else {}
    attention = einfuse.compile(source, **params)
    sizes = {**SIZES, "Nq": n, "Nk": n}
    generator = torch.Generator().manual_seed(0)
    tensors = {t.name: torch.randn(*_shape(t, sizes), generator=generator, dtype=torch.float64) for t in _tensors(attention)}
    backward = attention.program.backward_of(("q", "k", "v"))
    known = {**tensors, **interpret(attention.program.saving(("q", "k", "v")), tensors, sizes)}
    known |= {f"d_{x}": torch.randn_like(known[x]) for x in attention.cascade.outs}
    walked = 0
    for cascade in (attention.cascade, *(c for c, _ in backward.cascades)):
        truth = interpret(cascade, known, sizes)
        pair = walk.pair(cascade)
        if pair is not None:
            made, tables, more = _made(cascade, pair, n)
            assert parse(show(made)) == verify(made)
            for name, value in interpret(made, {**known, **tables}, {**sizes, **more}).items():
                torch.testing.assert_close(value, truth[name], rtol=1e-10, atol=1e-10)
            walked += 1
        known |= truth
    assert walked >= 3


def _tensors(attention: einfuse.Attention) -> list[einfuse.ir.Tensor]:
    return [t for t in attention.cascade.inputs if not t.param]


def _shape(t: einfuse.ir.Tensor, sizes: Mapping[str, int]) -> list[int]:
    return [int(numeric(a, sizes, {}).value) for a in t.axes]  # type: ignore[arg-type]  # sizes are known


def _made(cascade: Cascade, pair: walk.Pair, n: int) -> tuple[Cascade, dict[str, torch.Tensor], dict[str, int]]:
    _, digits = found(cascade, n)
    groups = grouped(digits.digits, (n, n), 64)
    assert groups is not None
    said = tuple(pair.conditions[k] for k in digits.said)
    made = walk.run(pair, said, groups.rows.shape[1], None, len(groups.tests))
    assert made.columns is not None
    more = {made.groups: len(groups.rows), made.columns: groups.columns.shape[1]}
    return made.cascade, {k: torch.from_numpy(x) for k, x in listed(made, groups).items()}, more


def test_what_reads_more_than_the_lists_hold_is_not_walked() -> None:
    everywhere = SPEC.replace("z[i] = sum[j](exp(s))", "z[i] = sum[j](v[b, h, j, 0])")
    assert walk.pair(einfuse.compile(SPEC).cascade) is not None
    assert walk.pair(einfuse.compile(everywhere).cascade) is None  # a sum over all keys
    weights = SPEC.replace("out o, z", "out s")
    assert walk.pair(einfuse.compile(weights).cascade) is None  # one value for every pair
