"""Commands that look into kernels: emit, and what `einfuse ir` shows of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import torch

from einfuse._cli import inputs, screen
from einfuse.ir import Scalar
from einfuse.runtime import binding, drawing, inside
from einfuse.runtime.attention import Attention
from einfuse.runtime.backends import choose
from einfuse.runtime.binding import evaluate
from einfuse.runtime.graph import Graph
from einfuse.runtime.verify import Shape, example_inputs, example_sizes

LANGUAGES = {"cpu": "cpp", "loops": "text"}
"""What a text is written in, of back ends that do not print Python."""


def emit(args: argparse.Namespace) -> int:
    attention = inputs.attention(args.spec, args)
    text = attention.source(args.backend, getattr(torch, args.dtype), args.backward, **dict(args.size))
    screen.code(text, LANGUAGES.get(args.backend, "python"))
    return 0


def graph(args: argparse.Namespace) -> None:
    """Draws what a training step of a spec runs."""
    attention = inputs.attention(args.spec, args)
    made = graphs(attention, widths(attention, dict(args.size)), torch.float32, True)
    args.graph.write_text(drawing.svg(made), encoding="utf-8")


def linear(args: argparse.Namespace) -> str:
    """The cascade of the linear form of a spec after a pass."""
    attention = inputs.attention(args.spec, args)
    return attention.forms.linear(widths(attention, dict(args.size))).ir(after=args.after)


def graphs(attention: Attention, sizes: Mapping[str, int], dtype: torch.dtype, backward: bool) -> list[Graph]:
    """What a call of these sizes runs on this machine's CPU, and with ``backward`` what its gradients do."""
    tensors, numbers = binding.arguments(attention.cascade, (), described(attention, sizes, dtype))
    return inside.graphs(attention, tensors, numbers, backward, choose(torch.device("cpu"), attention.backend))


def described(attention: Attention, sizes: Mapping[str, int], dtype: torch.dtype) -> dict[str, torch.Tensor | Scalar]:
    """Arguments of these sizes, without memory."""
    c, kinds = attention.cascade, {"float": dtype, "int": torch.int64, "bool": torch.bool}
    few = example_inputs(c, dtype, 0, Shape(1, 1, 8, 8, (8, 8), 1))
    return {t.name: few[t.name] for t in c.inputs if t.param and t.name in few} | {
        t.name: torch.empty([int(evaluate(a, sizes)) for a in t.axes], dtype=kinds[t.dtype], device="meta")
        for t in c.inputs
        if not t.param
    }


def widths(attention: Attention, given: dict[str, int]) -> dict[str, int]:
    """A size for every name: those given, 64 for other features, equal lengths."""
    return example_sizes(attention.cascade, Shape(1, 1, 64, 64, (64, 64), 1)) | given
