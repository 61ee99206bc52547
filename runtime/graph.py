"""What a call does: kernels and steps of the host, joined by the tensors that they read and make, and the one executor of all of them.

    q, k, v, bounds  ->  [causal_partial]  ->  m_part, l_part, o_0_part  ->  [causal_merged]  ->  o

A graph holds no tensor of a call, and runs for all calls that `runtime.kinds` takes for one kind: kernels read sizes, strides and host
numbers at each. What nodes make has a shape that sizes decide. The executor allocates it, in one way for all, and frees it after its
last reader.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

import torch

from einfuse.ir import DoesNotFitError, Scalar, debug
from einfuse.runtime.given import Given
from einfuse.runtime.outputs import Output

if TYPE_CHECKING:
    from einfuse.codegen.scan import Piece
    from einfuse.runtime.launch import Choice
    from einfuse.runtime.specialise import Printed

Tensors = dict[str, torch.Tensor]
Run = Callable[[Tensors], list[torch.Tensor]]
"""A graph bound to one signature: the outputs for tensors that lie as in the call that bound it."""
Launched = Callable[[Mapping[str, torch.Tensor], Mapping[str, Scalar], Mapping[str, int]], bool]
"""A kernel made ready: writes the outputs among the tensors, given numbers and sizes. True: one that holds less should take its place.
Raises `Replaced` where one that holds less has its place already, and nothing was written."""


@dataclass(slots=True, eq=False)
class Host:
    """A step in plain torch. ``do`` takes all tensors by name, and the call, and puts what it ``gives`` among them; what it ``makes`` is
    allocated before.
    """

    label: str
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    do: Callable[[Tensors, Given], None]
    makes: Mapping[str, Output] = field(default_factory=dict)

    def run(self, tensors: Tensors, call: Given) -> bool:
        """Does the step."""
        self.do(tensors, call)
        return False


@dataclass(slots=True, eq=False)
class Kernel:
    """A launch, built when it first runs. ``given`` is the call that it was chosen for; ``tables`` what it reads beside the tensors of
    the graph.

    ``names`` are the tensors that the kernel knows by another name than the graph: argument -> tensor. ``gives`` it writes in place.
    ``numbers`` and ``sizes`` it has beside those of a call, or in place of them; ``sized`` are numbers that are sizes: number -> size.
    """

    label: str
    reads: tuple[str, ...]
    makes: Mapping[str, Output]
    given: Given
    printed: Callable[[], Printed | Piece]
    build: Callable[[], Launched]
    choice: Choice | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, torch.Tensor] = field(default_factory=dict)
    gives: tuple[str, ...] = ()
    sized: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, Scalar] = field(default_factory=dict, init=False)
    sizes: Mapping[str, int] = field(default_factory=dict, init=False)
    same: bool = field(default=False, init=False)
    """Whether its tensors lie alike, with the same numbers and sizes, in every call: the first one binds it."""
    _launch: Launched | None = field(default=None, init=False)
    _again: Callable[[Tensors], None] | None = field(default=None, init=False)

    def run(self, tensors: Tensors, call: Given) -> bool:
        """Launches it."""
        if self._again is not None and not debug.enabled("launch"):
            self._again(tensors)
            return False
        if self._launch is None:
            self._launch = self.build()
        numbers, sizes = self._told(call)
        smaller = self._launch(self._mine(tensors), numbers, sizes)
        if self.same and not smaller:
            self._again = self.bound(tensors, call)
        return smaller

    def bound(self, tensors: Tensors, call: Given) -> Callable[[Tensors], None] | None:
        """The launch for tensors that lie as these do, outputs included, of a call like this one; None where it cannot be bound."""
        bind = getattr(self._launch, "bound", None)
        launch: Callable[[Tensors], None] | None = None if bind is None else bind(self._mine(tensors), *self._told(call))
        if launch is None or not (self.names or self.tables):
            return launch
        return lambda tensors: launch(self._mine(tensors))

    def _mine(self, tensors: Tensors) -> Tensors:
        """The tensors by the names that the kernel knows them by."""
        return {**tensors, **self._more(tensors)} if self.names or self.tables else tensors

    def _told(self, call: Given) -> tuple[Mapping[str, Scalar], Mapping[str, int]]:
        """The numbers and sizes that it takes at a call."""
        sizes = {**call.sizes, **self.sizes} if self.sizes else call.sizes
        numbers = {**call.numbers, **self.numbers} if self.numbers else call.numbers
        if self.sized:
            numbers = {**numbers, **{n: sizes[of] for n, of in self.sized.items()}}
        return numbers, sizes

    def beside(self, call: Given) -> None:
        """Notes what it has beside the numbers and sizes of the call that its graph is made for."""
        self.numbers = {n: x for n, x in self.given.numbers.items() if n not in call.numbers or call.numbers[n] != x}
        self.sizes = {n: x for n, x in self.given.sizes.items() if call.sizes.get(n) != x}

    def _more(self, tensors: Tensors) -> Tensors:
        return {argument: tensors[n] for argument, n in self.names.items()} | {**self.tables}

    def recorded(self, tensors: Tensors) -> Recorded:
        """The launch on these tensors, which is not run."""
        theirs = {n: x for n, x in tensors.items() if n in self.reads or n in self.makes or n in self.gives}
        renamed = {*self.names.values()} - {*self.names}
        mine = {n: x for n, x in theirs.items() if n not in renamed} | self._more(tensors)
        return Recorded(self.printed(), Given(mine, self.given.numbers, self.given.sizes), self.choice)


@dataclass(slots=True, eq=False)
class Part:
    """A graph as a node of another one: ``takes`` are its arguments, by its own names, ``gives`` what its outputs are called."""

    label: str
    graph: Graph
    takes: Mapping[str, str]
    gives: tuple[str, ...]
    makes: Mapping[str, Output] = field(default_factory=dict)

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(self.takes.values())

    def run(self, tensors: Tensors, call: Given) -> bool:
        """Runs its graph."""
        self.given(tensors, self.graph.run(self.taken(tensors)))
        return False

    def taken(self, tensors: Tensors) -> Tensors:
        return {mine: tensors[n] for mine, n in self.takes.items()}

    def given(self, tensors: Tensors, outs: Iterable[torch.Tensor]) -> None:
        tensors |= zip(self.gives, outs, strict=True)


Node = Host | Kernel | Part


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """A launch that was not run: its kernel, what it would be given, and how it was chosen (None: a kernel without other tilings)."""

    kernel: Printed | Piece
    given: Given
    choice: Choice | None = None


class Replaced(Exception):  # noqa: N818  # no error: the graph begins again
    """A kernel did not run: a smaller one has its place."""


def tried(run: Callable[[], object], smaller: Callable[[], bool]) -> bool:
    """Runs a kernel. True where it spilled registers and ``smaller`` found one to take from now on.

    Raises Replaced where it does not fit the device and there is one, DoesNotFitError where there is none.
    """
    try:
        return bool(run()) and smaller()
    except DoesNotFitError:
        if smaller():
            raise Replaced from None
        raise


class Graph:
    """The nodes of a call in the order they run, and the tensors ``outs`` that it gives out."""

    __slots__ = ("_build", "_given", "_same", "_steps", "device", "nodes", "outs")

    def __init__(self, build: Callable[[Given], Iterable[Node]], given: Given, outs: Sequence[str], same: bool = False) -> None:
        """``build`` makes the nodes for arguments like ``given``: once here, and again where a kernel asks for one that holds less.

        ``same``: it runs for calls of this very kind alone (`Given.kind`).
        """
        self._build, self._given, self.outs, self.device = build, given.described(), tuple(outs), given.device
        self._same = same
        self._plan()

    def _plan(self) -> None:
        self.nodes = tuple(self._build(self._given))
        placed: set[str] = set()  # by the host, in strides of its own
        for node in self.nodes:
            node.makes = {n: x.following(self._given.sizes) for n, x in node.makes.items()}  # type: ignore[arg-type]  # of the names it has
            if isinstance(node, Kernel):
                node.beside(self._given)
                node.same = self._same and placed.isdisjoint(touched(node))
            else:
                placed |= {*node.gives}
        last = {n: place for place, node in enumerate(self.nodes) for n in touched(node)}
        made = {n for node in self.nodes for n in (*node.makes, *node.gives)} - {*self.outs}
        frees = [
            tuple(n for n in dict.fromkeys(touched(node)) if n in made and last[n] == k) for k, node in enumerate(self.nodes)
        ]
        self._steps = tuple((x.run, self._makers(x), free) for x, free in zip(self.nodes, frees, strict=True))

    def _makers(self, node: Node) -> tuple[tuple[str, Callable[..., torch.Tensor]], ...]:
        """What makes each of a node's tensors: for calls of one kind ready, for others given their sizes."""
        device, sizes = self.device, self._given.sizes
        if self._same:
            return tuple((n, x.maker(device, sizes)) for n, x in node.makes.items())  # type: ignore[arg-type]  # of the names it has
        return tuple((n, functools.partial(x.materialised, device)) for n, x in node.makes.items())

    def run(self, tensors: Tensors, call: Given | None = None) -> list[torch.Tensor]:
        """The outputs for a call's tensors, among which all that nodes make is put.

        ``call`` has the sizes and numbers of the call; without it, they are those that the graph was made for. Where kernels ask for
        smaller ones, all runs again with these before anything is given out: what kernels that spill wrote was seen to be wrong on a
        GPU, and a call that is repeated gives the same bits.
        """
        call = call or self._given
        given = dict(tensors)
        while self._asks(tensors, call):
            self._plan()
            tensors.clear()
            tensors |= given
        return [tensors[n] for n in self.outs]

    def _asks(self, tensors: Tensors, call: Given) -> bool:
        """Whether a kernel asked for a smaller one, after it ran or instead."""
        try:
            return self._ran(tensors, call)
        except Replaced:
            return True

    def _ran(self, tensors: Tensors, call: Given) -> bool:
        """Runs every node. Whether any kernel asked for a smaller one."""
        given, smaller = () if self._same else (call.sizes,), False
        for run, makes, frees in self._steps:
            for name, make in makes:
                tensors[name] = make(*given)
            smaller |= run(tensors, call)
            for name in frees:
                del tensors[name]
        return smaller

    def bound(self, given: Given) -> Run | None:
        """What runs it for tensors that lie as these do, of these numbers and sizes, once it ran; None where it is more than one kernel,
        or one that cannot be bound."""
        (node, *more), outs = self.nodes, self.outs
        if more or not isinstance(node, Kernel):
            return None
        sizes: Mapping[int | str, int] = given.sizes  # type: ignore[assignment]  # of the names it has
        makes = [(n, x.maker(self.device, sizes)) for n, x in node.makes.items()]
        where = {n: replace(x, cleared=False).maker(self.device, sizes)() for n, x in node.makes.items()}
        launch = node.bound({**given.tensors, **where}, given)
        if launch is None:
            return None

        def again(tensors: Tensors) -> list[torch.Tensor]:
            for n, make in makes:
                tensors[n] = make()
            launch(tensors)
            return [tensors[n] for n in outs]

        return again

    def record(self, tensors: Tensors) -> tuple[list[Recorded], list[torch.Tensor]]:
        """What it would launch on these tensors, and outputs that no kernel wrote; no kernel is built."""
        found: list[Recorded] = []
        for node in self.nodes:
            for name, out in node.makes.items():
                tensors[name] = out.materialised(self.device)
            if isinstance(node, Kernel):
                found.append(node.recorded(tensors))
            elif isinstance(node, Part):
                more, outs = node.graph.record(node.taken(tensors))
                found += more
                node.given(tensors, outs)
            else:
                node.run(tensors, self._given)
        return found, [tensors[n] for n in self.outs]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors of a call that it takes."""
        return tuple(self._given.tensors)

    def levels(self) -> list[list[Node]]:
        """The nodes that wait for no other, those that wait for these alone, and so on."""
        maker: dict[str, int] = {}
        needs: dict[int, set[int]] = {}
        for place, node in enumerate(self.nodes):
            needs[place] = {maker[n] for n in (*node.reads, *node.gives) if n in maker}
            maker |= dict.fromkeys((*node.makes, *node.gives), place)
        sorter = TopologicalSorter(needs)
        sorter.prepare()
        out = []
        while sorter:
            level = sorted(sorter.get_ready())
            out.append([self.nodes[n] for n in level])
            sorter.done(*level)
        return out


def touched(node: Node) -> tuple[str, ...]:
    """The tensors that a node reads, makes or gives."""
    return (*node.reads, *node.makes, *node.gives)


def room(outs: Mapping[str, Output]) -> Host:
    """What allocates tensors that nothing is written to: those without elements, or zeros."""
    return Host("allocate", (), (), lambda tensors, call: None, outs)
