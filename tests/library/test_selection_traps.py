"""What implementations of selection were wrong about, one test each: the name says what happened there, the test that it does not here.

The traps, by the numbers that the tests name: 1 ties, 2 buffers of candidates, 3 nothing to choose, 4 lists and their gradients, 5 padding,
6 counts, 7 the future, 8 the fast beside the plain, 9 slower than dense, 10 what a call may ask for, 11 found by reading. Of 9,
tests/runtime/test_through.py says where lists drive loops and where they would not pay; benchmarks/selection.py measures it.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import einfuse
from einfuse.ir.ranking import best
from einfuse.runtime.backends import BackendName

BLOCK, WIDTH = 4, 3
BACKENDS = ["torch", pytest.param("cpu", marks=pytest.mark.slow)]

TEXT = """attention chosen over b, h {
  rank i: query; rank j: key; rank w: key = (Nk + 3) // 4; rank n: feature = SLOTS; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in length[b]: int
  in count[b, i]: int
  mk[w, d] = mean[j](k where j // 4 == w)
  sel[i, n] = topk[w -> n](RANKED)
  kept = sel where n < count
  s = sum[d](q * k) where SEEN
  o[i, e] = sum[j](softmax[j](s) * v)
  out o, sel
}"""
MEANS, CHOSEN = "sum[d](q * mk)", "j // 4 in sel[i]"


def chosen(ranked: str = MEANS, seen: str = CHOSEN, slots: int = 2, backend: BackendName = "torch") -> einfuse.Attention:
    return einfuse.compile(TEXT.replace("RANKED", ranked).replace("SEEN", seen).replace("SLOTS", str(slots)), backend=backend)


def drawn(queries: int = 13, keys: int = 19, batch: int = 2) -> list[Tensor]:
    sizes = ((queries, WIDTH), (keys, WIDTH), (keys, WIDTH))
    return [torch.randn(batch, 2, *s, dtype=torch.float64).requires_grad_() for s in sizes]


def call(
    attention: einfuse.Attention, x: list[Tensor], length: Tensor | None = None, count: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The output and the list; without a length or a count no limit."""
    batch, rows = x[0].shape[0], x[0].shape[2]
    length = torch.full((batch,), 99) if length is None else length
    out, sel = attention(*x, length=length, count=torch.full((batch, rows), 99) if count is None else count)
    return out, sel


def attend(x: list[Tensor], seen: Tensor) -> Tensor:
    s = (x[0] @ x[1].mT).masked_fill(~seen, -math.inf)
    return torch.where(seen.any(-1, keepdim=True), s, 0).softmax(-1).masked_fill(~seen, 0) @ x[2]


def blocks_of(x: Tensor) -> Tensor:
    return torch.stack([part.mean(-2) for part in x.split(BLOCK, -2)], -2)


def holds(sel: Tensor, keys: int) -> Tensor:
    """Is a key in one of the blocks of a list?"""
    return (sel[..., None] == torch.arange(keys) // BLOCK).any(-2)


def agree(found: Tensor, truth: Tensor, x: list[Tensor]) -> None:
    """Values and gradients."""
    torch.testing.assert_close(found, truth)
    for a, b in zip(torch.autograd.grad(found.sin().sum(), x), torch.autograd.grad(truth.sin().sum(), x), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_set_each_run_where_values_are_equal(backend: BackendName) -> None:
    """Trap 1. Zeros of a relu tie; the lower coordinate comes first, on one thread or two, alone or in a batch."""
    x, attention = drawn(), chosen("relu(0 * sum[d](q * mk)) + (1 if w == 3 else 0)", slots=3, backend=backend)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            sel = call(attention, x)[1]
            assert torch.equal(sel, torch.tensor([3, 0, 1]).expand_as(sel))
            assert torch.equal(call(attention, [y[:1] for y in x])[1], sel[:1])
    finally:
        torch.set_num_threads(before)


def test_a_row_longer_than_a_buffer_of_candidates() -> None:
    """Trap 2. Few different values, so that most of a row is as large as the last that is chosen."""
    values = torch.randint(0, 9, (2, 70_000)).float()
    at = best(values, None, 2048)
    assert torch.equal(at, values.sort(dim=-1, descending=True, stable=True).indices[:, :2048])


def test_what_is_no_number_is_chosen() -> None:
    """Trap 3."""
    nan = math.nan
    values = torch.tensor([[nan, 1.0, -math.inf, 2.0], [nan, nan, 0.0, -0.0]])
    for x in (values, values.double()):
        assert best(x, None, 4).tolist() == [[3, 1, 2, 0], [2, 3, 0, 1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_with_nothing_to_choose(backend: BackendName) -> None:
    """Trap 3. -inf - -inf: the first rows, and all of them."""
    for ranked in (f"{MEANS} where w * 4 + 4 <= i", f"{MEANS} where w > 50"):
        x = drawn()
        found, sel = call(chosen(ranked, backend=backend), x)
        assert (sel[:, :, :4] == -1).all()
        agree(found, attend(x, holds(sel, 19)), x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_slots_of_rows_with_nothing_to_choose(backend: BackendName) -> None:
    """Trap 3. Slots are read as keys: a row without one gives 0, and no gradient that is no number."""
    text = """attention read over b, h {
      rank i: query; rank j: key; rank n: feature = 3; rank d, e: feature
      in q[b, h, i, d]
      in k[b, h, j, d]
      in v[b, h, j, e]
      sel[i, n] = topk[j -> n](-j where j + 2 <= i)
      s[i, n] = sum[d](q * k[b, h, sel[i, n], d])
      o[i, e] = sum[n](softmax[n](s) * v[b, h, sel[i, n], e])
      out o, sel
    }"""
    x = drawn()
    found, _ = einfuse.compile(text, backend=backend)(*x)
    rows, keys = torch.arange(13)[:, None], torch.arange(19)
    agree(found, attend(x, (keys < 3) & (keys + 2 <= rows)), x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_that_several_queries_choose(backend: BackendName) -> None:
    """Trap 4. What all of them give back to it is added; the last column is one like the others."""
    x = drawn(keys=20)
    found, sel = call(chosen("w", backend=backend), x)
    assert (sel == torch.tensor([4, 3])).all()
    agree(found, attend(x, (torch.arange(20) >= 12).expand(13, 20)), x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_entry_of_minus_one_is_no_token(backend: BackendName) -> None:
    """Trap 4. Nor is one behind the last, and one that stands twice counts once."""
    text = """attention given over b, h {
      rank i: query; rank j: key; rank d, e: feature
      in q[b, h, i, d]
      in k[b, h, j, d]
      in v[b, h, j, e]
      in list[i, M]: int
      s = sum[d](q * k) where j in list[i]
      o[i, e] = sum[j](softmax[j](s) * v)
      out o
    }"""
    x = drawn()
    entries = torch.tensor([[2, -1, 5, 5], [-1, -1, -1, -1], [18, 19, 400, -1]]).repeat(5, 1)[:13]
    attention = einfuse.compile(text, backend=backend)
    found = attention(*x, list=entries)
    assert isinstance(found, Tensor)
    agree(found, attend(x, (entries[..., None] == torch.arange(19)).any(-2)), x)
    behind = torch.cat([torch.full((13, 30), -1), entries], -1)  # in columns of more than there are keys
    assert torch.equal(attention(*x, list=behind), found)  # type: ignore[arg-type]  # one output


@pytest.mark.parametrize("keys", [17, 18, 19, 20])
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_of_a_short_last_block(backend: BackendName, keys: int) -> None:
    """Trap 5. Its mean is that of its own tokens, and exp(0) of what is behind them is not added, in the backward neither."""
    x = drawn(keys=keys)
    found, sel = call(chosen("1e30 if w == 4 else sum[d](q * mk)", backend=backend), x)
    means = x[0] @ blocks_of(x[1]).mT
    wanted = means.index_fill(-1, torch.tensor([4]), 1e30).sort(dim=-1, descending=True, stable=True).indices[..., :2]
    assert torch.equal(sel, wanted)
    agree(found, attend(x, holds(sel, keys)), x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dirty_padding_of_queries_and_of_what_comes_back_to_them(backend: BackendName) -> None:
    """Trap 5. Rows behind the length hold no numbers, in the gradient of the output neither: nothing of them reaches a key."""
    x, lengths = drawn(), torch.tensor([9, 5])
    attention = chosen(seen=f"{CHOSEN} and i < length[b]", backend=backend)
    behind = (torch.arange(13) >= lengths[:, None])[:, None, :, None]
    back = torch.randn(2, 2, 13, WIDTH, dtype=torch.float64)
    clean, dirty = (
        torch.autograd.grad(call(attention, [q, *x[1:]], lengths)[0], x, given, allow_unused=True)
        for q, given in (
            (x[0], back.masked_fill(behind, 0)),
            (x[0].masked_fill(behind, math.nan), back.masked_fill(behind, math.nan)),
        )
    )
    for a, b in zip(clean[1:], dirty[1:], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_slots_than_candidates(backend: BackendName) -> None:
    """Trap 6. All are chosen, which is dense attention; the rest of the slots does not exist."""
    x = drawn()
    found, sel = call(chosen(slots=9, backend=backend), x)
    assert (sel[..., 5:] == -1).all()
    assert torch.equal(sel[..., :5].sort(-1).values, torch.arange(5).expand(2, 2, 13, 5))
    agree(found, attend(x, torch.ones(13, 19, dtype=torch.bool)), x)


def test_the_count_of_a_padded_length() -> None:
    """Trap 6. Blocks behind the length are no candidates: what stands there changes nothing."""
    x = drawn()
    attention = chosen(f"{MEANS} where w * 4 < length[b]", f"{CHOSEN} and j < length[b]", 9)
    found, sel = call(attention, x, torch.tensor([8, 8]))
    assert (sel[..., 2:] == -1).all()
    other = [x[0], *(y.detach().clone() for y in x[1:])]
    for y in other[1:]:
        y[:, :, 8:] = 1e6
    torch.testing.assert_close(call(attention, other, torch.tensor([8, 8]))[0], found)
    agree(found, attend(x, (torch.arange(19) < 8).expand(13, 19)), x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_count_of_one_row_used_for_another(backend: BackendName) -> None:
    """Trap 6."""
    x, count = drawn(), torch.arange(26).reshape(2, 13) % 5
    found, sel = call(chosen(seen="j // 4 in kept[i]", slots=4, backend=backend), x, count=count)
    taken = torch.where(torch.arange(4) < count[:, None, :, None], sel, -1)
    agree(found, attend(x, holds(taken, 19)), x)


@pytest.mark.parametrize(
    "ranked", [f"{MEANS} where w * 4 + 3 <= i", "1e30 if w == i // 4 else sum[d](q * mk) where w * 4 <= i"]
)
def test_the_future_leaks_through_finite_mask_values_or_the_mean_of_the_own_block(ranked: str) -> None:
    """Trap 7. Row by row: other tokens behind a row change nothing of it. Early rows have fewer blocks than slots."""
    attention, x = chosen(ranked, f"{CHOSEN} and j <= i", 3), drawn(19, 19)
    found, sel = call(attention, x)
    for row in range(18):
        other = [y.detach().clone() for y in x]
        for y in other:
            y[:, :, row + 1 :] = torch.randn_like(y[:, :, row + 1 :]) * 100
        again = call(attention, other)
        assert torch.equal(again[1][:, :, : row + 1], sel[:, :, : row + 1])
        torch.testing.assert_close(again[0][:, :, : row + 1], found[:, :, : row + 1])


@pytest.mark.parametrize("past", [True, False])
def test_the_future_leaks_where_queries_are_chosen(past: bool) -> None:
    """Trap 7. A token that is among the best of all queries knows of later ones, by its definition; among those up to itself it does not."""
    text = """attention taken over b, h {
      rank i: query; rank x: query = Nq; rank j: key; rank n: feature = 3; rank d, e: feature
      in q[b, h, i, d]
      in k[b, h, j, d]
      in v[b, h, j, e]
      qs[i, n] = topk[x -> n](sum[d](q[b, h, x, d] * q[b, h, x, d]) WHERE)
      s = sum[d](q * k) where i in qs[i] and j <= i
      o[i, e] = sum[j](softmax[j](s) * v)
      out o
    }"""
    attention = einfuse.compile(text.replace("WHERE", "where x <= i" if past else ""), backend="torch")
    x = [y.detach() for y in drawn(13, 13)]
    other = [y.clone() for y in x]
    other[0][:, :, 9:] *= 100
    found, again = attention(*x), attention(*other)
    assert isinstance(found, Tensor)
    assert isinstance(again, Tensor)
    assert torch.equal(found[:, :, :9], again[:, :, :9]) is past


def test_sinks_that_are_not_chosen() -> None:
    """Traps 8 and 11. The first block, a column of the map and no row of it, is in every list, however little its keys agree with a query."""
    x = drawn(40, 40)
    with torch.no_grad():
        x[0][..., 0], x[1][:, :, :4, 0] = 1, -50
    found, sel = call(chosen("1e30 if w == 0 else sum[d](q * mk) where w * 4 <= i", f"{CHOSEN} and j <= i", 3), x)
    assert (sel[..., 0] == 0).all()
    agree(found, attend(x, holds(sel, 40) & (torch.arange(40) <= torch.arange(40)[:, None])), x)


def test_an_exact_forward_with_a_wrong_backward() -> None:
    """Trap 8."""
    x = [y[:1, :1, :6] for y in drawn()]
    x = [y.detach().requires_grad_() for y in x]
    attention = chosen(f"{MEANS} where w * 4 <= i", f"{CHOSEN} and j <= i", 1)
    assert torch.autograd.gradcheck(lambda *y: call(attention, [*y])[0], x)


def test_sequences_of_unequal_lengths() -> None:
    """Trap 10. Each has the result that it has alone."""
    x = drawn(12, 12, 3)
    lengths = torch.tensor([12, 4, 8])
    found, _ = call(chosen(f"{MEANS} where w * 4 < length[b]", f"{CHOSEN} and j < length[b] and j <= i"), x, lengths)
    for n, size in enumerate(lengths.tolist()):
        alone = [y[n : n + 1, :, :size] for y in x]
        torch.testing.assert_close(found[n : n + 1, :, :size], call(chosen(seen=f"{CHOSEN} and j <= i"), alone)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_buffers_of_an_earlier_call(backend: BackendName) -> None:
    """Trap 10. Longer calls follow shorter ones, and the other way round."""
    attention = chosen(seen="j // 4 in kept[i]", slots=4, backend=backend)
    for queries, keys in ((5, 7), (30, 61), (3, 19)):
        x = drawn(queries, keys)
        found, sel = call(attention, x)
        agree(found, attend(x, holds(sel, keys)), x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_window_that_is_no_multiple_of_the_block_beside_the_choice(backend: BackendName) -> None:
    """Trap 10."""
    x = drawn()
    found, sel = call(chosen(f"{MEANS} where w * 4 <= i", f"j <= i and (i - j < 5 or {CHOSEN})", backend=backend), x)
    rows, keys = torch.arange(13)[:, None], torch.arange(19)
    agree(found, attend(x, (keys <= rows) & ((rows - keys < 5) | holds(sel, 19))), x)


def test_a_tied_block_in_neither_part() -> None:
    """Trap 11. What is in the list and what is not are all blocks, also where several are as good as the last that is chosen."""
    x, other = drawn(), f"not ({CHOSEN})"
    one, two = (call(chosen("w % 2", seen), x)[0] for seen in (CHOSEN, other))
    sel = torch.tensor([1, 3]).expand(2, 2, 13, 2)
    torch.testing.assert_close(one, attend(x, holds(sel, 19)))
    torch.testing.assert_close(two, attend(x, ~holds(sel, 19)))
