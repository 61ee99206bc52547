"""Commands that look at cascades: ir, passes. They import no torch."""

from __future__ import annotations

import argparse

from einfuse._cli import inputs, plain, screen
from einfuse.ir import Cascade, EinfuseError
from einfuse.ir.cut import NotFactorableError
from einfuse.ir.passes import factorisation, pipeline
from einfuse.ir.passes.factorisation import Factorisation
from einfuse.ir.passes.kernels import kernels
from einfuse.ir.text import show
from einfuse.runtime import passes as passes_of
from einfuse.runtime.passes import PassReport


def ir(args: argparse.Namespace) -> int:
    if args.graph is not None or args.form == "linear":
        from einfuse._cli import inside  # with torch

        if args.graph is not None:
            inside.graph(args)
        else:
            screen.code(inside.linear(args), "python")
        return 0
    cascade = inputs.cascade(args.spec, args)
    parts = (cascade,) if args.after in ("build", "infer_space") else kernels(cascade)
    screen.code("\n\n".join(show(pipeline.run(c, after=args.after)) for c in parts), "python")
    return 0


def forms_of(cascade: Cascade) -> tuple[Factorisation | None, str]:
    """The factorisation of the weights, or why there is none."""
    try:
        return factorisation.find(cascade), ""
    except NotFactorableError as reason:
        return None, str(reason)


def linear_form(found: Factorisation | None, obstacle: str | None) -> str:
    """What the rank test across queries and keys found, in one line."""
    if found is None:
        return f"no linear form: {obstacle}"
    how = f"a scan along {found.row}" if found.causal else f"sums over {found.column}"
    return f"linear form: the weights have rank {found.show()} across {found.row} | {found.column} (exact), {how}"


def passes(args: argparse.Namespace) -> int:
    cascade = inputs.cascade(args.spec, args)
    reports = passes_of.reports(cascade)
    shown = linear_form(*forms_of(cascade))
    if args.rank is not None:
        reports = tuple(r for r in reports if r.rank == args.rank)
    if not reports:
        raise EinfuseError(f"{cascade.name} folds over no rank{f' {args.rank}' if args.rank else ''}")
    if args.json:
        plain.report({**as_json(cascade.name, reports[0]), "linear": shown})
        return 0
    for report in reports:
        show_passes(cascade.name, report)
    screen.out().print(shown, markup=False)
    return 0


def as_json(name: str, report: PassReport) -> dict[str, plain.Json]:
    carries: list[plain.Json] = [
        {"statistic": d.statistic, "reader": d.reader, "how": d.how, "detail": d.detail, "proof": d.proof}
        for d in report.decisions
        if d.how != "cut"
    ]
    reads: list[plain.Json] = [{"statistic": statistic, "reader": reader} for statistic, reader in report.reads]
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
