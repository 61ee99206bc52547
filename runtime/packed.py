"""Sequences of different lengths in one call: jagged nested tensors, or all tokens in a row with the bounds of the sequences.

Both run the packed form of the spec (`ir.passes.pack`): no padding is made, and tiles that hold no pair of tokens of one sequence are
not visited. Packed cascades are made once for an attention, the tables of bounds once for bounds that did not change.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from einfuse.ir import Cascade, Scalar
from einfuse.ir.passes import pack
from einfuse.ir.passes.pack import Packed, Table
from einfuse.runtime.capture import capturing
from einfuse.runtime.unchanged import place, told

if TYPE_CHECKING:
    from einfuse.runtime.attention import Attention, Output

_TABLES = WeakTensorKeyDictionary()
"""Of bounds of sequences: what they are known by, and what was made of them."""


def varlen(
    attention: Attention,
    *tensors: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor | None = None,
    **given: torch.Tensor | Scalar,
) -> Output:
    """An attention over packed sequences: ``varlen(attn, q, k, v, cu_seqlens_q=cu)`` with ``q[T, H, D]``, ``k[Tk, Hk, D]``, ``v[Tk, Hk, E]``.

    Every input of the spec with an axis for the batch and one for positions is given with the tokens of all sequences in a row as its first
    axis, then the axes that remain in the spec's order; outputs have the same form (``o[T, H, E]``). Other inputs are as in a plain
    call; those with axes of positions, such as a bias, are as long as the longest sequence. ``cu_seqlens_q[B + 1]`` (int32 or int64)
    starts at 0, never falls and ends at T: sequence b is the tokens ``cu_seqlens_q[b] .. cu_seqlens_q[b + 1] - 1``;
    ``cu_seqlens_k`` says the same of keys (those of the queries, if left out). Differentiable in every float tensor.

    Raises SpecError for a spec that has no packed form, ValueError for bounds that do not fit, TypeError as a plain call does.
    """
    _break_graph()
    attention, given = attention.variant(given)
    named = _named(attention.cascade, tensors, given)
    held = pack.axes(attention.cascade)
    queries = {r.size for r in attention.cascade.ranks if r.kind == "query"}
    bounds = {s: cu_seqlens_q if s in queries or cu_seqlens_k is None else cu_seqlens_k for _, s in held.values()}
    form = Form.of(attention, bounds)
    for name, at in form.found.inputs.items():
        x, axes = named.get(name), len(form.attention.cascade.input(name).axes)
        if isinstance(x, torch.Tensor):
            if x.ndim != axes:
                raise ValueError(
                    f"{attention.name}: {name} must be packed, tokens first, with {axes} axes; found the shape {tuple(x.shape)}"
                )
            named[name] = x.movedim(0, at)
    outs = form.attention(**named, **form.tables(named))
    moved = [o.movedim(at, 0) for o, at in zip(_all(outs), form.found.outs, strict=True)]
    return moved[0] if len(moved) == 1 else tuple(moved)


def nested(
    attention: Attention, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Scalar], run: Callable[..., Output]
) -> Output:
    """A call in which some tensors are jagged; so are the outputs, with the bounds of what their positions come from.

    ``run(attention, **arguments)`` calls the packed attention.
    """
    _break_graph()
    name = attention.name
    held = pack.axes(attention.cascade)
    bounds: dict[str, torch.Tensor] = {}
    flat: dict[str, torch.Tensor] = {}
    ragged = {held[n][1] for n, x in tensors.items() if x.is_nested and n in held}
    for n, x in tensors.items():
        if n in held and held[n][1] in ragged:
            flat[n], own = _flattened(name, n, x, held[n][0])
            if not _same(bounds.setdefault(held[n][1], own), own):
                raise ValueError(
                    f"{name}: the sequences of {n} are not as long as those of other tensors with the size {held[n][1]}"
                )
        elif x.is_nested:
            raise ValueError(f"{name}: {n} has no axis of positions beside one of the batch, and cannot be a nested tensor")
        else:
            flat[n] = x
    form = Form.of(attention, bounds)
    outs = _all(run(form.attention, **flat, **form.tables(flat), **numbers))
    made = []
    for o, at, size in zip(outs, form.found.outs, form.found.sizes, strict=True):
        cu = next(x for s, x in bounds.items() if form.found.group(s) == form.found.group(size))
        made.append(torch.nested.nested_tensor_from_jagged(o, cu, jagged_dim=at + 1))
    return made[0] if len(made) == 1 else tuple(made)


def _break_graph() -> None:
    """Ends a graph that torch.compile is making here (`torch.compiler.disable` would import the compiler with this module)."""
    if torch.compiler.is_compiling():
        torch._dynamo.graph_break(msg="the bounds of sequences are looked at on the host")


def _all(outs: Output) -> tuple[torch.Tensor, ...]:
    return outs if isinstance(outs, tuple) else (outs,)


def _named(cascade: Cascade, tensors: tuple[torch.Tensor, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    names = [t.name for t in cascade.inputs if not t.param]
    if len(tensors) > len(names):
        raise TypeError(f"{cascade.name} takes {len(names)} tensors ({', '.join(names)}), found {len(tensors)}")
    twice = set(names[: len(tensors)]) & set(given)
    if twice:
        raise TypeError(f"{cascade.name}: {min(twice)} is given twice, by position and by keyword")
    return dict(zip(names, tensors, strict=False)) | dict(given)


def _flattened(spec: str, name: str, x: torch.Tensor, at: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of a jagged tensor in a row, and the bounds of its sequences. Raises ValueError where it is none, or has holes."""
    if not x.is_nested:
        raise ValueError(
            f"{spec}: {name} must be a nested tensor, as others of this call are; found one of shape {tuple(x.shape)}"
        )
    if x.layout != torch.jagged:
        raise ValueError(
            f"{spec}: nested tensors must have layout=torch.jagged, {name} has {x.layout}; build it with that layout"
        )
    ragged = next(n for n, extent in enumerate(x.shape) if isinstance(extent, torch.SymInt))
    if ragged != at:
        raise ValueError(
            f"{spec}: axis {at} of {name} is that of positions, found a nested tensor whose axis {ragged} is ragged; transpose it"
        )
    if x.lengths() is not None:  # type: ignore[attr-defined]  # of jagged tensors
        raise ValueError(f"{spec}: {name} is a nested tensor with holes between its sequences; call contiguous() on it")
    return x.values(), x.offsets()  # type: ignore[attr-defined]  # of jagged tensors


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or (a.shape == b.shape and torch.equal(a, b))


@dataclass(frozen=True, slots=True)
class Form:
    """The packed form of an attention for the sequences of one call; ``bounds`` of every group of sizes."""

    found: Packed
    attention: Attention
    bounds: tuple[torch.Tensor, ...]
    tokens: tuple[int, ...]
    """Where the bounds end."""

    @staticmethod
    def of(attention: Attention, bounds: Mapping[str, torch.Tensor]) -> Form:
        """For sizes with these bounds. Raises ValueError where bounds are none, or are not those of as many sequences."""
        if not bounds:
            raise ValueError(f"{attention.name} has no input with an axis for the batch and one for positions")
        seen: list[torch.Tensor] = []
        tokens, same = [], []
        for size, cu in bounds.items():
            known = next((n for n, other in enumerate(seen) if _same(cu, other)), len(seen))
            if known == len(seen):
                tokens.append(_tokens(attention.name, size, cu))
                seen.append(cu)
            same.append(known)
        if len({len(cu) for cu in seen}) > 1:
            listed = ", ".join(f"{len(cu) - 1} of {size}" for size, cu in bounds.items())
            raise ValueError(f"{attention.name}: queries and keys must have as many sequences, found {listed}")
        return Form(*attention.packed(pack.grouped(list(bounds), same)), tuple(seen), tuple(tokens))

    def tables(self, tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The tables of a call. Raises ValueError where a tensor has not as many tokens as its bounds say."""
        for name, at in self.found.inputs.items():
            x = tensors.get(name)
            if isinstance(x, torch.Tensor):
                end = self.tokens[self.found.group(self.attention.cascade.input(name).axes[at].name)]
                if x.shape[at] != end:
                    raise ValueError(
                        f"{self.attention.name}: {name} has {x.shape[at]} tokens, the bounds of its sequences end at {end}"
                    )
        return {t.name: _table(t, self.bounds[t.group], self.bounds[t.owner], self.tokens[t.owner]) for t in self.found.tables}


def _tokens(spec: str, size: str, cu: torch.Tensor) -> int:
    """Where bounds end. Raises TypeError or ValueError for what bounds no sequences. Looked at once for each version of the bounds."""
    if cu.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{spec}: the bounds of sequences must be int32 or int64, those of {size} are {cu.dtype}")
    if cu.ndim != 1 or not len(cu):
        raise ValueError(f"{spec}: the bounds of sequences must have the shape [B + 1], those of {size} have {tuple(cu.shape)}")
    known = _made(cu)
    if "tokens" not in known:
        if capturing():
            raise RuntimeError(
                f"{spec}: the bounds of {size} are looked at on the host, which cannot be captured in a CUDA graph; make this call once before"
            )
        listed = cu.tolist()
        if listed[0] != 0 or any(a > b for a, b in itertools.pairwise(listed)):
            raise ValueError(f"{spec}: the bounds of sequences start at 0 and never fall, those of {size} are {listed[:9]}")
        known["tokens"] = listed[-1]
    return int(known["tokens"])


def _made(cu: torch.Tensor) -> dict[Any, Any]:
    """What is known of bounds as they are now: another dictionary when they change, and forgotten with them."""
    now = place(cu)
    found = _TABLES.get(cu)
    if found is None or found[0] != now or not told(now):
        _TABLES[cu] = found = now, {}
    return found[1]  # type: ignore[no-any-return]  # torch's dictionary is not typed


def _table(t: Table, cu: torch.Tensor, owner: torch.Tensor, tokens: int) -> torch.Tensor:
    """A table of a call. A CUDA graph makes it anew at every replay, whose bounds end at the same token and may lie elsewhere."""
    known, own = _made(owner), _made(cu)
    key = (t.what, id(cu) if t.what != "sequence" else 0)
    held = known.get(key)
    if capturing() or held is None or held[0] is not own:
        every = torch.arange(len(owner) - 1, device=owner.device)
        sequence = torch.repeat_interleave(every, owner.diff(), output_size=tokens)
        made = {"sequence": sequence, "first": cu[:-1][sequence], "last": cu[1:][sequence]}[t.what].int()
        if capturing():
            return made
        held = known[key] = own, made
    return held[1]
