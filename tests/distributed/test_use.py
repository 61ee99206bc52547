"""`einfuse.distributed.use`: models that know nothing of devices give what one device gives, logits and gradients of all parameters."""

from __future__ import annotations

import functools

import pytest
import torch
from models import TOKENS, batch, beside_fsdp, encoder, layered, llama, over, step
from narrowed import three
from processes import Pool, pool
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional

import einfuse.distributed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "counts", "layout"),
    [
        ("Llama", (9, 1, 13), None),
        ("Llama", None, "zigzag"),
        ("Mistral", (8, 8, 7), None),
        ("Mistral", (8, 8, 7), "styled"),
        ("GptOss", (11, 1, 11), None),
    ],
)
def test_a_model_over_devices_is_the_model(
    devices: Pool, kind: str, counts: tuple[int, ...] | None, layout: str | None
) -> None:
    """One token on a device, tokens dealt from both ends; windows, sinks with gradients, padding."""
    model = llama(kind)
    tokens, real = batch()
    expected, gradients = step(model, tokens, real, torch.arange(TOKENS))
    styled = layout == "styled"  # by `parallelize_module`, attention by attention
    made = devices.run(over, kind=kind, counts=counts, layout=None if styled else layout, styled=styled)
    assert torch.cat([rows for rows, _ in made]).sort().values.tolist() == list(range(TOKENS))
    for rows, found in made:
        live = real[:, rows].bool()
        torch.testing.assert_close(found.pop("logits")[live], expected[:, rows][live], atol=1e-4, rtol=1e-4)
        assert found.keys() == gradients.keys()
        for n, g in gradients.items():
            torch.testing.assert_close(
                found[n], g, atol=1e-4 * max(1.0, g.abs().max().item()), rtol=0, msg=functools.partial("{}: {}".format, n)
            )


def test_torchs_function_over_devices(devices: Pool) -> None:
    q, k, v = torch.randn(3, 1, 2, 9, 4, generator=torch.Generator().manual_seed(0)).unbind()
    leaves = three(x.requires_grad_() for x in (q, k, v))
    expected = functional.scaled_dot_product_attention(*leaves, is_causal=True)
    gradients = torch.autograd.grad((expected * torch.cos(torch.arange(9))[:, None]).sum(), leaves)
    for found in devices.run(layered):
        rows = found["rows"]
        torch.testing.assert_close(found["out"], expected.detach()[:, :, rows], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found["compiled"], found["out"])
        torch.testing.assert_close(found["after"], expected.detach(), atol=1e-5, rtol=1e-5)
        for a, b in zip(found["d"], gradients, strict=True):
            torch.testing.assert_close(a, b[:, :, rows], atol=1e-5, rtol=1e-5)
        assert "a dense mask would be of this device's tokens alone" in found["mask"]
        assert f"found {len(rows)} queries beside 9 keys" in found["cache"]
        assert found["flex"].startswith("einfuse.distributed.use: flex_attention would see this device's tokens alone")
        assert "flash_attn_func" in found["flash"]


def test_beside_fsdp() -> None:
    """Two sequences, each over two processes, and every parameter in halves."""
    tokens, weight = torch.randn(2, 2, 9, 8, generator=torch.Generator().manual_seed(4)).unbind()
    model = encoder()
    expected = model(tokens)
    (expected * weight).sum().backward()
    devices = pool(4)
    try:
        made = devices.run(beside_fsdp, tokens=tokens, weight=weight, counts=(4, 5))
    finally:
        devices.close()
    for rank, found in enumerate(made):
        torch.testing.assert_close(
            found["out"], expected.detach()[rank // 2 : rank // 2 + 1, found["rows"]], atol=1e-5, rtol=1e-5
        )
        for n, p in model.named_parameters():
            torch.testing.assert_close(found[n], p.grad, atol=1e-4, rtol=1e-4, msg=n)


def test_an_axis_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = DeviceMesh.__new__(DeviceMesh)
    monkeypatch.setattr(DeviceMesh, "mesh_dim_names", ("seq", "head"), raising=False)
    with (
        pytest.raises(ValueError, match="the mesh has the axes seq, head, and no 'length'"),
        einfuse.distributed.use(mesh, sequence="length"),
    ):
        pass
