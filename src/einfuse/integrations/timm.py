"""Models of timm on einfuse, in one call: the same weights, the same output.

    model = timm.create_model("swin_tiny_patch4_window7_224")
    einfuse.integrations.timm.patch(model)

timm's attention modules say by their attribute ``fused_attn`` that they can call torch's scaled_dot_product_attention, relative position
biases and window masks included; each such module is told to, and finds einfuse's there.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from einfuse.integrations.sdpa import replace_sdpa
from einfuse.runtime.backends import BackendName

KEPT = "_einfuse_fused_attn"


def patch(model: nn.Module, *, backend: BackendName | None = None) -> int:
    """Every attention of the model by an einfuse kernel; returns how many there are. Patching twice changes nothing more.

    Raises ValueError where the model has no attention that can be replaced, or one that drops attention weights in training.
    """
    found = [(n, m) for n, m in model.named_modules() if isinstance(getattr(m, "fused_attn", None), bool)]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no attention module with `fused_attn`: its attention is not scaled dot products, or not timm's"
        )
    for name, module in found:
        rate = getattr(getattr(module, "attn_drop", None), "p", 0.0)
        if rate:
            raise ValueError(f"{name}: attention dropout must be 0, found {rate}: the fused kernels have none")
    for _, module in found:
        if not hasattr(module, KEPT):
            _patch_one(module, backend)
    return len(found)


def unpatch(model: nn.Module) -> int:
    """Undoes `patch`; returns how many attentions were its."""
    patched = [m for m in model.modules() if hasattr(m, KEPT)]
    for module in patched:
        module.fused_attn = getattr(module, KEPT)
        delattr(module, KEPT)
        del module.__dict__["forward"]  # the class's own shows again
    return len(patched)


def _patch_one(module: nn.Module, backend: BackendName | None) -> None:
    stock = module.forward
    setattr(module, KEPT, module.fused_attn)
    module.fused_attn = True  # type: ignore[assignment]  # nn.Module calls attributes tensors or modules

    @functools.wraps(stock)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with replace_sdpa(backend):
            return stock(*args, **kwargs)

    module.forward = forward  # of this instance alone
