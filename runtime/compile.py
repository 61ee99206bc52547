"""From what a user writes to a compiled attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from einfuse.ir import Scalar, SpecError
from einfuse.runtime.attention import Attention
from einfuse.runtime.backends import BackendName
from einfuse.runtime.forms import FormName
from einfuse.runtime.source import Source
from einfuse.runtime.specs import found


def compile(
    source: str | Path,
    *,
    backend: BackendName | None = None,
    strict: bool = False,
    form: FormName = "auto",
    **params: Scalar | str,
) -> Attention:
    """Compiles an attention.

    ``source`` is the name of a library spec (see `list_specs`), the path of an ``.attn`` file, or the text of a spec. ``params`` set the
    spec's parameters: compile-time ones are folded away, numbers become the new defaults. ``backend`` is chosen by device unless named;
    ``strict`` refuses one-pass forms whose correction is sampled and not proven. ``form`` is ``quadratic``, ``linear`` (SpecError where the
    weights do not factor) or chosen at every call by its shapes. Raises SpecError with line, column and hint.
    """
    text, file, folder = found(source)
    spec = Source(text, file, str(folder or ""), tuple(sorted(params.items())))
    optional = spec.optional()
    try:
        return Attention(spec.cascade(frozenset()), backend, strict, spec if optional else None, optional, form=form)
    except SpecError as error:  # of a pass, which sees no text
        raise error.within(text, file) from None


def attention(
    score_mod: Callable[..., object] | None = None,
    mask_mod: Callable[..., object] | None = None,
    normalizer: str = "softmax",
    *,
    scale: float | None = None,
    backend: BackendName | None = None,
    strict: bool = False,
) -> Attention:
    """An attention from traced Python functions: a score mod, a mask mod (composed with ``&``, ``|``, ``~``) and a normaliser by name.

    The functions are called once with symbols (never parsed). Their keyword-only arguments become inputs of the attention: tensors where
    they are indexed, numbers where they have a default. Raises SpecError where a function does what symbols cannot.
    """
    from einfuse import dsl

    return Attention(dsl.attention(score_mod=score_mod, mask_mod=mask_mod, normalizer=normalizer, scale=scale), backend, strict)
