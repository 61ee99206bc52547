"""From SPEC arguments to compiled attentions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import einfuse
from einfuse.ir import Scalar


def params(args: argparse.Namespace) -> dict[str, Scalar | str]:
    return dict(args.param)


def attention(spec: str, args: argparse.Namespace) -> einfuse.Attention:
    return einfuse.compile(spec, **params(args))


def attentions(specs: Sequence[str], args: argparse.Namespace) -> list[einfuse.Attention]:
    """Those named, or all of the library."""
    return [attention(name, args) for name in specs or [s.name for s in einfuse.list_specs()]]
