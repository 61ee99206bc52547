"""Masks of transformers' models: tensors of booleans to whoever reads them, formulas to our kernels.

A mask that is a band of the plane of positions, or chunks of it, is known by its mask function. What `mask` gives for it carries its
`Pattern`, and writes its booleans out where something else than our attention reads it: no model holds Nq x Nk of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from einfuse.runtime.apart import transformed

ADDED: set[type] = set()
"""Configurations of models that transformers does not run with sdpa: they know masks as floats to add to scores, and may do arithmetic on
them (DeepSeek V4 appends columns of zeros)."""

MARK = "_einfuse_pattern"
"""The attribute of a mask that holds its `Pattern`. Copies and views have none, and are the booleans they are."""

Index = torch.Tensor


@dataclass(frozen=True, slots=True)
class Band:
    """A mask function of transformers: the pairs of positions that lie close enough."""

    causal: bool = False
    window: int | None = None
    both: bool = False

    def __call__(self, b: Index, h: Index, q: Index, k: Index) -> torch.Tensor:
        seen = k <= q if self.causal else q >= 0
        if self.window is not None:
            seen = seen & (k > q - self.window)
            seen = seen & (k < q + self.window) if self.both else seen
        return seen


@dataclass(frozen=True, slots=True)
class Chunks:
    """A mask function of transformers: causal in chunks, which are counted from the first real token of a row."""

    size: int
    first: torch.Tensor

    def __call__(self, b: Index, h: Index, q: Index, k: Index) -> torch.Tensor:
        return ((k - self.first[b]) // self.size == (q - self.first[b]) // self.size) & (k <= q)

    def numbers(self, start: int, length: int) -> torch.Tensor:
        """The chunk [b, n] of every position from ``start`` on."""
        at = torch.arange(start, start + length, device=self.first.device)
        return ((at - self.first[:, None]) // self.size).int()


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """What a mask stands for: a band whose first query stands beside key ``shift``, and inputs of the spec: pad, qdoc, kdoc."""

    band: Band
    shift: int
    tensors: Mapping[str, torch.Tensor]


class Unwritten(torch.Tensor):
    """A mask that is written out when it is first read, by anything but the attention; from then on its elements say it all."""

    _make: Callable[[], torch.Tensor]
    _written: torch.Tensor | None

    @staticmethod
    def __new__(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        make: Callable[[], torch.Tensor],
        pattern: Pattern,
    ) -> Unwritten:
        found: Unwritten = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        found._make, found._written = make, None
        setattr(found, MARK, pattern)
        return found

    def written(self) -> torch.Tensor:
        """The elements. They may be changed in place, so the pattern no longer counts."""
        if self._written is None:
            setattr(self, MARK, None)
            self._written = self._make()
        return self._written

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _KEPT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return cls.__torch_dispatch__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        args, kwargs = tree_map_only(Unwritten, Unwritten.written, (args, kwargs or {}))
        return func(*args, **kwargs)


_KEPT = {
    *(
        getattr(torch.Tensor, n).__get__
        for n in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "is_nested")
    ),
    *(getattr(torch.Tensor, n) for n in ("size", "dim", "__hash__")),
}
"""What may be asked of a mask without reading it."""


# -- transformers' side --------------------------------------------------------------------------------------------------------------


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    config: Any = None,
    **rest: Any,
) -> torch.Tensor:
    """The mask [b, 1, i, j] that transformers makes of a mask function and of padding; with its pattern where one says it all.

    It is the booleans of transformers' sdpa; the floats of its eager attention, of ``dtype``, for configurations in `ADDED`.
    """
    from transformers import masking_utils

    function = mask_function or masking_utils.causal_mask_function
    added = type(config) in ADDED

    def make() -> torch.Tensor:
        made = (masking_utils.eager_mask if added else masking_utils.sdpa_mask)(
            batch_size,
            q_length,
            kv_length,
            q_offset,  # type: ignore[arg-type]  # of a static cache it is a tensor
            kv_offset,
            function,
            attention_mask,
            allow_is_causal_skip=False,
            allow_is_bidirectional_skip=False,
            use_vmap=use_vmap,
            device=device,
            dtype=dtype,
        )
        assert made is not None, "skips are not allowed"
        return made

    known: Any = function
    if function is masking_utils.causal_mask_function or function is masking_utils.bidirectional_mask_function:
        known = Band(causal=function is masking_utils.causal_mask_function)
    if use_vmap or not isinstance(known, Band | Chunks):
        return make()
    watched = _watched()
    if isinstance(q_offset, torch.Tensor) and (watched or q_length == 1):
        return make()
    offset = int(q_offset) if isinstance(q_offset, torch.Tensor) else q_offset
    tensors: dict[str, torch.Tensor] = {}
    padding = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None:
        real = padding[:, kv_offset : kv_offset + kv_length].bool()
        if watched or not bool(real.all()):
            tensors["pad"] = real
    if isinstance(known, Chunks):
        tensors |= {"qdoc": known.numbers(offset, q_length), "kdoc": known.numbers(kv_offset, kv_length)}
    band = known if isinstance(known, Band) else Band(causal=True)
    pattern, shape = Pattern(band, offset - kv_offset, tensors), (batch_size, 1, q_length, kv_length)
    if not band.causal and band.window is None:
        real = tensors.get("pad", torch.ones((1, 1), dtype=torch.bool, device=device))
        real = to_add(real, dtype) if added else real
        return _marked(real[:, None, None, :].expand(shape), pattern)
    if watched:
        return _marked(make(), pattern)
    return Unwritten(shape, dtype if added else torch.bool, torch.device(device), make, pattern)


def to_add(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Booleans as what eager attentions add to scores."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def _marked(made: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """A view of the mask, a tensor of our own to write the attribute on."""
    marked = made.view(made.shape)
    setattr(marked, MARK, pattern)
    return marked


def _watched() -> bool:
    """Whether something records what is done with tensors: torch.compile, a tracer, a transform, a mode, a CUDA graph."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[no-untyped-call,attr-defined]
        or transformed()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
    )


def know_functions() -> None:
    """Has transformers make its windows and chunks as `Band` and `Chunks`, which are the same functions and can be asked what they are."""
    from transformers import masking_utils

    def sliding_window_causal_mask_function(sliding_window: int) -> Callable[..., Any]:
        return Band(causal=True, window=sliding_window)

    def sliding_window_bidirectional_mask_function(sliding_window: int) -> Callable[..., Any]:
        return Band(window=sliding_window + 1, both=True)

    def chunked_causal_mask_function(chunk_size: int, left_padding: torch.Tensor) -> Callable[..., Any]:
        return Chunks(chunk_size, left_padding)

    for made in (sliding_window_causal_mask_function, sliding_window_bidirectional_mask_function, chunked_causal_mask_function):
        stock = getattr(masking_utils, made.__name__, None)
        if stock is not None:
            setattr(masking_utils, made.__name__, functools.wraps(stock)(made))
