"""einfuse: write the attention you mean as a few lines of index notation; get a fused, differentiable, verified kernel.

import einfuse

attn = einfuse.compile("alibi")                    # a spec of the library, a path to an .attn file, or the text of a spec
o = attn(q, k, v, slope=slope)                     # q: [B, H, Nq, D], k: [B, Hk, Nk, D], v: [B, Hk, Nk, E] -> o: [B, H, Nq, E]
einfuse.verify(attn).ok                            # against the float64 oracle, forward and all gradients
"""

import gc
from importlib import import_module
from typing import TYPE_CHECKING

from einfuse._registered import with_torch
from einfuse.ir.errors import EinfuseError as EinfuseError
from einfuse.ir.errors import SpecError as SpecError

if TYPE_CHECKING:
    __version__: str
    from einfuse._editor.notebook import load_ipython_extension as load_ipython_extension
    from einfuse.dsl import functions as functions
    from einfuse.dsl import mask_mod as mask_mod
    from einfuse.dsl import masks as masks
    from einfuse.dsl import score_mod as score_mod
    from einfuse.dsl.functions import clamp as clamp
    from einfuse.dsl.functions import cos as cos
    from einfuse.dsl.functions import erf as erf
    from einfuse.dsl.functions import exp as exp
    from einfuse.dsl.functions import log as log
    from einfuse.dsl.functions import maximum as maximum
    from einfuse.dsl.functions import minimum as minimum
    from einfuse.dsl.functions import sigmoid as sigmoid
    from einfuse.dsl.functions import sin as sin
    from einfuse.dsl.functions import softcap as softcap
    from einfuse.dsl.functions import sqrt as sqrt
    from einfuse.dsl.functions import tanh as tanh
    from einfuse.dsl.functions import where as where
    from einfuse.runtime.attention import Attention as Attention
    from einfuse.runtime.bench import BenchShape as BenchShape
    from einfuse.runtime.bench import bench as bench
    from einfuse.runtime.compile import attention as attention
    from einfuse.runtime.compile import compile as compile
    from einfuse.runtime.cross import cross_compile as cross_compile
    from einfuse.runtime.packed import varlen as varlen
    from einfuse.runtime.specs import SpecInfo as SpecInfo
    from einfuse.runtime.specs import list_specs as list_specs
    from einfuse.runtime.verify import Certificate as Certificate
    from einfuse.runtime.verify import verify as verify

_LATER = {
    "einfuse._editor.notebook": ("load_ipython_extension",),
    "einfuse.dsl": ("functions", "mask_mod", "masks", "score_mod"),
    "einfuse.dsl.functions": (
        *("clamp", "cos", "erf", "exp", "log", "maximum", "minimum", "sigmoid", "sin", "softcap", "sqrt", "tanh", "where"),
    ),
    "einfuse.runtime.attention": ("Attention",),
    "einfuse.runtime.bench": ("bench", "BenchShape"),
    "einfuse.runtime.compile": ("attention", "compile"),
    "einfuse.runtime.cross": ("cross_compile",),
    "einfuse.runtime.packed": ("varlen",),
    "einfuse.runtime.specs": ("SpecInfo", "list_specs"),
    "einfuse.runtime.verify": ("verify", "Certificate"),
}
"""What is imported when it is asked for: the language needs no torch, and a process that only runs kernels needs no language."""


def __getattr__(name: str) -> object:
    if name == "dsl":
        return import_module("einfuse.dsl")
    if name == "__version__":
        return _version()
    for module, names in _LATER.items():
        if name in names:
            found = globals()[name] = getattr(_imported(module), name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _imported(module: str) -> object:
    """What is imported stays: looking for garbage among all that torch holds would take as long as the imports."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        return import_module(module)
    finally:
        if collecting:
            gc.enable()


def __dir__() -> list[str]:
    return sorted({*globals(), *(n for names in _LATER.values() for n in names)})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("einfuse")
    except PackageNotFoundError:  # run from a checkout, not installed
        return "0.0.0"


with_torch(lambda: _imported("einfuse.operators"))
