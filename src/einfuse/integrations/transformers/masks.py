"""Masks of transformers' models: tensors of booleans to whoever reads them, formulas to our kernels.

A mask that is a band of the plane of positions, maybe within chunks or packed sequences, is known by its mask function. What `mask` gives for
it carries its `Pattern`, and writes its booleans out where something else than our attention reads it: no model holds Nq x Nk of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from einfuse._spread import spread
from einfuse.integrations.transformers.functions import Band, known
from einfuse.runtime.apart import transformed

ADDED: set[type] = set()
"""Configurations of models that transformers does not run with sdpa: they know masks as floats to add to scores, and may do arithmetic on
them (DeepSeek V4 appends columns of zeros)."""

MARK = "_einfuse_pattern"
"""The attribute of a mask that holds its `Pattern`. Copies and views have none, and are the booleans they are."""


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """What a mask stands for: a band whose first query stands beside key ``shift``, and inputs of the spec: pad, qdoc, kdoc.

    ``pad`` are the real keys where all are: nothing to one device, and what others are told where each has a part of them.
    """

    band: Band
    shift: int
    tensors: Mapping[str, torch.Tensor]
    pad: torch.Tensor | None = None

    @property
    def inputs(self) -> Mapping[str, torch.Tensor]:
        """What a call is given: the same inputs on all devices."""
        return {"pad": self.pad, **self.tensors} if self.pad is not None and spread() else self.tensors


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

    what = None if use_vmap else known(function)
    if what is None:
        return make()
    watched = _watched()
    if isinstance(q_offset, torch.Tensor):
        if watched or q_length == 1:
            return make()
        q_offset = int(q_offset)  # as it is now, whenever the mask is written out: caches count on in place
    tensors: dict[str, torch.Tensor] = {}
    every: torch.Tensor | None = None
    if attention_mask is not None:
        attention_mask = attention_mask if watched else attention_mask.clone()  # as above
        padding = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
        assert padding is not None, "there is a mask to pad"
        real = padding[:, kv_offset : kv_offset + kv_length].bool()
        if watched or not bool(real.all()):
            tensors["pad"] = real
        else:
            every = real
    for name, start, length in (("qdoc", q_offset, q_length), ("kdoc", kv_offset, kv_length)):
        found = what.documents(start, length)
        if found is not None:
            tensors[name] = found
    band, shape = what.band, (batch_size, 1, q_length, kv_length)
    pattern = Pattern(band, q_offset - kv_offset, tensors, every)
    if isinstance(what, Band) and not band.causal and band.window is None:
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
