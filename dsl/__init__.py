"""The ``.attn`` language: text or traced Python functions to a cascade. Knows nothing of tensors, kernels or devices."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from einfuse.dsl import functions as functions
from einfuse.dsl import masks as masks
from einfuse.dsl.ast import Module as Module
from einfuse.dsl.decorators import MaskMod as MaskMod
from einfuse.dsl.decorators import ScoreMod as ScoreMod
from einfuse.dsl.decorators import attention as attention
from einfuse.dsl.decorators import mask_mod as mask_mod
from einfuse.dsl.decorators import score_mod as score_mod
from einfuse.dsl.elaborate import elaborate as elaborate
from einfuse.dsl.elaborate import elaborated as elaborated
from einfuse.dsl.format import format_text as format_text
from einfuse.dsl.parse import parse as parse
from einfuse.dsl.signature import InputInfo as InputInfo
from einfuse.dsl.signature import ParamInfo as ParamInfo
from einfuse.dsl.signature import Signature as Signature
from einfuse.dsl.signature import signature as signature
from einfuse.ir import Cascade, Scalar
from einfuse.ir import read_spec as read_spec


def compile_text(
    text: str,
    file: str = "<text>",
    name: str | None = None,
    params: Mapping[str, Scalar | str] | None = None,
    given: Collection[str] | None = None,
    search: Sequence[Path] = (),
) -> Cascade:
    """`parse`, then `elaborate`."""
    return elaborate(parse(text, file), name, params, given, search)
