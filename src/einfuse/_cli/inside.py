"""Commands that look into the compiler: emit, ir, passes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import torch

from einfuse._cli import inputs, screen
from einfuse.ir import EinfuseError
from einfuse.runtime import binding, drawing, inside
from einfuse.runtime.attention import Attention
from einfuse.runtime.backends import choose
from einfuse.runtime.binding import evaluate
from einfuse.runtime.graph import Graph
from einfuse.runtime.inside import PassReport
from einfuse.runtime.verify import Shape, example_inputs, example_sizes

LANGUAGES = {"cpu": "cpp", "triton": "python", "torch": "python"}


def emit(args: argparse.Namespace) -> int:
    attention = inputs.attention(args.spec, args)
    text = attention.source(args.backend, getattr(torch, args.dtype), args.backward, **dict(args.size))
    screen.code(text, LANGUAGES[args.backend])
    return 0


def ir(args: argparse.Namespace) -> int:
    attention = inputs.attention(args.spec, args)
    if args.form == "linear":
        attention = attention.forms.linear(widths(attention, dict(args.size)))
    if args.graph is not None:
        made = graphs(attention, widths(attention, dict(args.size)), torch.float32, True)
        args.graph.write_text(drawing.svg(made), encoding="utf-8")
        return 0
    screen.code(attention.ir(after=args.after), "python")
    return 0


def graphs(attention: Attention, sizes: Mapping[str, int], dtype: torch.dtype, backward: bool) -> list[Graph]:
    """What a call of these sizes runs on this machine's CPU, and with ``backward`` what its gradients do."""
    c, kinds = attention.cascade, {"float": dtype, "int": torch.int64, "bool": torch.bool}
    few = example_inputs(c, dtype, 0, Shape(1, 1, 8, 8, (8, 8), 1))
    made = {t.name: few[t.name] for t in c.inputs if t.param and t.name in few} | {
        t.name: torch.empty([int(evaluate(a, sizes)) for a in t.axes], dtype=kinds[t.dtype], device="meta")
        for t in c.inputs
        if not t.param
    }
    tensors, numbers = binding.arguments(attention.cascade, (), made)
    return inside.graphs(attention, tensors, numbers, backward, choose(torch.device("cpu"), attention.backend))


def widths(attention: Attention, given: dict[str, int]) -> dict[str, int]:
    """A size for every name: those given, 64 for other features, equal lengths."""
    return example_sizes(attention.cascade, Shape(1, 1, 64, 64, (64, 64), 1)) | given


def linear_form(attention: Attention) -> str:
    """What the rank test across queries and keys found, in one line."""
    found = attention.forms.found
    if found is None:
        return f"no linear form: {attention.forms.obstacle}"
    how = f"a scan along {found.row}" if found.causal else f"sums over {found.column}"
    return f"linear form: the weights have rank {found.show()} across {found.row} | {found.column} (exact), {how}"


def passes(args: argparse.Namespace) -> int:
    attention = inputs.attention(args.spec, args)
    reports = attention.passes()
    shown = linear_form(attention)
    if args.rank is not None:
        reports = tuple(r for r in reports if r.rank == args.rank)
    if not reports:
        raise EinfuseError(f"{attention.name} folds over no rank{f' {args.rank}' if args.rank else ''}")
    if args.json:
        screen.report({**as_json(attention.name, reports[0]), "linear": shown})
        return 0
    for report in reports:
        show_passes(attention.name, report)
    screen.out().print(shown, markup=False)
    return 0


def as_json(name: str, report: PassReport) -> dict[str, screen.Json]:
    carries: list[screen.Json] = [
        {"statistic": d.statistic, "reader": d.reader, "how": d.how, "detail": d.detail, "proof": d.proof}
        for d in report.decisions
        if d.how != "cut"
    ]
    reads: list[screen.Json] = [{"statistic": statistic, "reader": reader} for statistic, reader in report.reads]
    return {
        "name": name,
        "rank": report.rank,
        "before": report.before,
        "after": report.after,
        "reads": reads,
        "carries": carries,
    }


def show_passes(name: str, report: PassReport) -> None:
    console = screen.out()
    console.print(f"{name} over {report.rank}: {report.counted}")
    if not report.decisions:
        return
    shown = screen.table("  statistic", "read by", "how", "with", "proof")
    for d in report.decisions:
        shown.add_row(f"  {d.statistic}", d.reader, d.how, d.detail, d.proof)
    console.print(shown)
