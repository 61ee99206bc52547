"""`operator`: a spec as an operator of torch in a library of its own, for processes that have torch and nothing of einfuse.

window = einfuse.export.operator(einfuse.compile("sliding_window"), "window.so", q, k, v, window=64)    # compiled for these dtypes and widths
class Block(torch.nn.Module): ...                             # calls window(q, k, v, window=64)
torch.export.save(torch.export.export(Block(), ...), "block.pt2")

torch.ops.load_library("window.so"); torch.export.load("block.pt2")      # elsewhere: no einfuse, no compiler
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never

import torch
from torch.utils import cpp_extension

from einfuse.codegen import cpu
from einfuse.codegen.cpu import source
from einfuse.codegen.cpu.operator import NAMESPACE, Out, Printer
from einfuse.ir import Scalar, SpecError
from einfuse.runtime import backends, binding
from einfuse.runtime.attention import Attention
from einfuse.runtime.given import Given
from einfuse.runtime.outputs import materialised
from einfuse.runtime.program import Program
from einfuse.runtime.specialise import Printed, static_sizes
from einfuse.runtime.tiles import Variant


@dataclass(frozen=True)
class Operator:
    """An attention as ``torch.ops.einfuse_spec.NAME``, called as the attention is; the kernel of ``library`` computes it. Forward only."""

    attention: Attention
    name: str
    library: Path

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor | Scalar) -> Any:
        """What the attention gives out. Raises as a call of it does, TypeError where a gradient would be asked for, and RuntimeError for
        dtypes and widths that it was not built for."""
        tensors, numbers = binding.arguments(self.attention.cascade, args, kwargs)
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors.values()):
            raise TypeError(f"the operator {self.name} has no backward: call it under torch.no_grad(), or the attention itself")
        return getattr(getattr(torch.ops, NAMESPACE), self.name).default(*tensors.values(), **numbers)


def operator(
    attention: Attention, path: str | Path, *args: torch.Tensor, name: str = "", **kwargs: torch.Tensor | Scalar
) -> Operator:
    """Writes the library of an operator to ``path`` and loads it: for calls with the dtypes and widths of the arguments, of any lengths.

    ``name`` is the operator's, by default the spec's. The library runs on processors like this one (or as ``$CXXFLAGS`` says), with torch
    from this version on. Raises SpecError for a spec that is not one kernel which takes tensors as they are, with the reason; ValueError
    for a name that there is.
    """
    name, path = name or attention.name, Path(path)
    if not name.isidentifier() or hasattr(getattr(torch.ops, NAMESPACE), name):
        raise ValueError(f"an operator needs a name of its own that is an identifier, found {name}")
    given = Given.called(attention.cascade, args, kwargs)
    printed = _kernel(attention, given)
    program = attention.program
    cascade, outs = attention.cascade, program.gives(given)
    storage = {n: binding.STORAGE[x.dtype] for n, x in given.tensors.items()}
    ranks = {x.target: x.ranks for x in cascade.body}  # type: ignore[union-attr]  # no scans
    made = [
        Out(n, tuple(cascade.rank(r).size for r in (*cascade.over, *ranks[n])), binding.STORAGE[x.dtype], x.cleared)
        for n, x in outs.items()
    ]
    printer = Printer(name, cascade, printed.plan, storage, static_sizes(cascade, given.sizes), made)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cpu.compiled(printer.text(source.emit(printed.plan, keeps=False)), name, _options()))
    torch.ops.load_library(str(path.resolve()))
    torch.library.register_fake(f"{NAMESPACE}::{name}", _fake(attention))
    return Operator(attention, name, path)


def _options() -> Sequence[str]:
    """What the compiler is told beside the options of kernels."""
    folders = [f"-I{p}" for p in cpp_extension.include_paths()]
    libraries = [f"-L{p}" for p in cpp_extension.library_paths()]
    return ("-fexceptions", "-fvisibility=hidden", *folders, *libraries, "-ltorch_cpu", "-lc10")


def _kernel(attention: Attention, given: Given) -> Printed:
    """The one kernel that computes it. Raises SpecError where there is more to a call."""
    c, program = attention.cascade, attention.program

    def refuse(reason: str) -> Never:
        raise SpecError(f"{c.name} cannot be an operator of its own: {reason}", c.loc)

    if attention.selection is not None:
        refuse("it chooses what it reads")
    if type(program) is not Program:
        refuse("it takes several kernels")
    if program.guard.groups or program.guard.looks:
        refuse("whether what it reads is there has to be looked at before a call")
    if given.device.type != "cpu":
        refuse(f"there are operators for CPUs, found tensors on {given.device}")
    backend = backends.choose(given.device, "cpu")
    outs = program.gives(given)
    kernel = program.specialised(c, given.more({n: x.described() for n, x in outs.items()}), backend)
    variant = kernel.choose(given.sizes, given.numbers)
    return kernel.printed(Variant(variant.start))  # for all lengths


def _fake(attention: Attention) -> Any:
    """What the operator gives out for shapes alone."""

    def fake(*tensors: torch.Tensor, **numbers: Scalar) -> Any:
        names = [t.name for t in attention.cascade.inputs if not t.param]
        given = Given.of(attention.cascade, dict(zip(names, tensors, strict=True)), numbers)
        outs = tuple(materialised(attention.program.gives(given), given.device).values())
        return outs[0] if len(outs) == 1 else outs

    return fake
