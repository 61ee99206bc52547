"""Backward kernels cut behind their sums: the two parts one after the other are the whole."""

from __future__ import annotations

from dataclasses import replace

import corpus
import pytest
import torch

from einfuse.ir import Cascade, interpret
from einfuse.ir.nodes import Einsum
from einfuse.ir.passes import canonicalise, differentiate, tail
from einfuse.ir.text import parse, show


def rows(name: str) -> Cascade:
    canonical = canonicalise.run(corpus.cascade(name))
    wanted = [t.name for t in canonical.inputs if t.dtype == "float" and not t.param]
    return next(c for c, _ in differentiate.run(canonical, wanted).cascades if c.name == f"{name}_rows")


@pytest.mark.parametrize("name", ["cosine", "rotary"])
def test_sums_then_tail_are_the_whole(name: str) -> None:
    whole = rows(name)
    cut = tail.run(whole)
    assert cut is not None
    sums, rest = cut
    x = corpus.inputs(whole, seed=5)
    wanted = interpret(whole, x, corpus.SIZES)
    handed = interpret(sums, x, corpus.SIZES)
    found = handed | interpret(rest, x | handed, corpus.SIZES)
    for n, value in wanted.items():
        torch.testing.assert_close(found[n], value, rtol=0, atol=0)
    assert not canonicalise.fold_ranks(rest)
    assert all(y.over for y in sums.body if isinstance(y, Einsum) and y.target in sums.outs)
    assert all(parse(show(c)) == c for c in cut)


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "biases", "places"])
def test_sums_alone_have_no_tail(name: str) -> None:
    assert tail.run(rows(name)) is None


def test_what_follows_over_pairs_is_no_tail() -> None:
    weights = replace(corpus.cascade("weights"), outs=("o", "a"))
    assert tail.run(canonicalise.run(weights)) is None
