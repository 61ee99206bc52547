"""A read outside a tensor is found before any kernel runs, with the point where it happens; a read inside is never blamed."""

from __future__ import annotations

import pytest
import torch

import einfuse
from einfuse.ir.text import parse
from einfuse.runtime.given import Given
from einfuse.runtime.program import Program

TEXT = """cascade demo over b {
  rank b: batch = B
  rank i: query = Nq
  rank j: key = Nk
  in x[B, Nq, Nk]: float
  in table[R]: float
  in page[B, P]: int
  in rows[S]: float
  param width: int = 4
  s[i, j] = x[b, i, j] + table[INDEX] WHERE
  o[i] = sum[j] s[i, j]
  out o
}"""


def check(
    index: str, where: str = "", nq: int = 100, nk: int = 100, r: int = 199, page: list[int] | None = None, width: int = 4
) -> None:
    c = parse(TEXT.replace("INDEX", index).replace("WHERE", where))
    tensors = {
        "x": torch.zeros(2, nq, nk),
        "table": torch.zeros(r),
        "page": torch.tensor([page or [0] * nk] * 2),
        "rows": torch.zeros(3),
    }
    sizes = {"B": 2, "Nq": nq, "Nk": nk, "R": r, "P": nk, "S": 3}
    Program(c).guard(Given(tensors, {"width": width}, sizes))


@pytest.mark.parametrize(
    ("index", "where", "r"),
    [
        ("j - i + Nq - 1", "", 199),
        ("max(min(j - i, 7), -7) + 7", "", 15),
        ("i - j", "where j <= i", 100),
        ("i - j", "where j <= i and i - j < width[]", 4),
        ("j % 3", "", 3),
        ("page[b, j]", "", 1),
    ],
)
def test_reads_inside_pass(index: str, where: str, r: int) -> None:
    check(index, where, r=r)


@pytest.mark.parametrize(
    ("index", "where", "r", "words"),
    [
        ("j - i + Nq", "", 199, ["index 0 of table is j - i + Nq = 199", "i = 0, j = 99", "has 199 entries"]),
        ("i - j", "", 100, ["index 0 of table is i - j = -1", "i = 0, j = 1"]),
        ("i - j", "where j <= i and i - j <= width[]", 4, ["= 4 at i = 4, j = 0", "has 4 entries"]),
        ("j % 5", "", 3, ["= 3 at"]),
    ],
)
def test_reads_outside_name_the_point(index: str, where: str, r: int, words: list[str]) -> None:
    with pytest.raises(ValueError, match="demo: index 0 of table") as caught:
        check(index, where, r=r)
    for word in words:
        assert word in str(caught.value)


def test_the_values_of_a_table_decide() -> None:
    page = [0] * 100
    page[71] = 5
    with pytest.raises(ValueError, match=r"page\[b, j\] = 5 at b = 0, j = 71, but the axis has 5 entries"):
        check("page[b, j]", r=5, page=page)
    check("page[b, j]", r=6, page=page)


@pytest.mark.parametrize(
    "where",
    [
        "where i > 0 and page[b, i - 1] == page[b, j]",
        "where page[b, i - 1] == page[b, j] and i > 0",
        "where not (i == 0 or page[b, i - 1] != page[b, j])",
        "where j == 3 or i >= 1 and page[b, i - 1] == 0",
        "where select(i > 0, page[b, i - 1] == page[b, j], true)",
        "where i > 0 and page[b, i - 1] == 0 and page[b, page[b, i - 1] + i - 1] == 0",
    ],
)
def test_a_condition_guards_the_reads_beside_it(where: str) -> None:
    check("0", where)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("where i > 1 and page[b, i - 3] == 0", "i - 3 = -1 at i = 2"),
        ("where i > 0 or page[b, i - 1] == 0", "i - 1 = -1 at i = 0"),
        ("where select(i > 0, true, page[b, i - 1] == 0)", "i - 1 = -1 at i = 0"),
        ("where page[b, i - 1] == 1 and page[b, j - 1] == 1", "i - 1 = -1 at i = 0"),  # two reads do not excuse each other
        ("where i > 0 and page[b, i - 1] == 0 and page[b, i - 2] == 0", "i - 2 = -1 at i = 1"),
        ("where page[b, i + 1] == 0 and i < Nq - 1 + width[]", "i + 1 = 100 at i = 99"),
    ],
)
def test_a_condition_that_lets_an_outside_read_count_is_reported(where: str, words: str) -> None:
    with pytest.raises(ValueError, match="index 1 of page") as caught:
        check("0", where)
    assert words in str(caught.value).replace("at b = 0, ", "at ")


def test_a_guarded_mask_gives_what_the_cascade_says() -> None:
    """A token sees the document of the one before it, and the first one only itself: whole and empty tiles among others."""
    spec = """attention previous over b, h {
      rank i: query; rank j: key; rank d, e: feature
      in q[b, h, i, d]
      in k[b, h, j, d]
      in v[b, h, j, e]
      in doc[b, Nq]: int
      s = sum[d](q * k) / sqrt(D) where i > 0 and doc[b, i - 1] == doc[b, j] or i == j
      o[i, e] = sum[j](softmax[j](s) * v)
      out o
    }"""
    attention = einfuse.compile(spec, backend="torch")
    given = [torch.randn(1, 1, 600, 8) for _ in range(3)]
    doc = (torch.arange(600) // 290)[None]
    found, truth = attention(*given, doc=doc), attention.reference(*given, doc=doc)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)


def test_the_oracle_reports_what_kernels_report_and_reads_nothing_that_a_condition_excludes() -> None:
    spec = """attention packed over b, h {
      rank i: query; rank j: key; rank d, e: feature
      in q[b, h, i, d]
      in k[b, h, j, d]
      in v[b, h, j, e]
      in doc[b, N]: int
      s = sum[d](q * k) / sqrt(D) where doc[b, i] == doc[b, j] and (j <= i)
      o[i, e] = sum[j](softmax[j](s) * v)
      out o
    }"""
    q, k, v = torch.randn(1, 1, 8, 4), torch.randn(1, 1, 12, 4), torch.randn(1, 1, 12, 4)
    short = torch.arange(8)[None] // 3  # no key after the eighth is seen
    attention = einfuse.compile(spec, backend="torch")
    found, truth = attention(q, k, v, short), attention.reference(q, k, v, short)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)
    open_ended = einfuse.compile(spec.replace("and (j <= i)", "or j <= i"), backend="torch")
    for call in (open_ended, open_ended.reference):
        with pytest.raises(ValueError, match=r"index 1 of doc is j = 8 at .*but the axis has 8 entries"):
            call(q, k, v, short)
