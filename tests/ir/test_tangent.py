"""Forward mode against torch's own, for every cascade of the corpus."""

import corpus
import pytest
import torch
from narrowed import flat

from einfuse.ir import SpecError, interpret
from einfuse.ir.passes import canonicalise, differentiate, pipeline, tangent


@pytest.mark.parametrize("name", corpus.BODIES)
def test_the_tangent_is_torch_s(name: str) -> None:
    built = corpus.cascade(name)
    x = corpus.inputs(built, seed=3)
    along = [t.name for t in built.inputs if t.dtype == "float" and not t.param]
    whole = tangent.run(built, along)
    pipeline.run(whole, 16, 16)  # verifies at every stage
    directions = {n: torch.randn_like(v) for n in along if isinstance(v := x[n], torch.Tensor)}
    found = interpret(whole, {**x, **{tangent.tangent(n): d for n, d in directions.items()}}, corpus.SIZES)

    def outputs(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(interpret(built, {**x, **dict(zip(along, leaves, strict=True))}, corpus.SIZES).values())

    values, tangents = torch.autograd.functional.jvp(outputs, tuple(x[n] for n in along), tuple(directions.values()))
    for n, value, t in zip(built.outs, values, tangents, strict=True):
        torch.testing.assert_close(found[n], value, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(found[tangent.tangent(n)], t, rtol=1e-9, atol=1e-10)


def test_a_maximum_that_only_stabilises_has_no_tangent() -> None:
    canonical = canonicalise.run(corpus.cascade("softmax"))
    assert differentiate.invariant(canonical) == {"m"}
    assert not any(x.target.startswith("m_ties") for x in tangent.run(corpus.cascade("softmax"), ["q"]).body)


def test_a_product_is_refused() -> None:
    from einfuse.dsl import elaborate, parse

    text = """attention f over b { rank i: query; rank j: key; rank d: feature; in q[b, i, d]; in k[b, j, d]
      o[i] = prod[j](sum[d](q * k)); out o }"""
    with pytest.raises(SpecError, match="prod has no derivative"):
        tangent.run(flat(elaborate(parse(text))), ["q"])
