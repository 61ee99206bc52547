"""Which attentions of a model einfuse computes, and why it does not compute the others."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

NAMES: dict[str, Literal["refuse", "fallback"]] = {}
"""The names under which transformers knows einfuse, and what is done with models that cannot take it (`transformers.register` adds them)."""


@dataclass(frozen=True, slots=True)
class Found:
    """One attention module: its name in the model, its class, whether einfuse computes it, and by what or why not."""

    name: str
    kind: str
    replaced: bool
    why: str


class Report(tuple[Found, ...]):
    """The attentions of a model, in the order of its modules. Printed, it is a table."""

    @property
    def replaced(self) -> tuple[Found, ...]:
        """Those that einfuse computes."""
        return tuple(x for x in self if x.replaced)

    @property
    def left(self) -> tuple[Found, ...]:
        """Those that it does not."""
        return tuple(x for x in self if not x.replaced)

    def __str__(self) -> str:
        rows = [(x.name or ".", x.kind, "einfuse" if x.replaced else "not", x.why) for x in self]
        widths = [max(len(r[n]) for r in rows) for n in range(3)] if rows else []
        lines = ["  ".join((*(c.ljust(w) for c, w in zip(r, widths, strict=False)), r[3])) for r in rows]
        return "\n".join([f"einfuse computes {len(self.replaced)} of {len(self)} attentions", *lines])


def report(model: nn.Module) -> Report:
    """Each attention of the model: whether einfuse computes it, and by what or why not.

    Known are modules that call the attention registry of transformers, timm's with a switch ``fused_attn``, torch's
    `nn.MultiheadAttention`, layers that hold an `einfuse.Attention`, and else any module without such a part whose class is named for
    attention. What a function calls, outside of modules, is not seen.
    """
    found: dict[str, Found] = {}
    for name, module in model.named_modules():
        verdict = _verdict(module)
        if verdict is not None:
            found[name] = Found(name, type(module).__name__, *verdict)
    for name, module in reversed(list(model.named_modules())):  # parts before what they are in
        within = any(n == name or n.startswith(f"{name}." if name else "") for n in found)
        if not within and re.search("attn|attention", type(module).__name__, re.IGNORECASE):
            found[name] = Found(name, type(module).__name__, False, "computes its weights by its own code")
    return Report(found[n] for n, _ in model.named_modules() if n in found)


def _verdict(module: nn.Module) -> tuple[bool, str] | None:
    """Whether einfuse computes what this module attends, and by what or why not; None for a module that is not known to attend."""
    from einfuse.runtime.attention import Attention

    if any(isinstance(x, Attention) for x in vars(module).values()):
        return True, "a layer of einfuse"
    if "ALL_ATTENTION_FUNCTIONS" in _names(module):
        return _of_transformers(module)
    if isinstance(getattr(module, "fused_attn", None), bool):
        if any(n.startswith("_einfuse") for n in vars(module)):
            return True, "by integrations.timm.patch"
        return False, "a module of timm that integrations.timm.patch would replace"
    if isinstance(module, nn.MultiheadAttention):
        return False, "inside integrations.replace_sdpa() and with need_weights=False einfuse computes it"
    return None


def _of_transformers(module: nn.Module) -> tuple[bool, str]:
    config: Any = getattr(module, "config", None)
    chosen = getattr(config, "_attn_implementation", None)
    if chosen in NAMES:
        return True, f'attn_implementation="{chosen}"'
    return (
        False,
        f'attn_implementation="{chosen}"; model.set_attn_implementation("{next(iter(NAMES), "einfuse")}") would replace it',
    )


def _names(module: nn.Module) -> set[str]:
    """The global names that the module's forward reads, below whatever decorates it."""
    forward = inspect.unwrap(type(module).forward)
    return set(_all_names(getattr(forward, "__code__", None)))


def _all_names(code: Any) -> Iterator[str]:
    if code is not None:
        yield from code.co_names
        for inner in code.co_consts:
            if inspect.iscode(inner):
                yield from _all_names(inner)
