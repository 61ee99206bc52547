"""From SPEC arguments to compiled attentions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import einfuse
from einfuse.ir import SpecError

OWN = ("source", "backend", "strict", "form")


def params(args: argparse.Namespace) -> dict[str, Any]:
    """What --param gave, ready to be passed to `einfuse.compile` beside its own arguments."""
    given = dict(args.param)
    for name in OWN:
        if name in given:
            raise SpecError(f"--param sets a parameter of the spec; `{name}` is none")
    return given


def attention(spec: str, args: argparse.Namespace) -> einfuse.Attention:
    return einfuse.compile(spec, **params(args))


def attentions(specs: Sequence[str], args: argparse.Namespace) -> list[einfuse.Attention]:
    """Those named, or all of the library."""
    return [attention(name, args) for name in specs or [s.name for s in einfuse.list_specs()]]
