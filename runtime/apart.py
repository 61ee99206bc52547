"""Derives a cascade where no transform, mode or tracer of the caller has a say.

A call may be the first of its kind under vmap, inside a gradient of `torch.func` or while torch.compile traces it. What it derives
then evaluates samples with torch, which must be plain tensors. All such states of torch belong to a thread, so it is done on another one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

T = TypeVar("T")


def transformed() -> bool:
    """Whether a transform of `torch.func` or a forward-mode derivative is under way."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def apart(make: Callable[[], T]) -> T:
    """What ``make`` gives, which must not depend on any tensor of the caller. Raises what it raises."""
    if not transformed() and _get_current_dispatch_mode() is None:
        return make()
    made: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            made.append(make())
        except BaseException as error:  # raised again below, on the caller's thread
            raised.append(error)

    thread = threading.Thread(target=run, name="einfuse-derives")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return made[0]
