"""Fusing is done once for a cascade, in any process and for all tiles."""

from __future__ import annotations

from typing import Never

import pytest
from narrowed import flat

import einfuse
from einfuse.dsl import compile_text
from einfuse.ir.passes import canonicalise, online_fuse, pipeline
from einfuse.runtime import derived

TEXT = """attention remembered over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  s = sum[d](q * k) * 0.375 where j <= i
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}"""


def test_all_passes_from_a_remembered_fusion() -> None:
    c = compile_text(TEXT)
    for block, step in ((64, 32), (16, 128)):
        assert derived.scheduled(c, block, step) == pipeline.run(c, block, step)


def test_a_second_question_derives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    c = canonicalise.run(flat(compile_text(TEXT)))
    fused, found = derived.fused(c), derived.derivations(c)

    def again(*_: object) -> Never:
        raise AssertionError("derived again")

    monkeypatch.setattr(online_fuse, "derive", again)
    assert derived.fused(c) == fused
    assert [d.decisions for d in derived.derivations(c)] == [d.decisions for d in found]
    with pytest.raises(AssertionError, match="derived again"):
        derived.fused(canonicalise.run(flat(compile_text(TEXT.replace("0.375", "0.125")))))


def test_strict_is_remembered_apart() -> None:
    sampled = TEXT.replace("softmax[j](s) * v", "(exp(s - m) + (relu(s - m) + relu(m - s) - abs(s - m))) * v").replace(
        "  o[i, e]", "  m = max[j](s)\n  o[i, e]"
    )
    c = compile_text(sampled)
    derived.fused(c)
    with pytest.raises(einfuse.SpecError, match="sampling, not proven"):
        derived.fused(c, strict=True)
