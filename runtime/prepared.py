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
from typing import Any

import torch

from einfuse.ir import Cascade, Scalar, debug
from einfuse.ir.expr import sizes as made_of
from einfuse.runtime.backends import Backend, BackendName, choose
from einfuse.runtime.binding import precision_of
from einfuse.runtime.devices import switched
from einfuse.runtime.forms import FORM
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Graph, Run
from einfuse.runtime.kinds import Key
from einfuse.runtime.ops import Call
from einfuse.runtime.program import Program
from einfuse.runtime.quiet import PLAIN, STRIDED, watched
from einfuse.runtime.recent import Recent
from einfuse.runtime.recorded import Recorded

Argument = torch.Tensor | Scalar


class Reader:
    """Reads the arguments of calls of one cascade: tensors in the order of declaration, host numbers, and sizes that shapes tell.

    Sizes that are made of others (``H // group``, ``table * P``) are those of an earlier call where these are the same.
    """

    __slots__ = ("_axes", "_defaults", "_first", "_ints", "_made", "_made_of", "_plain", "names")

    def __init__(self, cascade: Cascade) -> None:
        tensors = [t for t in cascade.inputs if not t.param]
        self.names = tuple(t.name for t in tensors)
        self._axes = tuple((t.name, len(t.axes)) for t in tensors)
        flat = [e.name if e.op == "size" else None for t in tensors for e in t.axes]
        self._plain: dict[str, int] = {}
        for place, size in enumerate(flat):
            if size is not None:
                self._plain.setdefault(size, place)
        self._first = [place if n is None else self._plain[n] for place, n in enumerate(flat)]
        self._ints = {t.name: t.dtype == "int" for t in cascade.inputs if t.param}
        self._defaults = {t.name: _typed(t.default, t.dtype) for t in cascade.inputs if t.param and t.default is not None}
        parts = {n for t in tensors for e in t.axes if e.op != "size" for n in made_of(e)}
        parts |= {n for r in cascade.ranks if r.extent is not None for n in made_of(r.extent)}
        self._made_of = [place for place, n in enumerate(flat) if n is None] + sorted(
            self._plain[n] for n in parts & {*self._plain}
        )
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
        extents: list[int] = []
        for name, axes in self._axes:
            x = tensors.get(name)
            if not isinstance(x, torch.Tensor) or x.ndim != axes:
                return None
            ordered[name] = x
            extents += x.shape
        if [extents[place] for place in self._first] != extents:
            return None
        sizes = {n: extents[place] for n, place in self._plain.items()}
        if self._made_of:
            made = self._made.get(tuple([extents[place] for place in self._made_of]))
            if made is None:
                return None
            sizes |= made
        return Given(ordered, numbers, sizes)

    def learn(self, given: Given) -> None:
        """Keeps the made sizes of a call that fits."""
        if self._made_of:
            extents = [n for name in self.names for n in given.tensors[name].shape]
            made = {n: x for n, x in given.sizes.items() if n not in self._plain}
            self._made[tuple([extents[place] for place in self._made_of])] = made


@dataclass(slots=True)
class Ready:
    """One kind of call. ``looks``: at the values of tensors, before every launch; ``recorded``: for gradients."""

    program: Program
    graph: Graph
    looks: bool
    recorded: Recorded | None

    def __call__(self, given: Given, again: Run | None = None) -> list[torch.Tensor]:
        """The outputs for tensors whose values were looked at; ``again`` is the graph bound to the signature of the call."""
        if self.recorded is not None:
            return self.recorded(given, again)
        return self.graph.run(given.tensors, given)  # type: ignore[arg-type]  # our own dictionary, read by nobody else


@dataclass(slots=True)
class Seen:
    """Calls of one signature, whose sizes and numbers were looked at: the first of them binds what is left to run."""

    ready: Ready
    numbers: Mapping[str, Scalar]
    sizes: Mapping[str, int]
    again: Run | None
    alone: Run | None = field(init=False)
    """All that such a call runs, where no values are looked at and no gradient is recorded."""

    def __post_init__(self) -> None:
        self.alone = None if self.ready.looks or self.ready.recorded is not None else self.again

    def __call__(self, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """The outputs."""
        if self.alone is not None and not debug.enabled("launch"):
            return self.alone(tensors)
        if self.ready.looks:
            self.ready.program.check_ranges(Given(tensors, self.numbers, self.sizes))
        return self.run(tensors)

    def run(self, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """The outputs for tensors whose values were looked at."""
        again = None if debug.enabled("launch") else self.again
        if again is not None and self.ready.recorded is None:
            return again(tensors)
        return self.ready(Given(tensors, self.numbers, self.sizes), again)


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
    _latest: tuple[Key, Seen | None] = field(default=((), None), init=False)
    """What `seen` was asked for last: to compare two signatures takes a quarter of the time of a look-up."""

    def __post_init__(self) -> None:
        self.read = Reader(self.program.cascade)

    def __call__(self, args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> list[torch.Tensor] | None:
        """The outputs of a call of a known kind; None for any other."""
        signed = self._signature(args, kwargs)
        if signed is None:
            return None
        known, seen = self._latest
        if seen is None or known != signed:  # in a model, layer after layer has one signature
            try:
                seen = self.seen[signed]
            except KeyError:
                return self._first(signed, args, kwargs) if self.known else None
            self._latest = signed, seen
        return seen(self.read.tensors(args, kwargs))

    def _first(self, signed: Key, args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> list[torch.Tensor] | None:
        """The same for the first call of a signature."""
        given = self.read(args, kwargs)
        if given is None:
            return None
        found = self.known.get(self._kind(given, *self._served(given)))
        if found is None:
            return None
        found.program.check_ranges(given)
        self.seen[signed] = seen = Seen(found, given.numbers, given.sizes, found.graph.bound(given))  # nothing was refused
        return seen.run(given.tensors)  # type: ignore[arg-type]  # our own dictionary, read by nobody else

    def prepared(self, given: Given, formed: bool) -> list[torch.Tensor]:
        """The outputs of a call whose arguments are known to fit, of a kind that is made ready by it."""
        self.formed = formed
        self.read.learn(given)
        backend, program = self._served(given)
        wanted = _wanted(given)
        graph = program.shared(given, backend, wanted)
        recorded = Recorded(program, backend, graph, wanted, self.operator) if wanted else None
        self.known[self._kind(given, backend, program)] = made = Ready(program, graph, program.guard.looks, recorded)
        program.check_ranges(given)
        return made(replace(given, tensors=dict(given.tensors)))

    def _served(self, given: Given) -> tuple[Backend, Program]:
        """The back end of a call, and the program that serves it best there."""
        backend = choose(given.device, self.backend)
        return backend, self.program.suited(backend, lambda: precision_of(self.program.cascade, given.tensors).itemsize == 2)

    def _kind(self, given: Given, backend: Backend, program: Program) -> Key:
        kind = program.key(given, backend, _wanted(given))
        return (os.environ.get(FORM), *given.sizes.values(), *kind) if self.formed else kind

    def _signature(self, args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> Key | None:
        """What two calls share that bring the same but for what tensors hold, and where they lie; None for a call that something has to see."""
        if torch.compiler.is_compiling() or watched():
            return None
        grad = torch.is_grad_enabled()
        parts: list[object] = [len(args), torch.get_num_threads(), os.environ.get(FORM) if self.formed else None, *kwargs]
        elsewhere = False
        x: Any
        for x in (*args, *kwargs.values()) if kwargs else args:
            if type(x) in PLAIN:  # what `plain` asks, without a call
                device = None if x.is_cpu else x.device
                if x.layout is not STRIDED or x.is_nested or x.is_neg() or (device is not None and x.is_meta):
                    return None
                parts += (x.shape, x.stride(), x.dtype, device, grad and x.requires_grad)
                elsewhere = elsewhere or device is not None
            elif type(x) is float or type(x) is int:
                parts += (type(x), x if x else str(x))  # -0.0 is not 0.0 here
            else:
                return None
        return (*parts, switched()) if elsewhere else tuple(parts)

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
