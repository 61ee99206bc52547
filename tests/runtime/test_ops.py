"""The operators as torch sees them: schemas, fake kernels, autograd, capture, autocast, strides and odd sizes."""

from __future__ import annotations

import pytest
import torch

import einfuse
from einfuse.ir import EinfuseError
from einfuse.runtime import ops

pytestmark = pytest.mark.slow

B, H, G, N, M, D, E = 2, 4, 2, 13, 17, 8, 12


@pytest.fixture(scope="module")
def attn() -> einfuse.Attention:
    return einfuse.compile("alibi_window", window=5)


def tensors(grad: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = [(B, H, N, D), (B, G, M, D), (B, G, M, E), (H,)]
    return [torch.randn(s, generator=g).to(dtype).requires_grad_(grad) for s in shapes]


def test_opcheck_of_forward_and_backward(attn: einfuse.Attention) -> None:
    held = tensors()
    torch.library.opcheck(ops.forward, (attn.key, "", held, [5], [], [True] * 4))
    outs = ops.forward(attn.key, "", held, [5], [], [True] * 4)
    plain = [x.detach() for x in held]
    given = [torch.ones_like(outs[0])]
    torch.library.opcheck(
        ops.backward,
        (attn.key, "", plain, [o.detach() for o in outs], given, [5], [], [True] * 4),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph_equals_eager(attn: einfuse.Attention, dynamic: bool) -> None:
    def loss(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        out = attn(q, k, v, slope=slope, window=3)
        assert isinstance(out, torch.Tensor)
        return (out * out).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for seed in range(2):
        held = tensors(seed=seed)
        expected = torch.autograd.grad(loss(*held), held)
        found = torch.autograd.grad(compiled(*held), held)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_export_runs_and_names_a_missing_spec(attn: einfuse.Attention) -> None:
    class Model(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
            out = attn(q, k, v, slope=slope)
            assert isinstance(out, torch.Tensor)
            return out

    held = tensors(grad=False)
    exported = torch.export.export(Model(), tuple(held))
    torch.testing.assert_close(exported.module()(*held), attn(*held))
    with pytest.raises(EinfuseError, match="compile its spec before"):
        ops.forward("0" * 32, "", held, [5], [], [False] * 4)


def test_meta_tensors_give_shapes(attn: einfuse.Attention) -> None:
    out = attn(*(x.to("meta") for x in tensors(grad=False)))
    assert isinstance(out, torch.Tensor)
    assert out.shape == (B, H, N, E)
    assert out.device.type == "meta"


def test_autocast_narrows(attn: einfuse.Attention) -> None:
    held = tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attn(*held)
    assert isinstance(out, torch.Tensor)
    assert out.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(out.float().sum(), held))


def test_any_strides(attn: einfuse.Attention) -> None:
    held = tensors(grad=False)
    odd = [x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.ndim > 1 else x for x in held]
    spread = [torch.stack([x, x], -1)[..., 0] for x in held]
    torch.testing.assert_close(attn(*odd), attn(*held))
    torch.testing.assert_close(attn(*spread), attn(*held))


@pytest.mark.parametrize(("b", "n", "m"), [(0, 3, 3), (1, 0, 5), (2, 3, 0), (1, 1, 1)])
def test_empty_and_tiny(attn: einfuse.Attention, b: int, n: int, m: int) -> None:
    q, k, v = torch.randn(b, H, n, D), torch.randn(b, G, m, D), torch.randn(b, G, m, E)
    held = [x.requires_grad_() for x in (q, k, v)]
    out = attn(*held, slope=torch.ones(H))
    assert isinstance(out, torch.Tensor)
    assert out.shape == (b, H, n, E)
    torch.testing.assert_close(out, attn.reference(*held, slope=torch.ones(H), dtype=torch.float32))
    for g, x in zip(torch.autograd.grad(out.sum(), held), held, strict=True):
        assert g.shape == x.shape
        assert torch.isfinite(g).all()


def test_only_wanted_gradients(attn: einfuse.Attention) -> None:
    q, k, v, slope = tensors(grad=False)
    slope.requires_grad_()
    out = attn(q, k, v, slope=slope)
    assert isinstance(out, torch.Tensor)
    (g,) = torch.autograd.grad(out.sum(), [slope])
    truth = attn.reference(q, k, v, slope=slope)
    assert isinstance(truth, torch.Tensor)
    torch.testing.assert_close(g, torch.autograd.grad(truth.sum(), [slope])[0])


def test_deterministic_to_the_bit(attn: einfuse.Attention) -> None:
    held = tensors(dtype=torch.bfloat16)
    first = torch.autograd.grad(attn(*held).float().sum(), held)  # type: ignore[union-attr]
    for _ in range(3):
        again = torch.autograd.grad(attn(*held).float().sum(), held)  # type: ignore[union-attr]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_gradcheck_in_float64() -> None:
    attn = einfuse.compile("causal")
    held = [torch.randn(1, 2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda q, k, v: attn(q, k, v), held, eps=1e-6, atol=1e-6)


def test_a_new_number_compiles_nothing(attn: einfuse.Attention) -> None:
    held = tensors(grad=False)
    attn(*held, window=2)
    built = len(attn.program.built)
    attn(*held, window=9)
    assert len(attn.program.built) == built
