"""From a cascade to the graphs of its calls: kernels made once per dtypes, feature sizes and back end, graphs once per kind of call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

import torch

from einfuse.ir import Cascade, Flat
from einfuse.ir.expr import reads
from einfuse.ir.passes import by_place, canonicalise, differentiate, exact_extremes, row_values
from einfuse.ir.passes.backward import Backward, Step, adjoint
from einfuse.ir.rewrite import statements
from einfuse.runtime import cache, heads, split
from einfuse.runtime.backends import Backend
from einfuse.runtime.given import Given
from einfuse.runtime.gradients import Gradients
from einfuse.runtime.graph import Graph, Kernel, Node, room
from einfuse.runtime.guard import Guard
from einfuse.runtime.kinds import Key, Kinds
from einfuse.runtime.launch import Built, Choice, Launch
from einfuse.runtime.outputs import Output, described, of_backward, of_forward
from einfuse.runtime.recent import Recent
from einfuse.runtime.specialise import Printed, Specialisation
from einfuse.runtime.tiles import Variant
from einfuse.runtime.walks import Walks


@dataclass(frozen=True, slots=True)
class Mode:
    """How the lists of a call are read: do they drive the loops, or are they made into tables of truth values? And why."""

    lists: bool
    why: str


@dataclass
class Program:
    """Everything derived from one cascade. Thread-safe by idempotence: two threads may build the same kernel, either is right."""

    cascade: Cascade
    strict: bool = False
    wide: bool = False  # outputs stay in accumulation precision
    inner: bool = False  # outputs are what pairs of a later kernel read
    guard: Guard = field(init=False)
    built: Recent[tuple[Specialisation, Variant], Built] = field(default_factory=Recent)
    graphs: Recent[tuple[object, ...], Graph] = field(default_factory=Recent)
    backwards: dict[tuple[str, ...], Backward] = field(default_factory=dict)
    suits: dict[tuple[object, ...], Backward] = field(default_factory=dict)
    savings: dict[tuple[str, ...], Cascade] = field(default_factory=dict)
    kinds: dict[tuple[str, ...], Kinds] = field(default_factory=dict)
    walks: Walks = field(init=False)
    exact: ClassVar[bool] = False
    """Whether a graph serves calls of the same shapes and strides alone: where nodes have sizes of their own."""

    def __post_init__(self) -> None:
        self.walks = Walks(self.strict)
        self.guard = Guard(self.cascade)

    def check_ranges(self, given: Given) -> None:
        """Raises ValueError where an integer would leave 32 bits, or a read its tensor (see `Guard`)."""
        self.guard(given)

    def mode(self, given: Given) -> Mode:
        """How the lists of a call are read. Only of what takes lists."""
        return Mode(False, "no kernel takes lists")

    @property
    def flat(self) -> Flat:
        """The cascade, without folds."""
        assert isinstance(self.cascade, Flat), "a scan has a program of its own"
        return self.cascade

    def canonical(self) -> Flat:
        """The cascade that a backward is derived from, and that saves what it reads."""
        return canonicalise.run(exact_extremes.run(self.flat))

    @functools.cached_property
    def read(self) -> frozenset[str]:
        """The inputs whose values are read; others give their shapes alone."""
        return frozenset(n for x in statements(self.cascade) for e in x.expressions for n in reads(e))

    @functools.cached_property
    def halves(self) -> split.Halves | None:
        """The two steps that take parts of the keys and put them together; None where there are none."""
        return split.halves(self)

    @functools.cached_property
    def heads(self) -> heads.Heads | None:
        """The program for calls of one query in which heads that share keys are rows of one tile; None where there is none."""
        return heads.stacked(self)

    @functools.cached_property
    def gradients(self) -> Gradients:
        """How its backward is run."""
        return Gradients(self)

    @property
    def merges_steps(self) -> bool:
        """Whether two steps of its backward may become one kernel."""
        return True

    def suited(self, backend: Backend, narrow: Callable[[], bool]) -> Program:
        """The program that does the same best on a back end; ``narrow`` says whether tensors are of 16 bits, where that matters."""
        return self.rows_first if backend.row_values and self.rows_first is not self and narrow() else self

    @functools.cached_property
    def rows_first(self) -> Program:
        """The program that computes what is dear of rows before it walks pairs; itself where there is nothing."""
        from einfuse.runtime import staged  # which is made of programs

        return staged.rows_first(self)

    def backward_of(self, wanted: tuple[str, ...]) -> Backward:
        """The backward cascades for gradients of ``wanted``; derived once."""
        if wanted not in self.backwards:
            name = cache.key("backward", self.cascade.digest, wanted, *("inner",) * self.inner)
            self.backwards[wanted] = cache.remembered(
                "backward", name, lambda: differentiate.run(self.canonical(), wanted, self.inner)
            )
        return self.backwards[wanted]

    def steps(self, wanted: tuple[str, ...], backend: Backend | None) -> tuple[Step, ...]:
        """The cascades of a backward as a back end takes them (`Backend.row_values`, `Backend.by_place`); as derived for none."""
        found = self.backward_of(wanted)
        suits: list[tuple[str, Callable[[Backward], Backward]]] = []
        if backend is not None and backend.row_values:
            suits.append(("row values", row_values.run))
        if backend is not None and backend.by_place:
            suits.append(("by place", by_place.run))
        if not suits:
            return found.cascades
        key = (wanted, *(name for name, _ in suits))
        if key not in self.suits:
            name = cache.key(*key[1:], self.cascade.digest, wanted, *("inner",) * self.inner)

            def suited() -> Backward:
                return functools.reduce(lambda x, suit: suit[1](x), suits, found)

            self.suits[key] = cache.remembered("backward", name, suited)
        return self.suits[key].cascades

    def saving(self, wanted: tuple[str, ...]) -> Cascade:
        """The forward cascade that also gives out what the backward for ``wanted`` reads."""
        if not wanted:
            return self.cascade
        if wanted not in self.savings:
            saved = self.backward_of(wanted).saved
            outs = (*self.cascade.outs, *(n for n in saved if n not in self.cascade.outs))
            self.savings[wanted] = replace(self.canonical(), outs=outs)
        return self.savings[wanted]

    def cascades(self, backward: bool, backend: Backend | None = None) -> list[Cascade]:
        """The forward's, and with ``backward`` those for gradients of all inputs, for which it then saves what they read."""
        wanted = tuple(t.name for t in self.cascade.inputs if t.dtype == "float" and not t.param) if backward else ()
        steps = self.steps(wanted, backend) if backward else ()
        return [self.saving(wanted), *(c for c, _ in steps)]

    # -- which kernel ------------------------------------------------------------------------------------------------------------

    def specialised(self, cascade: Cascade, given: Given, backend: Backend) -> Specialisation:
        """A cascade of this program for the tensors of a launch."""
        backward = not set(self.cascade.outs) <= set(cascade.outs)
        return Specialisation.of(cascade, given, backend, self.strict, backward)

    def choose(self, cascade: Cascade, given: Given, backend: Backend) -> Choice:
        """The kernel for a launch: tile by tile, or by lists of pairs where that is less work."""
        kernel = self.specialised(cascade, given, backend)
        variant = kernel.choose(given.sizes, given.numbers)
        lists = self.walks.choose(cascade, given, kernel.tilings[variant.start]) if self.walks.pair(cascade) else None
        if lists is None:
            return Choice(kernel, variant)
        known = given.more(lists.tables, lists.sizes)
        walking = self.specialised(lists.cascade, known, backend)
        return Choice(walking, replace(walking.choose(known.sizes, known.numbers), walk=lists.key), lists)

    def kernel(
        self,
        cascade: Cascade,
        given: Given,
        backend: Backend,
        outs: Mapping[str, Output],
        names: Mapping[str, str] = MappingProxyType({}),
        tables: Mapping[str, torch.Tensor] = MappingProxyType({}),
        placed: bool = False,
    ) -> Kernel:
        """The launch of a cascade that writes ``outs`` (by the names of the kernel); ``names`` and ``tables`` as in `Kernel`.

        ``placed``: an earlier node made room for the outputs.
        """
        mine = given.more(tables).read_by(cascade)
        choice = self.choose(cascade, mine.more(described(outs)), backend)
        lists = choice.lists
        sizes = {**given.sizes, **lists.sizes} if lists else given.sizes
        return Kernel(
            cascade.name,
            tuple(names.get(n, n) for n in mine.tensors if n not in tables),
            {} if placed else {names.get(n, n): x for n, x in outs.items()},
            replace(mine, sizes=sizes) if lists else mine,
            lambda: self._printed(choice),
            lambda: self._launch(choice),
            choice,
            names,
            {**tables, **lists.tables} if lists else tables,
            tuple(names.get(n, n) for n in outs) if placed else (),
        )

    def _launch(self, choice: Choice) -> Launch:
        """The launch of a kernel that is built once. A smaller one is built where it spills."""
        kernel, variant = choice.kernel, choice.variant

        def smaller(printed: Printed) -> bool:
            if printed.rung + 1 >= len(kernel.tilings):
                return False
            less = kernel.printed(replace(variant, start=printed.rung + 1))
            self.built[kernel, variant] = Built.of(less, kernel.backend)
            return True

        built = self.built.made((kernel, variant), lambda: Built.of(kernel.printed(variant), kernel.backend))
        return Launch(built, smaller)

    def _printed(self, choice: Choice) -> Printed:
        """The kernel that calls have come to after spills."""
        known = self.built.get((choice.kernel, choice.variant))
        return known.printed if known else choice.kernel.printed(choice.variant)

    # -- what runs ---------------------------------------------------------------------------------------------------------------

    def graph(self, given: Given, backend: Backend, wanted: tuple[str, ...] = ()) -> Graph:
        """What a forward runs: it gives out the outputs, and what the backward for ``wanted`` will read."""
        cascade, outs = self.saving(wanted), self.gives(given, wanted)

        def nodes(given: Given) -> Iterable[Node]:
            return self.nodes(cascade, given, backend, outs) if any(x.elements for x in outs.values()) else (room(outs),)

        return Graph(nodes, given, tuple(outs))

    def key(self, given: Given, backend: Backend, wanted: tuple[str, ...] = (), backward: bool = False) -> Key:
        """What a call shares with those that the same graph serves: here alone is said what graphs take from a back end."""
        workers = backend.workers(given.device)
        kind = given.kind if backward or self.exact else self._kinds(given, wanted).key(given, workers)
        return ("backward" if backward else "forward", wanted, backend.identity, workers, *kind)

    def _kinds(self, given: Given, wanted: tuple[str, ...]) -> Kinds:
        known = self.kinds.get(wanted)
        if known is None:
            cascade = self.saving(wanted)
            known = self.kinds[wanted] = Kinds.of(cascade, tuple(given.sizes), self.walks.pair(cascade))
        return known

    def nodes(self, cascade: Cascade, given: Given, backend: Backend, outs: Mapping[str, Output]) -> Sequence[Node]:
        """A forward for tensors like these: one kernel, or parts of the keys and their merge if that kept workers idle."""
        if cascade is not self.cascade:
            return (self.kernel(cascade, given, backend, outs),)
        other = self.heads
        stacked = other.taken(given) if other else None
        if other and stacked:
            return other.program.nodes(other.program.cascade, stacked, backend, outs)
        count = split.planned(self, given.sizes, backend.workers(given.device) * backend.beside)
        inparts = split.nodes(self, count, given, backend, outs) if count > 1 else None
        return inparts or (self.kernel(cascade, given, backend, outs),)

    def outputs(self, cascade: Cascade, tensors: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> dict[str, Output]:
        """What a forward writes."""
        return of_forward(cascade, () if self.wide else self.cascade.outs, tensors, sizes)

    def kept(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """The names of what a forward gives out: the outputs, then what the backward for ``wanted`` reads."""
        return self.saving(wanted).outs

    def gives(self, given: Given, wanted: tuple[str, ...] = ()) -> dict[str, Output]:
        """The same as tensors to be made."""
        return self.outputs(self.saving(wanted), given.tensors, given.sizes)

    def backward_graph(self, known: Given, backend: Backend, wanted: tuple[str, ...]) -> Graph:
        """What a backward runs; see `Gradients.graph`."""
        return self.gradients.graph(known, backend, wanted)

    def shared(self, given: Given, backend: Backend, wanted: tuple[str, ...] = ()) -> Graph:
        """The forward's graph, made once for a kind of call."""
        return self.graphs.made(self.key(given, backend, wanted), lambda: self.graph(given, backend, wanted))

    def forward(self, given: Given, backend: Backend, wanted: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
        """The outputs, and what the backward for ``wanted`` will read."""
        self.check_ranges(given)
        graph = self.shared(given, backend, wanted)
        return dict(zip(graph.outs, graph.run(dict(given.tensors), given), strict=True))

    def backward(
        self,
        given: Given,
        saved: Mapping[str, torch.Tensor],
        gradients: Mapping[str, torch.Tensor],
        backend: Backend,
        wanted: tuple[str, ...],
    ) -> dict[str, torch.Tensor]:
        """The gradient of every tensor in ``wanted``, in its own dtype and layout."""
        known = given.more({**saved, **self.adjoints(gradients)})
        key = self.key(known, backend, wanted, backward=True)
        graph = self.graphs.made(key, lambda: self.backward_graph(known, backend, wanted))
        return dict(zip(wanted, graph.run(dict(known.tensors)), strict=True))

    def adjoints(self, gradients: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The gradients of outputs under the names that the backward reads them by."""
        return {adjoint(n): g for n, g in gradients.items()}

    def sized(self, cascade: Cascade, given: Given) -> Given:
        """With the sizes that a step of the backward has beside those of the call."""
        return given

    def written(self, step: Step, known: Given, apart: Collection[str] = ()) -> dict[str, Output]:
        """What the kernel of a step of the backward writes, without the statements in ``apart``."""
        return of_backward(*step, known, apart)
