"""Tile maps: sound on every predicate, exact on the masks of the literature, and as large as the tiles, not the points."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from mask_oracle import evaluate, mask, tiles

from einfuse.ir import Expr, TileMap, at_points, classify
from einfuse.ir import expr as ex
from einfuse.ir.text import show_expr

Array = npt.NDArray[Any]


def points(e: Expr, env: dict[str, Any], n: int, m: int) -> npt.NDArray[np.bool_]:
    """The mask itself, [b, h, i, j] for 2 batches and 2 heads."""
    b, h = np.arange(2)[:, None, None, None], np.arange(2)[None, :, None, None]
    out = evaluate(e, env | {"b": b, "h": h, "i": np.arange(n)[:, None], "j": np.arange(m)[None]})
    return np.broadcast_to(out, (2, 2, n, m))


def compare(e: Expr, env: dict[str, Any], n: int, m: int, block: int, step: int) -> tuple[Array, Array]:
    """The tiles found and the true ones, of the ambient points that the map tells apart; raises where a claim is wrong."""
    tables = {k: x for k, x in env.items() if isinstance(x, np.ndarray)}
    params = {k: x for k, x in env.items() if not isinstance(x, np.ndarray)}
    got = classify(e, ("i", "Nq", block), ("j", "Nk", step), {"Nq": n, "Nk": m, "W": 7}, params, tables, {"b": 2, "h": 2})
    every = points(e, env | {"Nq": n, "Nk": m, "W": 7}, n, m)
    true = tiles(every[tuple(slice(None) if r in got.ranks else 0 for r in "bh")], block, step)
    assert got.kind.shape == true.shape
    claim = got.kind != 1
    assert (got.kind[claim] == true[claim]).all(), f"a wrong claim for {show_expr(e)} in tiles {block} x {step}"
    return got.kind, true


# -- named masks ----------------------------------------------------------------------------------

MASKS = {
    "causal": "j <= i",
    "causal, offset": "j <= i + Nk - Nq",
    "window": "abs(i - j) < 60",
    "causal window": "j <= i and i - j < w[]",
    "prefix": "j <= i or j < prefix[b]",
    "sink + causal window": "j <= i and (i - j < 70 or j < 4)",
    "longformer": "abs(i - j) < 40 or i < 3 or j < 3",
    "chunk": "i // 64 == j // 64 and j <= i",
    "one chunk back": "j <= i and i // 64 - j // 64 <= 1",
    "documents": "doc[i] == doc[j]",
    "causal documents": "j <= i and doc[i] == doc[j]",
    "documents of a batch": "docs[b, i] == docs[b, j]",
    "groups": "group[i] == group[j]",
    "dilated": "(i - j) % 4 == 0 and j <= i",
    "strided": "j <= i and (i - j < 32 or (i - j) % 32 == 0)",
    "2-D neighbourhood": "abs(i // 48 - j // 48) <= 3 and abs(i % 48 - j % 48) <= 3",
    "disc": "(i // 48 - j // 48) * (i // 48 - j // 48) + (i % 48 - j % 48) * (i % 48 - j % 48) <= 9",
    "2-D causal": "j // 48 < i // 48 or (i // 48 == j // 48 and j % 48 <= i % 48)",
    "not causal window": "not (j <= i and i - j < 70)",
    "contradiction": "j <= i and j > i",
    "tautology": "j >= 0",
    "layout": "layout[i // 64, j // 64]",
    "causal layout": "j <= i and layout[i // 64, j // 64]",
    "explicit": "dense[i, j]",
    "lengths": "i < length[b] and j < length[b]",
    "windows of heads": "j <= i and i - j < windows[h]",
    "chunks of heads": "i // windows[h] == j // windows[h]",
    "padding": "keep[b, j]",
    "any parameter": "select(flag[], j <= i, j >= i)",
    "region": "i * j < 9000",
}
INEXACT = {"disc": 0.99, "groups": 0.99, "strided": 0.99, "causal layout": 0.98}
"""Masks of which only this share of the tiles without a mixture is asked for."""


def environment(n: int, m: int) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    top = max(n, m)

    def documents() -> Array:
        return np.repeat(np.arange(top), rng.integers(5, 90, top))[:top]

    return {
        "doc": documents(),
        "docs": np.stack([documents(), documents()]),
        "group": rng.integers(0, 6, top),
        "layout": rng.random((top // 64 + 1, top // 64 + 1)) < 0.3,
        "dense": np.kron(rng.random((n // 9 + 1, m // 9 + 1)) < 0.5, np.ones((9, 9), bool))[:n, :m],
        "prefix": np.array([100, 7], np.int32),
        "length": np.array([n // 3, n]),
        "windows": np.array([16, 70]),
        "keep": np.stack([np.arange(top) < top // 2, np.arange(top) % 100 < 99]),
        "w": 70,
        "flag": True,
    }


@pytest.mark.parametrize("name", MASKS)
def test_named_masks_are_exact(name: str) -> None:
    found = total = 0
    for n, m, block, step in ((384, 384, 64, 64), (384, 384, 128, 32), (300, 430, 64, 32), (129, 127, 16, 16), (1, 7, 8, 8)):
        kind, true = compare(mask(MASKS[name]), environment(n, m), n, m, block, step)
        found += int((kind == true).sum())
        total += true.size
    assert found >= INEXACT.get(name, 1.0) * total


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 127), (127, 129), (129, 1), (128, 128), (40, 200)])
def test_ragged_columns_are_never_full_and_ragged_rows_may_be(n: int, m: int) -> None:
    for text in ("j <= i + Nk - Nq", "true", "j < 5"):
        kind, true = compare(mask(text), {}, n, m, 16, 16)
        assert (kind == true).all()
        if m % 16:
            assert (kind[..., -1] < 2).all()
    full = classify(None, ("i", n, 16), ("j", m, 16), {}, {}, {}, {}).kind
    assert (full == tiles(np.ones((n, m), bool), 16, 16)).all()
    assert full.shape == (-(-n // 16), -(-m // 16))


def test_roles_swap() -> None:
    """Tiles of keys by tiles of queries, for the gradient of keys and values: the transpose, but for the ragged edge."""
    for text in ("j <= i", "j <= i and i - j < 20", "doc[i] == doc[j]", "docs[b, i] == docs[b, j] and j <= i"):
        env = environment(96, 160)
        tables = {k: x for k, x in env.items() if isinstance(x, np.ndarray)}
        sizes = {"Nq": 96, "Nk": 160}
        one = classify(mask(text), ("i", "Nq", 32), ("j", "Nk", 16), sizes, {}, tables, {"b": 2})
        other = classify(mask(text), ("j", "Nk", 16), ("i", "Nq", 32), sizes, {}, tables, {"b": 2})
        assert other.ranks == one.ranks
        assert (other.kind == np.swapaxes(one.kind, -1, -2)).all()


def test_only_ranks_that_matter_are_axes() -> None:
    env = {"length": np.array([3, 9])}
    ambient = {"b": 2, "h": 5}

    def ranks(text: str) -> tuple[str, ...]:
        return classify(mask(text), ("i", 32, 16), ("j", 32, 16), {}, {}, env, ambient).ranks

    assert ranks("j <= i") == ()
    assert ranks("j < length[b]") == ("b",)
    assert ranks("j < length[b] + h") == ("b", "h")


# -- lists of live tiles ----------------------------------------------------------------------------------


def test_csr_lists_the_live_tiles_in_order() -> None:
    kind = np.array([[[2, 0, 1, 2], [0, 0, 0, 0]], [[1, 1, 1, 1], [2, 2, 2, 0]]], np.int8)
    count, block = TileMap(kind, ("b",)).csr(("b",))
    assert count.tolist() == [[2, 1], [0, 0], [0, 4], [3, 0]]
    assert block.shape == (4, 2, 4)
    assert count.dtype == block.dtype == np.int32
    assert block[0].tolist() == [[0, 3, 0, 0], [2, 0, 0, 0]]
    assert block[2, 1].tolist() == [0, 1, 2, 3]
    assert block[3, 0].tolist() == [0, 1, 2, 0]


def test_csr_follows_the_order_of_ranks_asked_for() -> None:
    kind = np.arange(2 * 3 * 1 * 2).reshape(2, 3, 1, 2).astype(np.int8) % 3
    tile_map = TileMap(kind, ("b", "h"))
    count, _ = tile_map.csr(("h", "b"))
    expected = [[int((kind[b, h, 0] == k).sum()) for k in (2, 1)] for h in range(3) for b in range(2)]
    assert count.tolist() == expected
    assert tile_map.csr()[0].shape == (6, 2)


def test_csr_of_nothing_has_places_to_point_at() -> None:
    count, block = TileMap(np.zeros((3, 4), np.int8)).csr()
    assert (count == 0).all()
    assert block.shape == (3, 2, 1)


def test_live_fraction_and_sparsity() -> None:
    tile_map = classify(mask("j <= i"), ("i", 64, 16), ("j", 64, 16), {}, {}, {}, {})
    assert tile_map.live_fraction == 10 / 16
    assert tile_map.sparsity() == 6 / 16
    assert classify(mask("j <= i"), ("i", 0, 16), ("j", 64, 16), {}, {}, {}, {}).live_fraction == 0.0


# -- what cannot be known ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "sin(1.0 * j) < 0.5",
        "missing[i, j]",
        "missing[i] == 3",
        "floats[i] < floats[j]",
        "floats[j] > 0.5 and missing[i]",
        "j // zero[] == 0",
    ],
)
def test_what_cannot_be_analysed_is_partial(text: str) -> None:
    kind = classify(mask(text), ("i", 64, 16), ("j", 64, 16), {}, {"zero": 0}, {"floats": np.random.rand(64)}, {"b": 2}).kind
    assert (kind == 1).all()


def test_what_can_be_analysed_still_helps() -> None:
    kind = classify(mask("j <= i and missing[i, j]"), ("i", 64, 16), ("j", 64, 16), {}, {}, {}, {}).kind
    assert (kind == np.tril(np.ones((4, 4)))).all()


def test_numbers_beyond_int64_do_not_wrap() -> None:
    for text in ("j * 4611686018427387904 >= i", "j + 99999999999999999999999 > i", "i * w[] < j"):
        kind = classify(mask(text), ("i", 64, 16), ("j", 64, 16), {}, {"w": 1 << 70}, {}, {}).kind
        assert (kind != 0).any()
    huge = np.array([1 << 62, -(1 << 62)] * 32)
    kind = classify(mask("t[i] - t[j] + t[i] < 5"), ("i", 64, 1), ("j", 64, 1), {}, {}, {"t": huge}, {}).kind
    assert (kind == 1).all()


def test_masks_too_large_to_open_are_still_sound() -> None:
    """A conjunction of 12 unions of 3 has 531441 clauses."""
    text = " and ".join(f"(i // {k + 2} != j // {k + 2} or i + j < {5 * k} or j > i + {k})" for k in range(12))
    kind, true = compare(mask(text), {}, 60, 60, 10, 10)
    assert (kind == true).mean() > 0.5


def test_analysis_of_hostile_masks_ends() -> None:
    e = mask("j <= i")
    for _ in range(40):  # a chain of equalities of truth values doubles at every link when it is opened
        e = ex.call("==", e, mask("j < 9 or i < 9"))
    start = time.perf_counter()
    compare(e, {}, 20, 20, 5, 5)
    assert time.perf_counter() - start < 5


# -- size ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_half_a_million_tokens() -> None:
    n = 1 << 19
    rng = np.random.default_rng(0)
    doc = np.repeat(np.arange(n // 100), rng.integers(100, 9000, n // 100))[:n]
    tracemalloc.start()
    start = time.perf_counter()
    tile_map = classify(mask("j <= i and doc[i] == doc[j]"), ("i", n, 128), ("j", n, 128), {}, {}, {"doc": doc}, {})
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tile_map.kind.size == (n // 128) ** 2
    assert peak < 200 << 20  # a mask of one bit a point would be 32 GiB
    assert seconds < 15
    live = sum(-(-int(last - first) // 128) + 1 for first, last in _documents(doc))
    assert np.count_nonzero(tile_map.kind) <= live * (live + 1) / 2
    assert (tile_map.kind[np.arange(4096), np.arange(4096)] >= 1).all()


def _documents(doc: Array) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(doc)) + 1
    return list(zip([0, *edges.tolist()], [*edges.tolist(), len(doc)], strict=True))


# -- random predicates ----------------------------------------------------------------------------------


class Maker:
    """Random predicates over coordinates, sizes, host numbers and tables."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def number(self) -> Expr:
        i, j, call, const = ex.index("i"), ex.index("j"), ex.call, ex.const
        x, y = (i, j) if self.rng.integers(2) else (j, i)
        d, c = const(int(self.rng.integers(2, 12))), const(int(self.rng.integers(0, 60)))
        made = (
            x,
            call("-", i, j),
            call("-", j, i),
            call("+", i, j),
            call("//", x, d),
            call("%", x, d),
            call("abs", call("-", i, j)),
            call("-", call("*", const(3), i), call("*", const(2), j)),
            call("//", x, ex.size("W")),
            call("//", call("-", x, y), d),
            call("%", call("-", x, y), d),
            call("max", x, c),
            call("min", y, call("+", x, d)),
            call("select", call("<", x, c), y, d),
            call("*", x, y),
            call("//", x, ex.load("heads", ex.index("h"))),
            ex.load("w"),
            ex.load("doc", x),
            ex.load("group", x),
            ex.load("rows", ex.index("b"), x),
            ex.load("length", ex.index("b")),
            ex.load("grid", call("//", i, const(8)), call("//", j, const(8))),
            call("int", ex.load("keep", x)),
            ex.load("bias", call("+", call("-", x, y), const(60))),
        )
        return made[self.rng.integers(len(made))]

    def literal(self) -> Expr:
        kind = self.rng.integers(14)
        if kind == 0:
            return ex.load("keep", ex.index("ij"[self.rng.integers(2)]))
        if kind == 1:
            return mask("doc[i] == doc[j]")
        op = str(self.rng.choice(["<", "<=", ">", ">=", "==", "!="], p=[0.25, 0.25, 0.15, 0.15, 0.1, 0.1]))
        shift = ex.const(int(self.rng.integers(-20, 60)))
        return ex.call(op, self.number(), ex.call("+", self.number(), shift))

    def predicate(self, depth: int) -> Expr:
        if depth == 0:
            return self.literal()
        kind = self.rng.integers(5)
        if kind == 0:
            return ex.call("not", self.predicate(depth - 1))
        op = ("and", "or", "and", "or" if self.rng.random() < 0.8 else "==")[kind - 1]
        return ex.call(op, self.predicate(depth - 1), self.predicate(depth - 1))


@pytest.mark.slow
def test_random_predicates(capsys: pytest.CaptureFixture[str]) -> None:
    """20,000 pairs of a predicate and a tile shape: no claim is wrong, and at least 95 % of what could be claimed is."""
    make, n, m = Maker(7), 60, 52
    rng = make.rng
    env: dict[str, Any] = {"doc": np.repeat(np.arange(n), rng.integers(2, 20, n))[:n], "group": rng.integers(0, 6, n)}
    env |= {"keep": rng.random(n) < 0.5, "rows": rng.integers(0, 60, (2, n)), "length": np.array([13, 44])}
    env |= {"grid": rng.integers(0, 3, (8, 8)), "heads": np.array([5, 9]), "bias": rng.integers(0, 60, 121), "w": 11}
    sizes = {"Nq": n, "Nk": m, "W": 7}
    tables = {k: x for k, x in env.items() if isinstance(x, np.ndarray)}
    true_claims, claims, cases = np.zeros(2, int), np.zeros(2, int), 0
    for _ in range(700):
        e = make.predicate(int(rng.choice(4, p=[0.25, 0.4, 0.3, 0.05])))
        every = points(e, env | sizes, n, m)
        for block, step in rng.integers(1, 24, (29, 2)).tolist():
            got = classify(e, ("i", "Nq", block), ("j", "Nk", step), sizes, {"w": 11}, tables, {"b": 2, "h": 2})
            true = tiles(every[tuple(slice(None) if r in got.ranks else 0 for r in "bh")], block, step)
            wrong = (got.kind != 1) & (got.kind != true)
            assert not wrong.any(), f"a wrong claim for {show_expr(e)} in tiles {block} x {step}"
            true_claims += [int((true == k).sum()) for k in (0, 2)]
            claims += [int((got.kind == k).sum()) for k in (0, 2)]
            cases += 1
    share = claims / true_claims
    with capsys.disabled():
        print(f"\n{cases} cases: {share[0]:.1%} of the empty tiles found, {share[1]:.1%} of the full ones")
    assert cases >= 20_000
    assert (share >= 0.95).all()


def test_single_points_are_what_the_mask_says() -> None:
    """Tables, remainders and unions at points; what is read from floats is not known, and never claimed."""
    rng = np.random.default_rng(5)
    doc = rng.integers(0, 4, 40)
    i, j = rng.integers(0, 40, (2, 500))
    for text in ("j <= i and doc[i] == doc[j]", "(i - j) % 3 == 0 or j < 5", "not (abs(i - j) < doc[j])", "i // 7 == j // 7"):
        e = mask(text)
        found = at_points(e, {"i": i, "j": j}, {}, {}, {"doc": doc})
        truth = np.broadcast_to(evaluate(e, {"i": i, "j": j, "doc": doc}), found.shape)
        assert (found == np.where(truth, 2, 0)).all(), text
        assert truth.any()
        assert not truth.all()
    vague = at_points(mask("doc[i] == doc[j]"), {"i": i, "j": j}, {}, {}, {"doc": doc.astype(float)})
    assert (vague[i != j] == 1).all()
