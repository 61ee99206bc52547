"""Models of timm on einfuse, in one call: the same weights, the same output.

    model = timm.create_model("swin_tiny_patch4_window7_224")
    einfuse.integrations.timm.patch(model)

timm's attention modules say by their attribute ``fused_attn`` that they can call torch's scaled_dot_product_attention, relative position
biases and window masks included; each such module is told to, and finds einfuse's there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from einfuse.integrations.replacement import InsideCompiled, replace_sdpa
from einfuse.runtime.backends import BackendName

Attention = TypeVar("Attention", bound=nn.Module)


def patch(model: nn.Module, *, backend: BackendName | None = None) -> int:
    """Every attention of the model by an einfuse kernel; returns how many there are. Patching again changes the back end alone.

    Copies of the model, pickled ones too, are patched and compute with their own weights. Raises ValueError where the model has no
    attention that can be replaced, one that drops attention weights in training, or one whose ``forward`` something else has replaced.
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
        if "forward" in vars(module):
            raise ValueError(f"{name}: its `forward` was replaced by {vars(module)['forward']}; patch the model before that")
    for _, module in found:
        if not isinstance(module, Patched):
            cast(Patched, module)._einfuse_stock = module.fused_attn
            module.fused_attn = True
            module.__class__ = _patched(type(module))
        cast(Patched, module)._einfuse_backend = backend
    return len(found)


def unpatch(model: nn.Module) -> int:
    """Undoes `patch`, on a copy too; returns how many attentions were its."""
    patched = [m for m in model.modules() if isinstance(m, Patched)]
    for module in patched:
        if type(module).__bases__[0] is not Patched:
            raise ValueError(f"the class {type(module).__name__} was changed after `patch`: undo that before `unpatch`")
        module.fused_attn = module._einfuse_stock
        del module._einfuse_stock, module._einfuse_backend
        module.__class__ = type(module).__bases__[1]
    return len(patched)


class Patched(nn.Module if TYPE_CHECKING else object):  # type: ignore[misc]  # a base before that of the stock class
    """What the class of a patched module has before its stock class. The module itself holds data alone, so copies stand on their own:
    ``_einfuse_backend``, and in ``_einfuse_stock`` what ``fused_attn`` was before.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        block = InsideCompiled if torch.compiler.is_dynamo_compiling() else replace_sdpa
        with block(self._einfuse_backend):
            return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """As the stock class, by whose name it can be found again."""
        make, args, *rest = super().__reduce_ex__(protocol)
        stock = type(self).__bases__[1]
        return (_remade, (make, *(stock if x is type(self) else x for x in args)), *rest)


def _patched(stock: type[Attention]) -> type[Attention]:
    """The class with `Patched` before it: the one there is, or made."""
    for made in stock.__subclasses__():
        if made.__bases__ == (Patched, stock):
            return made
    names = {n: getattr(stock, n) for n in ("__module__", "__qualname__", "__doc__")}
    return type(stock.__name__, (Patched, stock), names)


def _remade(make: Callable[..., nn.Module], *args: Any) -> nn.Module:
    """A module of a patched class, from what makes one of the stock class."""
    module = make(*args)
    module.__class__ = _patched(type(module))
    return module
