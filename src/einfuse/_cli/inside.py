"""Commands that look into the compiler: emit, ir, passes."""

from __future__ import annotations

import argparse

import torch

from einfuse._cli import inputs, screen
from einfuse.ir import EinfuseError
from einfuse.runtime.attention import Attention
from einfuse.runtime.inside import PassReport
from einfuse.runtime.verify import Shape, example_sizes

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
    screen.code(attention.ir(after=args.after), "python")
    return 0


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


def counted(report: PassReport) -> str:
    """``3 passes -> 1``"""
    return f"{report.before} pass{'es' * (report.before != 1)} -> {report.after}"


def show_passes(name: str, report: PassReport) -> None:
    console = screen.out()
    console.print(f"{name} over {report.rank}: {counted(report)}")
    if not report.decisions:
        return
    shown = screen.table("  statistic", "read by", "how", "with", "proof")
    for d in report.decisions:
        shown.add_row(f"  {d.statistic}", d.reader, d.how, d.detail, d.proof)
    console.print(shown)
