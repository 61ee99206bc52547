"""Commands over texts: check, fmt, list. They import no torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import einfuse
from einfuse import dsl
from einfuse._cli import inputs, plain
from einfuse._editor import faults, hints
from einfuse._files import write_atomic
from einfuse.ir import SpecError


def check(args: argparse.Namespace) -> int:
    """Reads, elaborates and fuses every attention of every file, without its optional inputs and with all of them.

    Of files that are good it says what may be meant otherwise.
    """
    params = inputs.params(args)
    found = [(file, error) for file in args.files for error in _faults(Path(file), params)]
    meant = [] if found else [(f, x) for f in args.files for x in hints.hints(dsl.parse(dsl.read_spec(Path(f)), f))]
    if args.json:
        errors, notes = ([_as_json(f, e, len(args.files) > 1) for f, e in of] for of in (found, meant))
        plain.report({"ok": not found, "errors": errors, **({"hints": notes} if notes else {})})
        return 1 if found else 0
    if found or meant:
        from einfuse._cli import screen

        for _, error in found or meant:
            screen.fault(error, "error" if found else "note")
    if not found:
        print(f"{len(args.files)} file{'s' * (len(args.files) > 1)} good")
    return 1 if found else 0


def _faults(path: Path, params: faults.Params) -> list[SpecError]:
    """The faults of a file; none of a good one."""
    if not path.is_file():
        return [SpecError(f"there is no file {path}")]
    try:
        text = dsl.read_spec(path)
    except SpecError as error:
        return [error]
    return faults.faults(text, str(path), (path.parent,), params)


def _as_json(file: str, error: SpecError, several: bool) -> plain.Json:
    message = f"{file}: {error.message}" if several else error.message
    return {"line": error.line, "column": error.column, "message": message, "hint": error.hint}


def fmt(args: argparse.Namespace) -> int:
    """Rewrites the files that are not in the canonical form; with --check only names them."""
    changed = 0
    for file in args.files:
        path = Path(file)
        if not path.is_file():
            raise SpecError(f"there is no file {file}")
        text = dsl.read_spec(path)
        formatted = dsl.format_text(text, file)
        if formatted == text:
            continue
        changed += 1
        if not args.check:
            write_atomic(path, formatted.encode())
        print(f"{'would rewrite' if args.check else 'rewrote'} {file}", file=sys.stderr)
    return 1 if args.check and changed else 0


def list_specs(args: argparse.Namespace) -> int:
    found = [s for s in einfuse.list_specs() if s.about(args.query)]
    if args.json:
        plain.report({"specs": [{"name": s.name, "family": s.family, "path": s.path, "paper": s.paper} for s in found]})
        return 0
    from einfuse._cli import screen

    shown = screen.table("name", "family", "paper")
    for s in found:
        shown.add_row(s.name, s.family, s.paper)
    screen.out().print(shown if found else f"no spec of the library has {args.query!r} in its name, family, paper or formula")
    return 0


def list_models(args: argparse.Namespace) -> int:
    from einfuse.library.models import named

    rows = [r for r in named.described(list(named.MODELS.values())) if args.query.lower() in " ".join(r).lower()]
    keys = ("name", "attention", "parameters", "paper")
    if args.json:
        plain.report({"models": [dict(zip(keys, r, strict=True)) for r in rows]})
        return 0
    from einfuse._cli import screen

    shown = screen.table(*keys)
    for r in rows:
        shown.add_row(*r)
    screen.out().print(shown if rows else f"no model has {args.query!r} in its name, its specs or its paper")
    return 0
