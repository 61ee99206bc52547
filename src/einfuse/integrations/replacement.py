"""A block of code in which torch's own attention is einfuse's: for the thread or task that enters it, and for nobody else.

`torch.nn.functional` gets properties in place of three attributes. A property looks whether its caller is in a block: outside of all
blocks it gives what torch has there. So nothing is replaced and put back, and what one thread does another never sees. torch.compile
guards on such an attribute as on any other: compiled code is compiled again where the answer is another one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from einfuse.integrations.sdpa import scaled_dot_product_attention
from einfuse.runtime.backends import BACKENDS, BackendName, named

Function = Callable[..., Any]


@contextmanager
def replace_sdpa(backend: BackendName | None = None) -> Iterator[None]:
    """Inside, torch.nn.functional.scaled_dot_product_attention is einfuse's, and so is what nn.MultiheadAttention calls with
    ``need_weights=False`` (nn.TransformerEncoderLayer and its kind do); with ``need_weights=True`` it materialises its weights itself.

    It holds for the thread or the asyncio task that enters, whatever others do meanwhile; blocks nest, the innermost one counts. A
    thread that is started inside starts outside of the block: torch's threads for backward passes on GPUs are such, and with
    checkpointing they compute forward passes again. A generator that yields inside leaves the block on. Code that imported the function
    by name before keeps torch's. Compiled code may be called inside and outside; a block that is entered in compiled code is a graph
    break. Raises EinfuseError for a back end that does not exist.
    """
    if torch.compiler.is_dynamo_compiling():
        torch._dynamo.graph_break(msg="einfuse.integrations.replace_sdpa: enter it around the call of the compiled function")
    _install()
    block = _Block(_replaced(backend))
    _BLOCKS.set((*_open_blocks(), block))
    try:
        yield
    finally:
        block.open = False  # also where another context is left than was entered: generators may be closed anywhere
        _BLOCKS.set(_open_blocks())


@dataclass(eq=False, slots=True)
class _Block:
    replaced: _Replaced
    open: bool = True


_BLOCKS: ContextVar[tuple[_Block, ...]] = ContextVar("einfuse_replace_sdpa", default=())
"""The blocks that this context has entered, the innermost one last."""


def _open_blocks() -> tuple[_Block, ...]:
    return tuple(b for b in _BLOCKS.get() if b.open)


class _Inside:
    """An attribute of a module, which is another one inside a block."""

    def __init__(self, other: Callable[[_Replaced], Function]) -> None:
        self.other = other

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, module: ModuleType, owner: type) -> Function:
        blocks = _open_blocks()
        return self.other(blocks[-1].replaced) if blocks else vars(module)[self.name]

    def __set__(self, module: ModuleType, value: Function) -> None:
        vars(module)[self.name] = value


_STOCK: Function = functional.scaled_dot_product_attention
_MULTI_HEAD = functional.multi_head_attention_forward
assert isinstance(_MULTI_HEAD, FunctionType), "torch has it in Python"


class _Replaced:
    """What calls einfuse on one back end. (torch.compile takes functions alone, no partial ones, and made before it traces.)"""

    def __init__(self, backend: BackendName | None) -> None:
        def ours(*args: Any, **kwargs: Any) -> torch.Tensor:
            return scaled_dot_product_attention(*args, **kwargs, backend=backend)

        def attribute(*args: Any, **kwargs: Any) -> torch.Tensor:
            now = functional.scaled_dot_product_attention
            return (ours if now is attribute else now)(*args, **kwargs)

        self.ours = ours
        self.attribute = attribute
        """`ours` inside a block. Kept and called after it (an import by name inside it), it is torch's again."""
        self.multi_head = _multi_head(attribute)


def _multi_head(attention: Function) -> Function:
    """torch's function behind nn.MultiheadAttention, calling this one: it looks in its globals, where no property is."""
    names = {**_MULTI_HEAD.__globals__, "scaled_dot_product_attention": attention}
    made = FunctionType(_MULTI_HEAD.__code__, names, "multi_head_attention_in_block", _MULTI_HEAD.__defaults__)
    made.__kwdefaults__ = _MULTI_HEAD.__kwdefaults__
    made.__module__ = __name__  # torch's caches of compiled code know functions by their names
    return made


_REPLACED = {name: _Replaced(name) for name in (None, *BACKENDS)}


def _replaced(backend: BackendName | None) -> _Replaced:
    return _REPLACED[backend if backend is None else named(backend).name]


def _never() -> bool:
    return False


@functools.cache
def _install() -> None:
    """Turns the attributes into properties, once and for ever: outside of all blocks they are what they were."""
    torch.overrides.get_overridable_functions()  # torch looks at its attributes once, and not first inside a block
    inside: dict[ModuleType, dict[str, Callable[[_Replaced], Function]]] = {
        functional: {
            "scaled_dot_product_attention": lambda x: x.attribute,
            "multi_head_attention_forward": lambda x: x.multi_head,
        },
        torch.backends.mha: {"get_fastpath_enabled": lambda _: _never},
    }
    for module, names in inside.items():
        module.__class__ = type("ModuleWithBlocks", (type(module),), {n: _Inside(other) for n, other in names.items()})


class InsideCompiled(TorchFunctionMode):
    """The block for code that torch.compile traces the entering of: it follows modes, and no context variables. Nothing of it is left in
    the compiled code. The function itself is einfuse's; nn.MultiheadAttention may take its fast path.
    """

    def __init__(self, backend: BackendName | None) -> None:
        super().__init__()
        self.ours = _replaced(backend).ours

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (self.ours if func is _STOCK else func)(*args, **(kwargs or {}))
