"""Masks ready for use in Python: ``einfuse.attention(mask_mod=masks.causal & masks.document)``. The text has `dsl/masks.attn`."""

from __future__ import annotations

from typing import Any

from einfuse.dsl.decorators import mask_mod


@mask_mod
def causal(b: Any, h: Any, i: Any, j: Any) -> Any:
    """The past and the present."""
    return j <= i


@mask_mod
def window(b: Any, h: Any, i: Any, j: Any, *, window: int = 256) -> Any:
    """The last ``window`` positions, the present included."""
    return (j <= i) & (i - j < window)


@mask_mod
def band(b: Any, h: Any, i: Any, j: Any, *, reach: int = 128) -> Any:
    """At most ``reach`` positions away on either side."""
    return abs(i - j) <= reach


@mask_mod
def chunk(b: Any, h: Any, i: Any, j: Any, *, width: int = 512) -> Any:
    """The own chunk of ``width`` positions."""
    return i // width == j // width


@mask_mod
def prefix(b: Any, h: Any, i: Any, j: Any, *, prefix: int) -> Any:
    """The first ``prefix[b]`` keys, and the past."""
    return (j < prefix[b]) | (j <= i)  # type: ignore[index]  # the annotation tells the type of the elements


@mask_mod
def document(b: Any, h: Any, i: Any, j: Any, *, doc: int) -> Any:
    """Positions of one document; ``doc[b, i]`` is the document of position i."""
    return doc[b, i] == doc[b, j]  # type: ignore[index]  # as above


@mask_mod
def padding(b: Any, h: Any, i: Any, j: Any, *, pad: bool) -> Any:
    """Keys that are real: ``pad[b, j]`` is true where a key is no padding."""
    return pad[b, j]  # type: ignore[index]  # as above
