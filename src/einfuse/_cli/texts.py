"""Commands over texts: check, fmt, list."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import einfuse
from einfuse import dsl
from einfuse._cli import inputs, screen
from einfuse.codegen.files import write_atomic
from einfuse.ir import SpecError
from einfuse.runtime.attention import Attention


def check(args: argparse.Namespace) -> int:
    """Reads, elaborates and fuses every attention of every file, without its optional inputs and with all of them."""
    params = inputs.params(args)
    faults = [(file, error) for file in args.files if (error := _fault(Path(file), params)) is not None]
    if args.json:
        screen.report({"ok": not faults, "errors": [_as_json(f, e, len(args.files) > 1) for f, e in faults]})
    else:
        for _, found in faults:
            screen.fault(found)
        if not faults:
            screen.out().print(f"{len(args.files)} file{'s' * (len(args.files) > 1)} good")
    return 1 if faults else 0


def _fault(path: Path, params: dict[str, Any]) -> SpecError | None:
    """The first fault of a file; None for a good one."""
    text = ""
    try:
        if not path.is_file():
            raise SpecError(f"there is no file {path}")
        text = dsl.read_spec(path)
        _through_the_compiler(dsl.parse(text, str(path)), path.parent, params)
    except SpecError as error:
        return error.within(text, str(path))
    return None


def _through_the_compiler(module: dsl.Module, folder: Path, params: dict[str, Any]) -> None:
    """Raises the first fault of any attention of a file. ``params`` are for the last one, and for others as far as they have them."""
    dsl.signature(module)  # there is an attention, and no two have one name
    for node in module.attentions:
        found = dsl.signature(module, node.name.text)
        declared = {p.name for p in found.params}
        mine = params if node is module.attentions[-1] else {n: x for n, x in params.items() if n in declared}
        optional = frozenset(x.name for x in found.inputs if x.optional)
        for given in dict.fromkeys((frozenset[str](), optional)):
            whole = Attention(dsl.elaborate(module, found.name, mine, given, (folder,)))
            for kernel in whole.kernels:
                kernel.ir(after="mask_ranges")


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
