"""Commands over texts: check, fmt, list."""

from __future__ import annotations

import argparse
from pathlib import Path

import einfuse
from einfuse import dsl
from einfuse._cli import inputs, screen
from einfuse.codegen.files import write_atomic
from einfuse.ir import SpecError
from einfuse.runtime.attention import Attention


def check(args: argparse.Namespace) -> int:
    """Reads, elaborates and fuses every attention of every file, without its optional inputs and with all of them."""
    faults: list[tuple[str, SpecError]] = []
    for file in args.files:
        try:
            _through_the_compiler(file, args)
        except SpecError as error:
            faults.append((file, error))
    if args.json:
        screen.report({"ok": not faults, "errors": [_as_json(f, e, len(args.files) > 1) for f, e in faults]})
    else:
        for _, found in faults:
            screen.fault(found)
        if not faults:
            screen.out().print(f"{len(args.files)} file{'s' * (len(args.files) > 1)} good")
    return 1 if faults else 0


def _through_the_compiler(file: str, args: argparse.Namespace) -> None:
    path = Path(file)
    if not path.is_file():
        raise SpecError(f"there is no file {file}")
    module, params = dsl.parse(dsl.read_spec(path), file), inputs.params(args)
    dsl.signature(module)  # there is an attention, and no two have one name
    for node in module.attentions:
        found = dsl.signature(module, node.name.text)
        declared = {p.name for p in found.params}
        mine = params if node is module.attentions[-1] else {n: x for n, x in params.items() if n in declared}
        optional = frozenset(x.name for x in found.inputs if x.optional)
        for given in dict.fromkeys((frozenset[str](), optional)):
            cascade = dsl.elaborate(module, found.name, mine, given, (path.parent,))
            for stage in (whole := Attention(cascade)).stages or (whole,):
                stage.ir(after="mask_ranges")


def _as_json(file: str, error: SpecError, several: bool) -> screen.Json:
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
        screen.say(f"{'would rewrite' if args.check else 'rewrote'} {file}")
    return 1 if args.check and changed else 0


def list_specs(args: argparse.Namespace) -> int:
    found = [s for s in einfuse.list_specs() if s.about(args.query)]
    if args.json:
        screen.report({"specs": [{"name": s.name, "family": s.family, "path": s.path, "paper": s.paper} for s in found]})
        return 0
    shown = screen.table("name", "family", "paper")
    for s in found:
        shown.add_row(s.name, s.family, s.paper)
    screen.out().print(shown if found else f"no spec of the library has {args.query!r} in its name, family, paper or formula")
    return 0
