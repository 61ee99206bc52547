"""Forward mode through kernels, and gradients of gradients."""

import pytest
import torch

import einfuse
from einfuse.runtime.backends import BackendName


def arguments(attn: einfuse.Attention, dtype: torch.dtype, n: int = 9) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        t.name: torch.randn((1, 2, n, 8) if len(t.axes) == 4 else (2,), generator=g, dtype=dtype)
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
    torch.testing.assert_close(out.double(), truth, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.double(), t, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alibi", "softmax1", "sigmoid"])
def test_gradients_of_gradients(name: str) -> None:
    attn = einfuse.compile(name, backend="torch")
    x = {n: v.requires_grad_() for n, v in arguments(attn, torch.float64, 4).items()}
    assert torch.autograd.gradgradcheck(lambda *a: attn(**dict(zip(x, a, strict=True))), list(x.values()))


def test_a_tangent_of_nothing_is_refused() -> None:
    attn = einfuse.compile("sliding_window", backend="torch")
    x = arguments(attn, torch.float32)
    with pytest.raises(TypeError, match="tangents are for k, q, v, found window"):
        attn.jvp(**x, tangents={"window": torch.zeros(())})
    with pytest.raises(TypeError, match="found none"):
        attn.jvp(**x, tangents={})
