"""torch's scaled_dot_product_attention by an einfuse kernel.

Reference for the meaning of every argument: the documentation of torch.nn.functional.scaled_dot_product_attention.
"""

from __future__ import annotations

import math

import torch
from torch.overrides import handle_torch_function, has_torch_function

from einfuse.integrations.compiled import general
from einfuse.runtime.backends import BackendName
from einfuse.runtime.binding import host_number


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    backend: BackendName | None = None,
) -> torch.Tensor:
    """softmax(scale q k' + attn_mask) v, with torch's signature; query: [..., Hq, L, D], key: [..., H, S, D], value: [..., H, S, E].

    ``attn_mask`` is broadcast to [..., Hq, L, S]: booleans (true: visible) or floats that are added (-inf hides a key). ``is_causal``
    counts from the first query and key, as torch does. Unlike torch's, a row that sees no key gives 0 on every device. Gradients reach
    q, k, v and a float mask. Raises TypeError for tensors of other layouts and dtypes, ValueError for dropout, for a mask beside
    ``is_causal``, and for shapes that do not fit.
    """
    if has_torch_function((query, key, value, attn_mask)):  # a tracer of torch.fx, a class of tensors with its own ways
        found: torch.Tensor = handle_torch_function(
            scaled_dot_product_attention,
            (query, key, value, attn_mask),
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            scale,
            enable_gqa,
            backend=backend,
        )
        return found
    for name, x in (("query", query), ("key", key), ("value", value)):
        _check(name, x, _FLOATS)
    if attn_mask is not None:
        _check("attn_mask", attn_mask, (torch.bool, *_FLOATS))
    number = host_number("scaled_dot_product_attention", "scale", scale, "multiply query by it, with scale=1.0")
    if dropout_p > 0:
        raise ValueError(f"dropout_p must be 0: the fused kernels have no dropout; found {dropout_p}")
    if is_causal and attn_mask is not None:
        raise ValueError("attn_mask and is_causal cannot both be given: put the triangle into the mask")
    if min(query.ndim, key.ndim, value.ndim) < 2:
        raise ValueError(f"query, key and value need two axes or more, found {query.ndim}, {key.ndim} and {value.ndim}")
    q, k, v, lead = _four_axes(query, key, value, enable_gqa)
    masks = {} if attn_mask is None else _mask(attn_mask, (*lead, q.shape[-2], k.shape[-2]), q)
    out = general(
        q,
        k,
        v,
        masks,
        scale=number,  # type: ignore[arg-type]  # checked where it is bound
        causal=is_causal,
        backend=backend,
    )
    return out if out.shape[:-2] == lead else out.reshape(*lead, *out.shape[-2:])


_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _check(name: str, x: object, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raises TypeError for what is no dense tensor, nor a jagged one, of one of these dtypes."""
    where = f"scaled_dot_product_attention: {name} must"
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{where} be a tensor, found {type(x).__name__}")
    if x.is_nested and x.layout is not torch.jagged:
        raise TypeError(
            f"{where} be dense or have layout=torch.jagged, found a nested tensor of {x.layout}; build it with that layout"
        )
    if x.layout is not torch.strided and x.layout is not torch.jagged:
        raise TypeError(f"{where} be a dense tensor, found one of {x.layout}; call {name}.to_dense()")
    if x.dtype not in dtypes:
        raise TypeError(
            f"{where} hold {'booleans or floats' if torch.bool in dtypes else 'floats'} of 16 to 64 bits, found {x.dtype}"
        )


def _four_axes(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gqa: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """The three as [B, H, N, D], and the leading axes of the result."""
    leads = [tuple(x.shape[:-2]) for x in (query, key, value)]
    if gqa:
        if len(set(map(len, leads))) != 1 or not leads[0] or leads[1] != leads[2] or leads[0][-1] % leads[1][-1]:
            raise ValueError(f"enable_gqa: query heads must be a multiple of the heads of key and value, found axes {leads}")
        batch, heads = leads[0][:-1], (leads[0][-1], leads[1][-1], leads[2][-1])
    else:
        try:
            lead = torch.broadcast_shapes(*leads)
        except RuntimeError:
            raise ValueError(f"the leading axes of query, key and value do not fit: {leads}") from None
        query, key, value = (x if x.shape[:-2] == lead else x.expand(*lead, *x.shape[-2:]) for x in (query, key, value))
        batch, heads = tuple(lead[:-1]), (lead[-1] if lead else 1,) * 3
    if len(batch) == 1:  # no view between: its backward would lose the layout of the gradients
        return query, key, value, tuple(query.shape[:-2])
    many = math.prod(batch)
    four = [x.reshape(many, h, *x.shape[-2:]) for x, h in zip((query, key, value), heads, strict=True)]
    return four[0], four[1], four[2], tuple(query.shape[:-2])


def _mask(mask: torch.Tensor, shape: tuple[int, ...], q: torch.Tensor) -> dict[str, torch.Tensor]:
    """The mask as an input of the spec: a view of it wherever strides can say so."""
    try:
        whole = mask.expand(shape)
    except RuntimeError:
        raise ValueError(f"attn_mask must broadcast to {shape}, found {tuple(mask.shape)}") from None
    four = whole.reshape(q.shape[0], q.shape[1], *shape[-2:])
    return {"mask" if mask.dtype == torch.bool else "bias": four}
