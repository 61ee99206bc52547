"""From a trace to an attention: the cascade ``softmax(score) v`` around what the functions compute, compiled once per content.

Numbers and tensors that the functions capture are inputs of the cascade, so that another window, another slope or another table
runs the same kernel; only another formula is another kernel.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Literal

import torch

from einfuse import dsl
from einfuse.flex.captures import LEAST
from einfuse.flex.tracer import RANKS, Tracer
from einfuse.flex.value import Value, kind_of
from einfuse.ir import Cascade, Einsum, Flat, Rank, Scalar, SpecError, Tensor, const, index, load
from einfuse.ir import expr as ex
from einfuse.runtime.attention import Attention
from einfuse.runtime.backends import BackendName
from einfuse.runtime.recent import Recent

Extra = Literal["lse", "top"]
"""Row statistics beside the output: the log-sum-exp of the scores, and their maximum."""

_TEXT = """
attention flex_attention(scale: float) over b, h {{
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
  raw[i, j] = sum[d](q * k)
  s[i, j] = raw * scale
  o[i, e] = sum[j](softmax[j](s) * v)
  {extra}
  out o{names}
}}
"""
_EXTRA: dict[Extra, str] = {"lse": "lse[i] = log_sum_exp[j](s)", "top": "top[i] = max[j](s)"}


@functools.cache
def skeleton(extras: tuple[Extra, ...]) -> Cascade:
    """Plain attention with some row statistics, in whose place of the score the traced one goes."""
    lines = "; ".join(_EXTRA[e] for e in extras)
    return dsl.compile_text(_TEXT.format(extra=lines, names="".join(f", {e}" for e in extras)))


def raw_score(tracer: Tracer) -> Value:
    """The score that a score function is given: the scaled product."""
    return Value(tracer, ex.call("*", load("raw", index("i"), index("j")), load("scale")), tracer.dtype)


def cascade(tracer: Tracer, score: Value, mask: Value | None, extras: tuple[Extra, ...]) -> Cascade:
    """The whole computation. ``score`` and ``mask`` belong to ``tracer``."""
    base = skeleton(extras)
    score_map = score.expr if score.kind == "float" else ex.call("float", score.expr)
    where = ex.conjunction(score.alive, mask.expr if mask is not None else None)
    if ex.reads(where) & {x.target for x in tracer.statements}:
        raise SpecError(
            "minus infinity is chosen by a long vector's sum, which a mask cannot read", hint="use a large negative number"
        )
    body: list[Einsum] = []
    for x in base.einsums:
        if x.target == "s" and tracer.unbounded:  # what is computed decides which scores there are
            whole = ex.at("modified", x.ranks)
            seen = ex.conjunction(where, ex.call(">", whole, const(LEAST)))
            body += [*tracer.statements, Einsum("modified", x.ranks, None, (), score_map), replace(x, map=whole, mask=seen)]
        elif x.target == "s":
            body += [*tracer.statements, replace(x, map=score_map, mask=where)]
        else:
            body.append(x)
    own = {r for x in tracer.statements for r in x.over}
    ranks = (*base.ranks, *(r for r in tracer.ranks.values() if r.name in own))
    return replace(base.with_body(body), ranks=ranks, inputs=_inputs(tracer, base))


def _inputs(tracer: Tracer, base: Cascade) -> tuple[Tensor, ...]:
    tensors = [Tensor(c.name, tuple(c.axes), kind_of(c.tensor.dtype)) for c in tracer.tensors.values()]
    numbers = [Tensor(n.name, (), n.kind, True) for n in tracer.numbers.values()]
    own = [t for t in base.inputs if not t.param]
    return (*own, *tensors, *(t for t in base.inputs if t.param), *numbers)


def condition(tracer: Tracer, mask: Value) -> Cascade:
    """A mask alone, over its coordinates: what the analysis of tiles and the evaluation at points read."""
    kinds = {"b": "batch", "h": "head", "i": "query", "j": "key"}
    ranks = [Rank(r, kinds[r], n) for r, n in RANKS.items()]  # type: ignore[arg-type]  # the four are kinds
    tensors = [Tensor(c.name, tuple(c.axes), kind_of(c.tensor.dtype)) for c in tracer.tensors.values()]
    numbers = [Tensor(n.name, (), n.kind, True) for n in tracer.numbers.values()]
    last = Einsum("mask", ("i", "j"), None, (), ex.call("select", mask.expr, const(1.0), const(0.0)))
    return Flat("mask", ("b", "h"), (*ranks, *tracer.ranks.values()), (*tensors, *numbers), (last,), ("mask",))


def arguments(tracer: Tracer) -> tuple[dict[str, torch.Tensor], dict[str, Scalar]]:
    """What the functions capture, by the names of the inputs."""
    device = tracer.device
    tensors = {c.name: c.tensor if c.tensor.device == device else c.tensor.to(device) for c in tracer.tensors.values()}
    return tensors, {n.name: n.value for n in tracer.numbers.values()}


_COMPILED: Recent[tuple[object, ...], Attention] = Recent()


def compiled(whole: Cascade, backend: BackendName | None = None) -> Attention:
    """The attention of a cascade: one for the same content, as long as it is among those used last."""
    key = (whole.ranks, whole.inputs, whole.body, whole.outs, backend)
    return _COMPILED.made(key, lambda: Attention(whole, backend))


def sizes_of(tracer: Tracer) -> dict[str, int]:
    """Every symbolic size of `condition`'s cascade."""
    out = {RANKS[r]: n for r, n in tracer.sizes.items()}
    for c in tracer.tensors.values():
        out |= {a.name: n for a, n in zip(c.axes, c.tensor.shape, strict=True) if a.op == "size"}
    return out


def always(mask: Value) -> bool:
    """Is the mask true everywhere, whatever is captured?"""
    return ex.is_const(mask.expr, True)
