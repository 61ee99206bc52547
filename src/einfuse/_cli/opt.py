"""The command `einfuse opt`: passes and transforms on the text of a cascade, or on a spec."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from einfuse import dsl
from einfuse._cli import inputs, screen
from einfuse.ir import Cascade, text
from einfuse.ir.passes import opt
from einfuse.ir.verify import verify


def run(args: argparse.Namespace) -> int:
    """Prints the cascades that the passes make. What is observed on the way goes to stderr, so that the output reads back."""
    cascade = _cascade(args)
    steps = opt.default(cascade) if args.passes is None else opt.parse(args.passes)
    times: dict[str, float] = {}

    def observe(name: str, c: Cascade, seconds: float) -> None:
        times[name] = times.get(name, 0.0) + seconds
        if args.print_after_all:
            print(f"# {c.name} after {name}", text.show(c), sep="\n", file=sys.stderr)

    made = opt.apply(steps, cascade, observe)
    if args.time_passes:
        for name, seconds in times.items():
            print(f"# {name}: {1e3 * seconds:.1f} ms", file=sys.stderr)
    screen.code("\n".join(map(text.show, made)), "python")
    return 0


def _cascade(args: argparse.Namespace) -> Cascade:
    """The cascade of a file in the text form of cascades (``-``: of stdin); else that of a spec."""
    path = Path(args.file)
    if args.file == "-":
        return verify(text.parse(sys.stdin.read(), "<stdin>"))
    if path.suffix != ".attn" and path.is_file():
        return verify(text.parse(dsl.read_spec(path), args.file))
    return inputs.attention(args.file, args).cascade
