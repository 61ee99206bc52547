"""Every pass keeps the meaning of every cascade of the corpus; text and verifier agree with each stage."""

from __future__ import annotations

from dataclasses import replace

import corpus
import pytest
import torch
from narrowed import flat

import einfuse
from einfuse.dsl import compile_text
from einfuse.ir import Cascade, Fold, SpecError, derivation, interpret
from einfuse.ir.merging import merge_law
from einfuse.ir.passes import canonicalise, online_fuse, pipeline, split
from einfuse.ir.text import parse, show

NAMES = list(corpus.BODIES)


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_means_the_same_and_round_trips(name: str) -> None:
    built = corpus.cascade(name)
    x = corpus.inputs(built)
    truth = interpret(built, x, corpus.SIZES)

    def check(stage: str, c: Cascade) -> None:
        assert parse(show(c)) == c, stage
        found = interpret(c, x, corpus.SIZES)
        for out, value in truth.items():
            torch.testing.assert_close(found[out], value, rtol=1e-10, atol=1e-10, msg=f"{out} after {stage}")

    pipeline.run(built, 4, 2, observe=check)


@pytest.mark.parametrize("name", NAMES)
def test_passes_are_as_few_as_the_algebra_allows(name: str) -> None:
    canonical = canonicalise.run(corpus.cascade(name))
    found = derivation.derive(canonical, "j")
    assert found.passes == corpus.BODIES[name][1]
    fused = online_fuse.run(canonical)
    assert sum(isinstance(x, Fold) for x in fused.body) == found.passes


@pytest.mark.parametrize("name", NAMES)
def test_states_merge_in_any_blocks_and_order(name: str) -> None:
    built = corpus.cascade(name)
    merge_law(online_fuse.run(canonicalise.run(built)), corpus.SIZES, corpus.inputs(built, seed=1))


def test_a_wrong_carry_is_caught() -> None:
    fused = online_fuse.run(canonicalise.run(corpus.cascade("softmax")))
    (at,) = [n for n, x in enumerate(fused.body) if isinstance(x, Fold)]
    text = show(fused).replace("carry l[i] * exp(m[i] - m'[i])", "carry l[i] * exp(m'[i] - m[i])")
    broken = parse(text)
    assert broken != fused
    assert isinstance(broken.body[at], Fold)
    with pytest.raises(AssertionError, match="a carry is wrong"):
        merge_law(broken, corpus.SIZES, corpus.inputs(fused))


def test_softmax_carries_the_maximum_and_defers_the_sum() -> None:
    decisions = derivation.derive(canonicalise.run(corpus.cascade("softmax")), "j").decisions
    assert {(d.statistic, d.reader, d.how, d.proof) for d in decisions} == {
        ("m", "l", "carry", "proven"),
        ("m", "o", "carry", "proven"),
        ("l", "o", "defer", "exact"),
    }


def test_a_function_of_a_sum_is_cut() -> None:
    decisions = derivation.derive(canonicalise.run(corpus.cascade("reweighted")), "j").decisions
    assert ("l", "z") in {(d.statistic, d.reader) for d in decisions if d.how == "cut"}


def test_strict_refuses_a_sampled_carry() -> None:
    canonical = canonicalise.run(corpus.cascade("softpick"))
    if all(d.proof != "sampled" for d in derivation.derive(canonical, "j").decisions):
        pytest.skip("sympy proves every carry of this cascade")
    with pytest.raises(SpecError, match="sampling, not proven"):
        online_fuse.run(canonical, strict=True)


def test_an_output_along_three_sequences_is_refused() -> None:
    text = """attention triples over b, h { rank i: query; rank j: key; rank w: key = (Nk + 1) // 2; rank d: feature
      in q[b, h, i, d]; in k[b, h, j, d]; in c[b, h, w, d]; s = sum[d](q * k); t[i, j, w] = s * sum[d](q * c); out t }"""
    with pytest.raises(SpecError, match="the output t has points along i, j, w"):
        pipeline.run(compile_text(text))


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "standardised", "softpick", "sink"])
@pytest.mark.parametrize("parts", [1, 3, 7])
def test_split_and_merge_is_the_whole(name: str, parts: int) -> None:
    built = corpus.cascade(name)
    x = corpus.inputs(built, seed=2)
    truth = interpret(built, x, corpus.SIZES)
    found = split.run(built)
    ends = torch.linspace(0, corpus.SIZES["Nk"], parts + 1).long()
    given = {**x, "bounds": torch.stack([ends[:-1], ends[1:]], 1), **split.constants(found.sizes, corpus.SIZES)}
    sizes = {**corpus.SIZES, "Parts": parts}
    states = {found.held[n]: value for n, value in interpret(found.partial, given, sizes).items()}
    merged = {found.held[n]: value for n, value in interpret(found.merge, given | states, sizes).items()}
    for outs in (interpret(found.merged, given | states, sizes), interpret(found.finalise, given | merged, sizes)):
        for out, value in truth.items():
            torch.testing.assert_close(outs[out], value, rtol=1e-10, atol=1e-10)
    for c in (found.partial, found.merge, found.finalise, found.merged):
        pipeline.run(c, 16, 16)  # verifies at every stage


def test_two_passes_cannot_be_split() -> None:
    with pytest.raises(SpecError, match="cannot be split: it takes 2 passes"):
        split.run(corpus.cascade("reweighted"))


@pytest.mark.parametrize(("name", "why"), [("combiner", "takes several kernels"), ("linear", "is a scan")])
def test_neither_scans_nor_stages_can_be_split(name: str, why: str) -> None:
    with pytest.raises(SpecError, match=f"{name} cannot be split: it {why}"):
        split.run(einfuse.compile(name).cascade)


def test_fully_masked_rows_are_zero() -> None:
    text = show(corpus.cascade("softmax")).replace("j <= i and", "j + 3 <= i and")
    c = parse(text)
    x = corpus.inputs(c, grad=True)
    out = interpret(pipeline.run(c, 4, 2), x, corpus.SIZES)["o"]
    assert not out[:, :, :3].any()
    truth = interpret(c, x, corpus.SIZES)["o"]
    torch.testing.assert_close(out, truth)
    gradients = torch.autograd.grad(truth.sum(), [v for v in x.values() if isinstance(v, torch.Tensor)])
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("dead", ["i < 3", "i < 3 or j > Nk"])
def test_a_row_of_nothing_has_the_value_of_nothing(dead: str) -> None:
    """Whether the condition that empties it mentions the keys or not: also where it is given out, from kernels too."""
    attention = einfuse.compile(
        f"""attention rows {{
          rank i: query; rank j: key; rank d: feature
          in q[i, d]; in k[j, d]
          s = sum[d](q * k) where not ({dead})
          m = max[j](s)
          lse = m + log(sum[j](exp(s - m)))
          out lse
        }}"""
    )
    q, k = torch.randn(5, 4), torch.randn(6, 4)
    wanted = (q @ k.T).logsumexp(1)
    wanted[:3] = -torch.inf
    torch.testing.assert_close(attention.with_backend("torch")(q, k), wanted)
    given = {"q": q.double(), "k": k.double()}
    torch.testing.assert_close(interpret(attention.cascade, given, {"Nq": 5, "Nk": 6, "D": 4})["lse"].float(), wanted)


def test_a_masked_point_is_never_seen() -> None:
    c = replace(corpus.cascade("softmax"))
    x = corpus.inputs(c)
    v = x["v"]
    assert isinstance(v, torch.Tensor)
    v[:, :, 10] = torch.nan  # key 10 is in the future of all nine queries
    assert torch.isfinite(interpret(c, x, corpus.SIZES)["o"]).all()


def test_a_choice_by_complete_statistics_is_carried_like_what_it_chooses() -> None:
    """The keys above the mean score: one pass for the mean, one for the rest; where nothing is chosen yet, nothing is moved."""
    spec = """attention above_mean over b, h {
      rank i: query; rank j: key; rank d, e: feature
      in q[b, h, i, d]
      in k[b, h, j, d]
      in v[b, h, j, e]
      s = sum[d](q * k)
      t = s where s >= sum[j](s) / size(j)
      o[i, e] = sum[j](softmax[j](t) * v)
      out o
    }"""
    cascade = einfuse.compile(spec).cascade
    assert derivation.count_passes(flat(cascade), "j") == 4
    found = derivation.derive(canonicalise.run(flat(cascade)), "j")
    assert found.passes == 2
    assert {(d.reader, d.how, d.proof) for d in found.decisions if d.statistic == "m"} == {
        ("p_sum", "carry", "proven"),
        ("o", "carry", "proven"),
    }
    x = {"q": torch.randn(1, 2, 9, 3), "k": torch.randn(1, 2, 300, 3), "v": torch.randn(1, 2, 300, 4)}
    sizes = {"B": 1, "H": 2, "Nq": 9, "Nk": 300, "D": 3, "E": 4}
    fused = pipeline.run(cascade)
    torch.testing.assert_close(interpret(fused, x, sizes), interpret(cascade, x, sizes), rtol=1e-12, atol=1e-12)
