"""Models of Hugging Face transformers on einfuse, by its own registries of attention and mask functions (transformers 5).

    einfuse.integrations.transformers.register("einfuse")
    model = AutoModel.from_pretrained(folder, attn_implementation="einfuse")

Causal masks, windows, chunks, packed sequences and padding stay formulas inside the kernel; any other mask (image blocks) is handed over as
the booleans that transformers makes of it.
"""

from __future__ import annotations

import functools

from einfuse.integrations.reports import NAMES
from einfuse.integrations.transformers import functions, masks
from einfuse.integrations.transformers.attention import Setting, Unsupported, attend
from einfuse.integrations.transformers.continuous import continuous as continuous
from einfuse.integrations.transformers.models import check_models
from einfuse.runtime.attention import Attention
from einfuse.runtime.backends import BackendName
from einfuse.runtime.compile import compile as compile_spec


def register(
    name: str = "einfuse",
    spec: str | Attention | None = None,
    *,
    backend: BackendName | None = None,
    unsupported: Unsupported = "refuse",
) -> None:
    """Makes ``attn_implementation=name`` mean einfuse.

    Without a ``spec``, everything a stock model asks for is computed: padding, causal and windowed masks, grouped heads, scale, softcap,
    sinks, position bias, dropout, packed sequences (``cu_seq_lens_q`` and ``_k``). A ``spec`` (an attention, or what `einfuse.compile`
    takes) replaces the mechanism: it is given q, k, v and those of pad, mask, bias, sink, qdoc, kdoc, seed, scale, cap, window, shift,
    rate that it declares, and has to write its own causality; a call that needs something else raises ValueError.

    ``unsupported`` says what is done about the wish for attention weights, and about models that compute attention by their own code
    (Bloom, MPNet) or ask for what einfuse does not know: "refuse" raises ValueError, "fallback" runs transformers' own attention and
    warns once. Raises ValueError for a spec beside "fallback": transformers has no such mechanism to fall back to.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if spec is not None and unsupported == "fallback":
        raise ValueError('unsupported="fallback" needs the stock mechanism, found a spec of your own')
    if unsupported not in ("refuse", "fallback"):
        raise ValueError(f'unsupported must be "refuse" or "fallback", found {unsupported!r}')
    if isinstance(spec, str):
        spec = compile_spec(spec, backend=backend)
    AttentionInterface.register(name, functools.partial(attend, Setting(spec, backend, unsupported)))
    AttentionMaskInterface.register(name, masks.mask)
    if not NAMES:
        check_models()
        functions.replace_functions()
    NAMES[name] = unsupported
