"""Forward mode through kernels, and gradients of gradients."""

import pytest
import torch
from narrowed import only

import einfuse
from einfuse.runtime.backends import BackendName


def arguments(attn: einfuse.Attention, dtype: torch.dtype, n: int = 9, width: int = 8) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        t.name: torch.randn((1, 2, n, width) if len(t.axes) == 4 else (2,), generator=g, dtype=dtype)
        for t in attn.cascade.inputs
        if not t.param
    }


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("name", ["alibi", "sigmoid"])
def test_jvp_kernels_are_right(name: str, backend: BackendName) -> None:
    attn = einfuse.compile(name, backend=backend)
    x = arguments(attn, torch.float32, 70)
    directions = arguments(attn, torch.float32, 70)
    out, found = attn.jvp(**x, tangents=directions)
    wide = [v.double() for v in x.values()]
    truth, t = torch.autograd.functional.jvp(
        lambda *a: attn.reference(**dict(zip(x, a, strict=True))), tuple(wide), tuple(d.double() for d in directions.values())
    )
    torch.testing.assert_close(only(out).double(), truth, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(only(found).double(), t, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alibi", "softmax1", "sigmoid"])
def test_gradients_of_gradients(name: str) -> None:
    attn = einfuse.compile(name, backend="torch")
    x = {n: v.requires_grad_() for n, v in arguments(attn, torch.float64, 4, 2).items()}
    assert torch.autograd.gradgradcheck(lambda *a: attn(**dict(zip(x, a, strict=True))), list(x.values()))


def test_a_tangent_of_nothing_is_refused() -> None:
    attn = einfuse.compile("sliding_window", backend="torch")
    x = arguments(attn, torch.float32)
    with pytest.raises(TypeError, match="tangents are for k, q, v, found window"):
        attn.jvp(**x, tangents={"window": torch.zeros(())})
    with pytest.raises(TypeError, match="found none"):
        attn.jvp(**x, tangents={})


def test_the_gradient_of_a_matrix_needs_no_matrix_for_every_row() -> None:
    """Projections and tables of features are read by all rows: kernels give out two rows of features, a matrix product adds them up."""
    attention = einfuse.compile(
        """attention projected over b, h {
      rank i: query; rank j: key; rank d, e, r: feature
      in q[b, h, i, d]
      in k[b, h, j, d]
      in v[b, h, j, e]
      in w[h, r, d]
      in u[e, r]
      in t[h]
      s = sum[d](q * k) where j <= i
      g = sigmoid(sum[d](w * q) * t)
      a[i, e] = sum[r](u * g)
      o[i, e] = sum[j](softmax[j](s) * v) * a
      out o
    }""",
        backend="torch",
    )
    for cascade, parts in attention.program.backward_of(("w", "u")).cascades:
        features = {r.name for r in cascade.ranks if r.kind == "feature"}
        assert all(len(features & set(x.ranks)) < 2 for x in cascade.einsums if x.target in cascade.outs)
        assert {p.input for p in parts if p.times is not None} == {p.input for p in parts}
    shapes = {"q": (2, 3, 7, 4), "k": (2, 3, 9, 4), "v": (2, 3, 9, 5), "w": (3, 6, 4), "u": (5, 6), "t": (3,)}
    x = {n: torch.randn(s, dtype=torch.float64, requires_grad=True) for n, s in shapes.items()}
    found, truth = attention(**x), attention.reference(**x, dtype=torch.float64)
    assert isinstance(found, torch.Tensor)
    assert isinstance(truth, torch.Tensor)
    direction = torch.randn_like(truth)
    for g, wanted in zip(*(torch.autograd.grad(o, list(x.values()), direction) for o in (found, truth)), strict=True):
        torch.testing.assert_close(g, wanted, rtol=1e-10, atol=1e-10)
