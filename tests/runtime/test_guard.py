"""Reads are looked at again where what decides about them has changed, and only there: the steps of decoding cost no look."""

from __future__ import annotations

import pytest
import torch
from narrowed import only
from noting import noting

import einfuse
from einfuse.runtime import integers, ranges
from einfuse.runtime.given import Given

PAGED = """attention paged_once over b, h {
  rank i: query; rank j: key = table * P; rank d, e: feature
  in q[b, h, i, d]
  in k[pages, P, h, d]
  in v[pages, P, h, e]
  in page[b, table]: int
  in length[b]: int
  s = sum[d](q * k[page[b, j // P], j % P, h, d]) where j <= i + length[b] - Nq
  o[i, e] = sum[j](softmax[j](s) * v[page[b, j // P], j % P, h, e])
  out o
}"""


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was looked at: indices alone, or live points."""
    seen: list[str] = []
    inside, check = ranges.inside, ranges.check
    monkeypatch.setattr(ranges, "inside", noting(seen, lambda *args: "index", inside))
    monkeypatch.setattr(ranges, "check", noting(seen, lambda *args: "points", check))
    return seen


def call(attention: einfuse.Attention, page: torch.Tensor, length: torch.Tensor) -> None:
    q, k, v = torch.randn(2, 2, 1, 8), torch.randn(7, 4, 2, 8), torch.randn(7, 4, 2, 8)
    found, right = attention(q, k, v, page, length), only(attention.reference(q, k, v, page, length))
    torch.testing.assert_close(found, right.float(), rtol=2e-5, atol=2e-6)


@pytest.fixture(params=["torch", pytest.param("cpu", marks=pytest.mark.slow)])
def attention(request: pytest.FixtureRequest) -> einfuse.Attention:
    made = einfuse.compile(PAGED, backend=request.param)
    made.program.guard.indices.clear()
    made.program.guard.points.clear()
    return made


def test_lengths_that_grow_are_not_looked_at_where_every_page_is_there(attention: einfuse.Attention, looks: list[str]) -> None:
    page, length = torch.tensor([[3, 0, 5], [6, 2, 1]]), torch.tensor([1, 4])
    call(attention, page, length)
    assert "index" in looks
    looks.clear()
    for _ in range(8):
        length += 1
        call(attention, page, length)
    assert not looks
    page[0, 1] = 4
    call(attention, page, length)
    assert looks, "another page"


def test_a_page_that_is_not_there_may_be_listed_as_long_as_no_query_reads_it(
    attention: einfuse.Attention, looks: list[str]
) -> None:
    page, length = torch.tensor([[3, 0, -1], [6, 2, 7]]), torch.tensor([8, 8])
    call(attention, page, length)
    call(attention, page, length)
    assert looks.count("points") == 2, "of k and of v, once"
    length[1] = 9
    with pytest.raises(
        ValueError, match=r"index 0 of [kv] is page\[b, j // P\] = 7 at b = 1, i = 0, j = 8, but the axis has 7 entries"
    ):
        call(attention, page, length)
    length[1] = 8
    call(attention, page, length)
    page[1, 2] = 6
    length[1] = 12
    call(attention, page, length)
    page[1, 0] = -1
    with pytest.raises(ValueError, match=r"= -1 at b = 1, i = 0, j = 0"):
        call(attention, page, length)


def test_without_keys_or_rows_nothing_is_read(attention: einfuse.Attention) -> None:
    """And what was not looked at then is looked at later."""
    none = torch.empty(2, 0, dtype=torch.int64)
    q, cache = torch.randn(2, 2, 1, 8), torch.randn(7, 4, 2, 8)
    assert not only(attention(q, cache, cache, none, torch.zeros(2, dtype=torch.int64))).any()
    page, length = torch.tensor([[9], [0]]), torch.tensor([1, 1])
    with pytest.raises(ValueError, match="= 9 at b = 0"):
        attention(q, cache, cache, page, length)


def test_what_fits_is_known_by_bits() -> None:
    """Two calls have one key where they have the same ranges, up to powers of two, and no others do."""
    x = torch.empty(0)
    calls = [
        Given({"x": x}, {"shift": shift, "scale": 0.5}, sizes)
        for shift in (-9, -8, -2, -1, 0, 1, 2, 7, 8)
        for sizes in ({"B": 0, "N": 1}, {"B": 1, "N": 2}, {"N": 1, "B": 2}, {"B": 4, "N": 7}, {"B": 5, "N": 8})
    ]
    tables: list[dict[str, tuple[int, int]]] = [{}, {"x": (0, 3)}, {"x": (-1, 3)}, {"x": (0, 4)}]
    seen: dict[object, tuple[object, ...]] = {}
    for call in calls:
        for table in tables:
            known = integers.Known.of(call, table, integers.rounded)
            ranges_ = (*known.sizes.items(), *known.numbers.items(), *known.tables.items())
            assert seen.setdefault(integers.bits(call, table), ranges_) == ranges_
    assert len({*seen.values()}) == len(seen)


def test_integers_are_looked_at_again_where_a_power_of_two_does_not_fit() -> None:
    """Lengths and numbers up to the next power of two are looked at together; what only the call's own fit is looked at each time."""
    far = einfuse.compile(
        """attention far(shift: int = 0) over b, h {
          rank i: query; rank j: key; rank d: feature
          in q[b, h, i, d]
          in k[b, h, j, d]
          s = sum[d](q * k) where (j + shift) * 65536 >= i
          o[i, d] = sum[j](softmax[j](s) * k)
          out o
        }""",
        backend="torch",
    )
    x = torch.randn(1, 1, 4, 8)
    for shift in (3, 4, 30_000, 32_764):
        torch.testing.assert_close(far(x, x, shift=shift), only(far.reference(x, x, shift=shift)).float(), rtol=2e-5, atol=2e-6)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"from 2147220\d+|to 2147483648"):
            far(x, x, shift=32_765)
    with pytest.raises(ValueError, match="to 2147483648"):
        far(x, torch.randn(1, 1, 5, 8), shift=32_764)
