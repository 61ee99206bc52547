"""A call like an earlier one: goes straight to the graph of its kind, past torch's dispatcher, where the dispatcher would have no say.

No tracer, transform, mode or subclass of a tensor looks on. All other calls go through the operators of `einfuse.runtime.ops`. What such
a call brings is read in one go over its arguments (`Reader`), without the reports of `einfuse.runtime.binding`: whatever is not as in a
call that went through there goes there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from einfuse.ir import Cascade, Scalar, debug
from einfuse.ir.expr import sizes as made_of
from einfuse.runtime.backends import Backend, BackendName, choose
from einfuse.runtime.binding import precision_of
from einfuse.runtime.forms import FORM
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Graph
from einfuse.runtime.kinds import Key
from einfuse.runtime.ops import Call
from einfuse.runtime.program import Program
from einfuse.runtime.quiet import plain, watched
from einfuse.runtime.recent import Recent
from einfuse.runtime.recorded import Recorded

Argument = torch.Tensor | Scalar


class Reader:
    """Reads the arguments of calls of one cascade: tensors in the order of declaration, host numbers, and sizes that shapes tell.

    Sizes that are made of others (``H // group``, ``table * P``) are those of an earlier call where these are the same.
    """

    __slots__ = ("_axes", "_base", "_defaults", "_ints", "_made", "names")

    def __init__(self, cascade: Cascade) -> None:
        tensors = [t for t in cascade.inputs if not t.param]
        self.names = tuple(t.name for t in tensors)
        self._axes = tuple((t.name, tuple(e.name if e.op == "size" else None for e in t.axes)) for t in tensors)
        self._ints = {t.name: t.dtype == "int" for t in cascade.inputs if t.param}
        self._defaults = {t.name: _typed(t.default, t.dtype) for t in cascade.inputs if t.param and t.default is not None}
        plain = {n for _, axes in self._axes for n in axes if n is not None}
        parts = {n for t in tensors for e in t.axes if e.op != "size" for n in made_of(e)}
        parts |= {n for r in cascade.ranks if r.extent is not None for n in made_of(r.extent)}
        self._base = tuple(sorted(parts & plain))
        self._made: Recent[tuple[int, ...], Mapping[str, int]] = Recent()

    def __call__(self, args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> Given | None:
        """What a call with a signature brings; None for one that does not fit, or whose made sizes are not known."""
        tensors, numbers = self.tensors(args, kwargs), self._defaults.copy()
        for n, whole in self._ints.items():
            x = kwargs.get(n)
            if x is None:
                continue
            if isinstance(x, torch.Tensor) or (not math.isfinite(x) if not whole else type(x) is not int):
                return None
            numbers[n] = x if whole else float(x)
        if len(args) + len(kwargs) - len(kwargs.keys() & self._ints.keys()) != len(self.names) or len(numbers) != len(
            self._ints
        ):
            return None
        return self._sized(tensors, numbers)

    def tensors(self, args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> dict[str, torch.Tensor]:
        """The tensors of a call by name."""
        tensors: dict[str, torch.Tensor] = dict(zip(self.names, args))  # type: ignore[arg-type]  # noqa: B905  # what a signature says
        if kwargs:
            tensors |= {n: x for n, x in kwargs.items() if n not in self._ints}  # type: ignore[misc]  # as above
        return tensors

    def _sized(self, tensors: Mapping[str, torch.Tensor], numbers: dict[str, Scalar]) -> Given | None:
        ordered: dict[str, torch.Tensor] = {}
        sizes: dict[str, int] = {}
        odd: list[int] = []
        for name, axes in self._axes:
            x = tensors.get(name)
            if not isinstance(x, torch.Tensor) or x.ndim != len(axes):
                return None
            ordered[name] = x
            for axis, n in zip(axes, x.shape, strict=True):
                if axis is None:
                    odd.append(n)
                elif sizes.setdefault(axis, n) != n:
                    return None
        if odd or self._base:
            made = self._made.get((*odd, *[sizes[n] for n in self._base]))
            if made is None:
                return None
            sizes |= made
        return Given(ordered, numbers, sizes)

    def learn(self, given: Given) -> None:
        """Keeps the made sizes of a call that fits."""
        plain = {n for _, axes in self._axes for n in axes}
        odd = [n for name, axes in self._axes for a, n in zip(axes, given.tensors[name].shape, strict=True) if a is None]
        if odd or self._base:
            made = {n: x for n, x in given.sizes.items() if n not in plain}
            self._made[(*odd, *[given.sizes[n] for n in self._base])] = made


@dataclass(slots=True)
class Ready:
    """One kind of call. ``looks``: at the values of tensors, before every launch; ``recorded``: for gradients."""

    program: Program
    graph: Graph
    looks: bool
    recorded: Recorded | None

    def __call__(self, given: Given, new: bool = False) -> list[torch.Tensor]:
        """The outputs; ``new``: of sizes or numbers that were not looked at."""
        if self.looks or new:
            self.program.check_ranges(given)
        if self.recorded is not None:
            return self.recorded(given)
        return self.graph.run(given.tensors, given)  # type: ignore[arg-type]  # our own dictionary, read by nobody else


@dataclass(slots=True)
class Seen:
    """Calls of one signature: the second of them binds what is left to run, so that lengths that grow at every call bind nothing."""

    ready: Ready
    numbers: Mapping[str, Scalar]
    sizes: Mapping[str, int]
    asked: bool = False
    again: Callable[[dict[str, torch.Tensor]], list[torch.Tensor]] | None = None
    """What takes the tensors alone; None where there is more to look at."""

    def __call__(self, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """The outputs."""
        if self.again is not None and not debug.enabled("launch"):
            return self.again(tensors)
        given = Given(tensors, self.numbers, self.sizes)
        if not self.asked and not self.ready.looks and self.ready.recorded is None:
            self.again = self.ready.graph.bound(given)
        self.asked = True
        return self.ready(given)


@dataclass(slots=True)
class Calls:
    """The calls of one attention that were made ready: by their kind, and, to be found at once, those seen last by their signature."""

    program: Program
    backend: BackendName | None
    operator: Callable[[Mapping[str, Scalar]], Call]
    known: Recent[Key, Ready] = field(default_factory=Recent)
    seen: Recent[Key, Seen] = field(default_factory=Recent)
    formed: bool = False
    """Whether there is a linear form, which exact sizes decide for."""
    read: Reader = field(init=False)

    def __post_init__(self) -> None:
        self.read = Reader(self.program.cascade)

    def __call__(self, args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> list[torch.Tensor] | None:
        """The outputs of a call of a known kind; None for any other."""
        signed = self._signature(args, kwargs)
        if signed is None:
            return None
        try:
            seen = self.seen[signed]
        except KeyError:
            return self._first(signed, args, kwargs) if self.known else None
        return seen(self.read.tensors(args, kwargs))

    def _first(self, signed: Key, args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> list[torch.Tensor] | None:
        """The same for the first call of a signature."""
        given = self.read(args, kwargs)
        if given is None:
            return None
        found = self.known.get(self._kind(given, *self._served(given)))
        if found is None:
            return None
        outs = found(given, new=True)
        self.seen[signed] = Seen(found, given.numbers, given.sizes)  # nothing was refused
        return outs

    def prepared(self, given: Given, formed: bool) -> list[torch.Tensor]:
        """The outputs of a call whose arguments are known to fit, of a kind that is made ready by it."""
        self.formed = formed
        self.read.learn(given)
        backend, program = self._served(given)
        wanted = _wanted(given)
        graph = program.shared(given, backend, wanted)
        recorded = Recorded(program, backend, graph, wanted, self.operator) if wanted else None
        self.known[self._kind(given, backend, program)] = made = Ready(program, graph, program.guard.looks, recorded)
        return made(replace(given, tensors=dict(given.tensors)), new=True)

    def _served(self, given: Given) -> tuple[Backend, Program]:
        """The back end of a call, and the program that serves it best there."""
        backend = choose(given.device, self.backend)
        return backend, self.program.suited(backend, lambda: precision_of(self.program.cascade, given.tensors).itemsize == 2)

    def _kind(self, given: Given, backend: Backend, program: Program) -> Key:
        wanted = _wanted(given)
        kind = (wanted, *program.kind(given, backend, wanted))
        return (os.environ.get(FORM), *given.sizes.values(), *kind) if self.formed else kind

    def _signature(self, args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> Key | None:
        """What two calls share that bring the same but for what tensors hold, and where they lie; None for a call that something has to see."""
        if torch.compiler.is_compiling() or watched():
            return None
        grad = torch.is_grad_enabled()
        parts: list[object] = [len(args), torch.get_num_threads(), os.environ.get(FORM) if self.formed else None, *kwargs]
        for x in (*args, *kwargs.values()) if kwargs else args:
            if plain(x):
                assert isinstance(x, torch.Tensor), "it is one"
                parts += (x.shape, x.stride(), x.dtype, None if x.is_cpu else x.device, grad and x.requires_grad)
            elif type(x) is float or type(x) is int:
                parts += (type(x), x if x else str(x))  # -0.0 is not 0.0 here
            else:
                return None
        return tuple(parts)

    def takes(self, cascade: Cascade, args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> bool:
        """Whether calls like this one can be kept ready: tensors are given for tensors, numbers for numbers, and nothing has to see them."""
        if self._signature(args, kwargs) is None:
            return False
        named = dict(zip(self.read.names, args, strict=False)) | dict(kwargs)
        return all(isinstance(named.get(t.name, t.default), torch.Tensor) != t.param for t in cascade.inputs)


def _wanted(given: Given) -> tuple[str, ...]:
    """The inputs of a call that gradients are recorded for."""
    return tuple([n for n, x in given.tensors.items() if x.requires_grad]) if torch.is_grad_enabled() else ()


def _typed(x: Scalar, dtype: str) -> Scalar:
    return x if dtype == "int" else float(x)
