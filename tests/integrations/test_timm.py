"""timm's models patched in one call: same weights, same output, same gradients."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from einfuse.integrations import timm as integration

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the model library's own

MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 4},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)},
    "maxvit_rmlp_pico_rw_256": {"img_size": 32, "depths": (1,), "embed_dim": (32,), "stem_width": 8},
    "nest_tiny": {"img_size": 32, "embed_dims": (16, 32), "num_heads": (2, 4), "depths": (1, 1), "num_levels": 2},
    "pvt_v2_b0": {"depths": (1, 1, 1, 1)},
    "beit_base_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 4},
}


def build(timm: Any, name: str) -> Any:
    """A small model of this name. NesT's own function takes no sizes, so its class is called."""
    if name == "nest_tiny":
        return timm.models.nest.Nest(num_classes=7, **MODELS[name])
    return timm.create_model(name, num_classes=7, **MODELS[name])


@pytest.mark.parametrize("name", MODELS)
def test_a_patched_model_computes_the_same(timm: Any, name: str) -> None:
    model = build(timm, name).eval()
    size = MODELS[name].get("img_size", 32)
    x = torch.randn(2, 3, size, size, requires_grad=True)
    for parameter in model.parameters():  # fresh bias tables are nearly zero: a kernel that ignored them would pass
        torch.nn.init.normal_(parameter, std=0.15) if parameter.ndim == 2 else None
    fused = [m.fused_attn for m in model.modules() if hasattr(m, "fused_attn")]
    expected = model(x)
    direction = torch.randn_like(expected)
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(expected, wanted, direction, allow_unused=True)
    assert integration.patch(model, backend="torch") == len(fused) > 0
    assert integration.patch(model, backend="torch") == len(fused)
    found = model(x)
    scale = max(1.0, expected.abs().max().item())
    assert (found - expected).abs().max() < 1e-4 * scale
    for f, e in zip(torch.autograd.grad(found, wanted, direction, allow_unused=True), gradients, strict=True):
        assert (f is None) == (e is None)
        if e is not None:
            torch.testing.assert_close(f, e, rtol=1e-3, atol=2e-4 * max(1.0, e.abs().max().item()))
    assert integration.unpatch(model) == len(fused)
    assert [m.fused_attn for m in model.modules() if hasattr(m, "fused_attn")] == fused
    assert not any(isinstance(m, integration.Patched) for m in model.modules())


def test_the_example_of_the_page(timm: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")
    example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[1]
    assert "timm.create_model(" in example
    scope: dict[str, Any] = {}
    exec(compile(example.replace("patch(model)", 'patch(model, backend="torch")', 1), "integrations.md", "exec"), scope)
    assert not any(isinstance(m, integration.Patched) for m in scope["model"].modules())


def test_einfuse_is_what_runs(timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("vit_tiny_patch16_224", **MODELS["vit_tiny_patch16_224"]).eval()
    integration.patch(model, backend="torch")

    def refuse(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("einfuse.integrations.sdpa.general", refuse)
    with pytest.raises(ZeroDivisionError):
        model(torch.randn(1, 3, 32, 32))


def test_what_cannot_be_patched_is_said(timm: Any) -> None:
    with pytest.raises(ValueError, match="Linear has no attention module"):
        integration.patch(torch.nn.Linear(2, 2))
    model = timm.create_model("vit_tiny_patch16_224", **MODELS["vit_tiny_patch16_224"], attn_drop_rate=0.25)
    with pytest.raises(ValueError, match=r"blocks.0.attn: attention dropout must be 0, found 0.25"):
        integration.patch(model)
    assert integration.unpatch(model) == 0
