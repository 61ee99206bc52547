"""How the attentions of models run within `einfuse.distributed.use`: what that block says, and what integrations ask.

It holds for the whole process and all of its threads: a backward pass with checkpointing computes forward passes again, in threads of torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Run = Callable[..., Any]
BLOCKS: list[Callable[[Any], Run]] = []
"""Of the open blocks, the innermost last: an attention -> what is called in its place."""


def spread() -> bool:
    """Whether queries and keys of a call are this device's part of them."""
    return bool(BLOCKS)


def runner(attention: Any) -> Run:
    """What a call of the attention calls."""
    return BLOCKS[-1](attention) if BLOCKS else attention


def alone(what: str) -> None:
    """Raises ValueError within a block, for what knows one device only."""
    if BLOCKS:
        raise ValueError(
            f"einfuse.distributed.use: {what} would see this device's tokens alone, and is not available over devices"
        )
