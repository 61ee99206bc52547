"""The canonical form: nothing is lost, and formatting twice changes nothing more."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from einfuse import dsl
from einfuse.ir import SpecError
from einfuse.testing import specs

ROOT = Path(__file__).parents[2]
FILES = [*sorted((ROOT / "library" / "specs").rglob("*.attn")), *sorted((ROOT / "dsl").glob("*.attn"))]

UGLY = '''"""File doc."""
use masks;use masks.causal
# about softmax
def softmax[j](s) { m = max[j](s)  p = exp(s-m)  # trailing
  # own
  return p/sum[j](p) }  # after brace
def f(x)=-x^-2
attention a( w:int=-3,t:enum( a,b )=a )over b,h{  # head

  rank i:query;rank j:key
  rank d,e:feature=64; in q[b,h,i,d] ; in k[b,h//group,j,d]:float optional


  s[i,j]=sum[d]( q*k where d<3 )/sqrt( D )+  # why
     # really
     (1 if t==a else-2)  where not( j<=i ) and masks . causal[ i,j ]
  # last
  out s
  # very last
}
# eof'''

PRETTY = '''"""File doc."""
use masks
use masks.causal
# about softmax
def softmax[j](s) {
  m = max[j](s)
  p = exp(s - m)  # trailing
  # own
  return p / sum[j](p)
}  # after brace

def f(x) = -x ^ -2

attention a(w: int = -3, t: enum(a, b) = a) over b, h {  # head
  rank i: query; rank j: key
  rank d, e: feature = 64
  in q[b, h, i, d]
  in k[b, h // group, j, d]: float optional

  s[i, j] = sum[d](q * k where d < 3) / sqrt(D) +  # why
      # really
      (1 if t == a else -2) where not (j <= i) and masks.causal[i, j]
  # last
  out s
  # very last
}

# eof
'''


def test_an_ugly_text_becomes_pretty() -> None:
    assert dsl.format_text(UGLY) == PRETTY
    assert dsl.format_text(PRETTY) == PRETTY
    assert dsl.parse(PRETTY) == dsl.parse(UGLY)


def test_long_statements_are_broken_outside_brackets_first() -> None:
    text = (
        "attention f {\n  total = "
        + " + ".join(f"sum[j](weight_{n} * value)" for n in range(8))
        + " where first and second\n}\n"
    )
    out = dsl.format_text(text)
    assert max(map(len, out.splitlines())) <= 128
    assert out.splitlines()[2].startswith("      + sum[j](")
    assert out.splitlines()[-2] == "      where first and second"
    assert dsl.format_text(out) == out
    nested = "def f(x) = exp(" + " + ".join(f"argument_number_{n}" for n in range(12)) + ")\n"
    assert max(map(len, dsl.format_text(nested).splitlines())) <= 128
    assert dsl.format_text(dsl.format_text(nested)) == dsl.format_text(nested)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_our_own_files_are_canonical(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert dsl.format_text(text, path.name) == text


@pytest.mark.slow
@given(specs())
@settings(max_examples=60)
def test_drawn_specs(text: str) -> None:
    once = dsl.format_text(text)
    assert dsl.format_text(once) == once
    assert dsl.parse(once) == dsl.parse(text)


def test_an_empty_text() -> None:
    assert dsl.format_text("") == ""
    assert dsl.format_text(" \n# only a comment") == "# only a comment\n"


def test_a_text_with_a_fault_is_refused() -> None:
    with pytest.raises(SpecError, match="unexpected"):
        dsl.format_text("attention {")
