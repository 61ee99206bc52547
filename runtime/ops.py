"""The operators that torch sees. Each takes the text of a cascade, so a captured graph says all that it needs to run in another process.

`attention` computes outputs; `forward` computes them and what a backward will read; `backward` computes gradients; `derivative`
computes derivatives of any order. Host numbers travel as lists of ints and floats in the order of the cascade's parameters (None in
place of an empty list, which AOTInductor cannot pass), tensors in the order of its inputs. What torch's autograd and transforms do
with these operators is in `einfuse.runtime.transforms`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch._compile import _disable_dynamo

from einfuse.ir import Cascade, EinfuseError, Scalar, SpecError
from einfuse.ir.text import parse, show
from einfuse.runtime import higher
from einfuse.runtime.apart import apart
from einfuse.runtime.backends import Backend, choose
from einfuse.runtime.binding import precision_of
from einfuse.runtime.given import Given
from einfuse.runtime.outputs import materialised
from einfuse.runtime.program import Program
from einfuse.runtime.recent import Living
from einfuse.runtime.staged import program_of

Key = tuple[str, bool, bool]
"""A cascade's text, and whether its program is strict and gives out wide numbers."""

_PROGRAMS: Living[Key, Program] = Living()
"""The programs of the attentions there are, and those used last: what a captured graph alone asks for can be made again from its text."""


def register(cascade: Cascade, strict: bool, wide: bool) -> tuple[str, Program]:
    """The cascade's text, and the one program of this process for it."""
    text = show(cascade)
    return text, _PROGRAMS.made((text, strict, wide), lambda: program_of(cascade, strict, wide))


class Call(NamedTuple):
    """The arguments that every operator begins with."""

    spec: str
    backend: str
    strict: bool
    wide: bool
    ints: Sequence[int] | None
    floats: Sequence[float] | None

    @property
    def program(self) -> Program:
        """The program of the spec. Raises EinfuseError where its text cannot be read."""
        key = (self.spec, self.strict, self.wide)
        try:
            return _PROGRAMS.made(key, lambda: apart(lambda: program_of(parse(self.spec), self.strict, self.wide)))
        except SpecError as error:
            raise EinfuseError(
                f"this graph holds an attention that this version of einfuse cannot read; capture it again: {self.spec[:200]}"
            ) from error

    @property
    def cascade(self) -> Cascade:
        """The spec as a cascade."""
        return self.program.cascade

    @property
    def differentiable(self) -> list[bool]:
        """Of each tensor, whether it has derivatives."""
        return [t.dtype == "float" for t in self.cascade.inputs if not t.param]

    @staticmethod
    def of(key: Key, cascade: Cascade, backend: str, numbers: Mapping[str, Scalar]) -> Call:
        """For host numbers of a cascade, of which the first of ``key`` is the text."""
        params = [t for t in cascade.inputs if t.param]
        symbolic = torch.compiler.is_compiling()
        ints: list[Any] = [numbers[t.name] if symbolic else int(numbers[t.name]) for t in params if t.dtype == "int"]
        floats = [float(numbers[t.name]) for t in params if t.dtype == "float"]
        return Call(key[0], backend, *key[1:], ints or None, floats or None)

    def suited(self, tensors: Sequence[torch.Tensor]) -> tuple[Program, Backend]:
        """The program that serves these tensors best, and the back end it runs on."""
        chosen = choose(tensors[0].device, self.backend or None)  # type: ignore[arg-type]  # checked by `choose`
        names = [t.name for t in self.cascade.inputs if not t.param]

        def narrow() -> bool:
            return precision_of(self.cascade, dict(zip(names, tensors, strict=True))).itemsize == 2

        return self.program.suited(chosen, narrow), chosen

    def given(self, tensors: Sequence[torch.Tensor]) -> Given:
        """What the call brings, by name."""
        c = self.cascade
        names = [t.name for t in c.inputs if not t.param]
        numbers: dict[str, Scalar] = {}
        for kind, values in (("int", self.ints or ()), ("float", self.floats or ())):
            numbers |= dict(zip([t.name for t in c.inputs if t.param and t.dtype == kind], values, strict=True))
        return Given.of(c, dict(zip(names, tensors, strict=True)), numbers)

    def wanted(self, needs: Sequence[bool]) -> tuple[str, ...]:
        """The names of the float inputs that are marked in ``needs``."""
        inputs = [t for t in self.cascade.inputs if not t.param]
        return tuple(t.name for t, need in zip(inputs, needs, strict=True) if need and t.dtype == "float")


def _settled(tensors: Sequence[torch.Tensor]) -> contextlib.AbstractContextManager[None]:
    """Turns autocast off: inside an operator dtypes are chosen already, and autocast would round sums between two kernels."""
    device = tensors[0].device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()


LIBRARY = torch.library.Library("einfuse", "FRAGMENT")
_CALL = "str spec, str backend, bool strict, bool wide, SymInt[]? ints, float[]? floats"


def _operator(schema: str) -> Callable[[Callable[..., list[torch.Tensor]]], Any]:
    """Defines an operator of this schema whose kernel, on every device, is the decorated function."""

    def define(kernel: Callable[..., list[torch.Tensor]]) -> Any:
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        name = schema.split("(")[0]
        LIBRARY.impl(name, _disable_dynamo(kernel), "CompositeExplicitAutograd")
        return getattr(torch.ops.einfuse, name).default

    return define


@_operator(f"attention({_CALL}, Tensor[] tensors) -> Tensor[]")
def attention(*args: Any) -> list[torch.Tensor]:
    """The outputs of a cascade."""
    call, (tensors,) = Call(*args[:6]), args[6:]
    program, chosen = call.suited(tensors)
    with _settled(tensors):
        return list(program.forward(call.given(tensors), chosen).values())


@_operator(f"forward({_CALL}, Tensor[] tensors, bool[] needs) -> Tensor[]")
def forward(*args: Any) -> list[torch.Tensor]:
    """The outputs of a cascade, then what its backward (for the tensors marked in ``needs``) will read."""
    call, (tensors, needs) = Call(*args[:6]), args[6:]
    program, chosen = call.suited(tensors)
    with _settled(tensors):
        return list(program.forward(call.given(tensors), chosen, call.wanted(needs)).values())


@_operator(f"backward({_CALL}, Tensor[] tensors, bool[] needs, Tensor[] outs, Tensor[] gradients) -> Tensor[]")
def backward(*args: Any) -> list[torch.Tensor]:
    """The gradients of the float tensors marked in ``needs``, from all that `forward` returned and the gradients of the outputs."""
    call, (tensors, needs, outs, gradients) = Call(*args[:6]), args[6:]
    program, chosen = call.suited(tensors)
    wanted = call.wanted(needs)
    saved = dict(zip(program.kept(wanted), outs, strict=True))
    directions = dict(zip(program.cascade.outs, gradients, strict=True))
    given = call.given(tensors)
    if not any(
        g.numel() for g in gradients
    ):  # of outputs without elements: whatever else is empty, no kernel has anything to do
        return [torch.zeros_like(given.tensors[n]) for n in wanted]
    with _settled(tensors):
        return list(program.backward(given, saved, directions, chosen, wanted).values())


@_operator(f"derivative({_CALL}, Tensor[] tensors, Tensor[] directions, str order) -> Tensor[]")
def derivative(*args: Any) -> list[torch.Tensor]:
    """A derivative of any order (see `einfuse.runtime.higher`), by the interpreter: right for every cascade, as slow as plain torch."""
    call, (tensors, directions, order) = Call(*args[:6]), args[6:]
    kinds = [(x.shape, x.dtype) for x in _like_outputs(call, [x.to("meta") for x in tensors])]
    with _settled(tensors):
        return higher.derivative(call.cascade, call.given(tensors), kinds, directions, order)


def _like_outputs(call: Call, tensors: Sequence[torch.Tensor], needs: Sequence[bool] = ()) -> list[torch.Tensor]:
    """Tensors like those that `attention` or, with ``needs``, `forward` gives out."""
    program, _ = call.suited(tensors)
    given, wanted = call.given(tensors), call.wanted(needs) if needs else ()
    apart(lambda: program.kept(wanted))  # derived here
    return list(materialised(program.gives(given, wanted), given.device).values())


def _fake_attention(*args: Any) -> list[torch.Tensor]:
    return _like_outputs(Call(*args[:6]), args[6])


def _fake_forward(*args: Any) -> list[torch.Tensor]:
    return _like_outputs(Call(*args[:6]), args[6], args[7])


def _fake_backward(*args: Any) -> list[torch.Tensor]:
    call, (tensors, needs, _, _) = Call(*args[:6]), args[6:]
    names = [t.name for t in call.cascade.inputs if not t.param]
    wanted = call.wanted(needs)
    return [torch.empty_like(x) for n, x in zip(names, tensors, strict=True) if n in wanted]


def _fake_derivative(*args: Any) -> list[torch.Tensor]:
    call, (tensors, directions, order) = Call(*args[:6]), args[6:]
    outs = _like_outputs(call, tensors)
    return [_contiguous(x) for x in higher.like(tensors, outs, directions, order)]


def _contiguous(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


for _name, _fake in (
    ("attention", _fake_attention),
    ("forward", _fake_forward),
    ("backward", _fake_backward),
    ("derivative", _fake_derivative),
):
    torch.library.register_fake(f"einfuse::{_name}", _fake, lib=LIBRARY)
