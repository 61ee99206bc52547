"""The faults of a text: what `einfuse check` and the diagnostics of an editor say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from einfuse import dsl
from einfuse.dsl import ast
from einfuse.ir import Scalar, SpecError
from einfuse.ir.nodes import Cascade
from einfuse.ir.passes.kernels import kernels

Params = Mapping[str, Scalar | str]


def faults(text: str, file: str = "<text>", search: Sequence[Path] = (), params: Params | None = None) -> list[SpecError]:
    """The first fault of the text, or where it can be read the first one of every attention: of its statements, or of a pass.

    ``params`` are for the last attention, and for others as far as they have them.
    """
    return list(_every(text, file, search, params or {}, fuse=True))


def quick_faults(text: str, file: str = "<text>", search: Sequence[Path] = ()) -> list[SpecError]:
    """The same without what only fusing finds: at most some milliseconds, for every key stroke."""
    return list(_every(text, file, search, {}, fuse=False))


def _every(text: str, file: str, search: Sequence[Path], params: Params, fuse: bool) -> Iterator[SpecError]:
    try:
        module = dsl.parse(text, file)
        dsl.signature(module)  # there is an attention, and no two have one name
    except SpecError as error:
        yield error.within(text, file)
        return
    seen = set()
    for node in module.attentions:
        mine = params if node is module.attentions[-1] else {n: x for n, x in params.items() if n in declared(node)}
        try:
            for cascade in variants(module, node, search, mine):
                compiled(cascade, fuse)
        except SpecError as error:
            found = error.within(text, file)
            if str(found) not in seen:  # two attentions may call the same definition
                seen.add(str(found))
                yield found


def declared(node: ast.Attention) -> set[str]:
    """The names of the parameters of an attention."""
    return {p.name.text for p in node.params}


def variants(module: ast.Module, node: ast.Attention, search: Sequence[Path], params: Params) -> Iterator[Cascade]:
    """The cascades of an attention without its optional inputs and with all of them. Raises SpecError."""
    optional = frozenset(x.name.text for x in node.body if isinstance(x, ast.Input) and x.optional)
    for given in dict.fromkeys((frozenset[str](), optional)):
        yield dsl.elaborate(module, node.name.text, params, given, search)


def compiled(cascade: Cascade, fuse: bool = True) -> list[Cascade]:
    """The kernels of a cascade after all passes, or before any. Raises SpecError where a pass refuses one."""
    cut = list(kernels(cascade))
    if fuse:
        from einfuse.runtime import derived  # with algebra, which takes longer to import than a text to read

        return [derived.scheduled(c, 64, 64) for c in cut]
    return cut
