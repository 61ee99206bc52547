"""From SPEC arguments to compiled attentions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import einfuse
from einfuse.ir import Cascade, SpecError
from einfuse.runtime import specs
from einfuse.runtime.source import Source

OWN = ("source", "backend", "strict", "form")


def params(args: argparse.Namespace) -> dict[str, Any]:
    """What --param gave, ready to be passed to `einfuse.compile` beside its own arguments."""
    given = dict(args.param)
    for name in OWN:
        if name in given:
            raise SpecError(f"--param sets a parameter of the spec; `{name}` is none")
    return given


def cascade(spec: str, args: argparse.Namespace) -> Cascade:
    """The cascade of a spec without its optional inputs, from disk where it was made before. Imports no torch."""
    text, file, folder = specs.found(spec)
    return Source(text, file, str(folder or ""), tuple(sorted(params(args).items()))).cascade(frozenset())


def attention(spec: str, args: argparse.Namespace) -> einfuse.Attention:
    return einfuse.compile(spec, **params(args))


def attentions(names: Sequence[str], args: argparse.Namespace) -> list[einfuse.Attention]:
    """Those named, or all of the library."""
    return [attention(name, args) for name in names or [s.name for s in einfuse.list_specs()]]
