"""The compiled object: call it, differentiate it, look into it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from einfuse.codegen import KernelPlan, Storage
from einfuse.codegen.scan import ScanPlan
from einfuse.codegen.targets import Target
from einfuse.ir import Cascade, Scalar, SpecError, interpret
from einfuse.ir.passes import choose, classify_score, pack, pipeline
from einfuse.ir.passes import split as splitting
from einfuse.ir.text import show
from einfuse.runtime import binding, cache, inside, ops, packed, parts, prefix, prepared, shown, stream, transforms
from einfuse.runtime import tangents as tangents_of
from einfuse.runtime.apart import apart, transformed
from einfuse.runtime.backends import BackendName
from einfuse.runtime.forms import FormName, Forms, known_form
from einfuse.runtime.given import Given
from einfuse.runtime.inside import Candidate, PassReport
from einfuse.runtime.program import Program
from einfuse.runtime.recent import Recent
from einfuse.runtime.selection import Selection
from einfuse.runtime.source import Source, elaborated
from einfuse.runtime.staged import StagedProgram

Output = torch.Tensor | tuple[torch.Tensor, ...]


@dataclass(eq=False)
class Attention:
    """A compiled attention.

    ``attn(q, k, v, ..., name=value)`` takes the tensors of the spec in order of declaration or by keyword and host numbers by
    keyword. It is differentiable any number of times in every float tensor, in both modes. It works under autocast, torch.func's
    transforms, torch.compile(fullgraph=True) and torch.export, on meta tensors, for any strides, and on jagged nested tensors:
    sequences of different lengths, without padding. One output is returned as a tensor, several as a tuple. A copy is the attention
    itself; a pickled one is built again where it is loaded. Raises TypeError or ValueError that name the argument, what was expected
    and what was found.
    """

    cascade: Cascade
    backend: BackendName | None = None
    strict: bool = False
    origin: Source | None = field(default=None, repr=False)
    """What makes the variants with optional inputs; None where the spec has none."""
    optional: frozenset[str] = frozenset()
    wide: bool = field(default=False, repr=False)
    form: FormName = "auto"
    inner: bool = field(default=False, repr=False)
    """A stage of another attention: its tensors have the dtypes that the other one gave them."""
    forward_modes: dict[tuple[str, ...], Attention | None] = field(default_factory=dict, init=False, repr=False)
    _plans: Recent[str, list[KernelPlan] | list[ScanPlan]] = field(default_factory=Recent, init=False, repr=False)
    _packed: Recent[pack.Groups, tuple[pack.Packed, Attention]] = field(default_factory=Recent, init=False, repr=False)
    program: Program = field(init=False)
    text: str = field(init=False, repr=False)
    """The text form of the cascade: what operators in captured graphs carry."""
    resumed: Attention | None = field(default=None, init=False, repr=False)
    key: str = field(init=False)
    selection: Selection | None = field(default=None, init=False, repr=False)
    """The choices of coordinates that the kernels read; None where nothing is chosen."""
    _calls: prepared.Calls = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.text, self.program = ops.register(self.cascade, self.strict, self.wide)
        self.key = cache.content(self.text, self.strict, self.wide)
        _ = self.cascade.with_features  # kept now: torch.compile traces calls, and not the lock of a cached property
        key = (self.text, self.strict, self.wide)
        self._calls = prepared.Calls(
            self.program,
            self.backend,
            functools.partial(ops.Call.of, key, self.cascade, "" if self.backend is None else self.backend),
        )
        chosen = choose.run(self.cascade)
        if chosen is not None:
            if known_form(self.form) == "linear":
                raise SpecError(f"{self.name} has no linear form: it chooses what it reads", self.cascade.loc)
            self.selection, self.form = Selection.of(self, chosen), "quadratic"
            return
        self.form = known_form(self.form)
        if self.form == "linear" and self.forms.found is None:
            raise SpecError(f"{self.name} has no linear form: {self.forms.obstacle}", self.cascade.loc)
        if self.form == "linear" and self.forms.found is not None and not self.forms.found.widths:
            self.forms.build({})  # here, so that torch.compile finds it

    @functools.cached_property
    def stages(self) -> tuple[Attention, ...]:
        """The kernels of a cascade that one cannot do, in order, each as an attention; empty where one can."""
        cut = self.program.stages if isinstance(self.program, StagedProgram) else ()
        return tuple(Attention(c, self.backend, self.strict, form="quadratic", inner=True) for c in cut)

    def __repr__(self) -> str:
        return shown.line(self.cascade)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return shown.bundle(self)

    @property
    def name(self) -> str:
        return self.cascade.name

    @property
    def kernels(self) -> tuple[Attention, ...]:
        """The attentions of one forward kernel each that a call runs, in order: itself, its stages, what it ranks and what reads the lists."""
        if self.selection is not None:
            return tuple(k for a in (*self.selection.scorers.values(), self.selection.rest) if a is not None for k in a.kernels)
        return self.stages or (self,)

    # -- copies: an attention is as immutable as a function, and what it has built can be built again ---------------------------

    def __copy__(self) -> Attention:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Attention:
        return self

    def __reduce__(self) -> tuple[Callable[..., Attention], tuple[object, ...]]:
        rest = (self.backend, self.strict, self.origin, self.optional, self.wide, self.form, self.inner)
        return _restored, (self.text, self.cascade.doc, *rest)

    # -- running -----------------------------------------------------------------------------------------------------------------

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor | Scalar) -> Output:
        if kwargs and self.optional & set(kwargs):
            variant, kwargs = self.variant(kwargs)
            return variant(*args, **kwargs)
        outs = self._calls(args, kwargs)
        if outs is not None:
            return _returned(outs)
        tensors, numbers = binding.arguments(self.cascade, args, kwargs)
        if any(x.is_nested for x in tensors.values()):
            return packed.nested(self, tensors, numbers, Attention.__call__)
        if not self.inner:
            tensors = binding.autocast(tensors)
            binding.one_dtype(self.cascade, tensors)
        sizes = binding.sizes(self.cascade, tensors)  # a mismatch is reported here, before anything runs
        linear = self.linear_form(sizes, tensors)
        if linear is not None:
            return self._as_mine(linear(**tensors, **numbers))
        if self.selection is not None:
            return self.selection.run({**tensors, **numbers})
        if self._calls.takes(self.cascade, args, kwargs):
            formed = self.form != "quadratic" and self.forms.found is not None
            return _returned(self._calls.prepared(Given(tensors, numbers, sizes), formed))  # type: ignore[arg-type]  # no symbols here
        return _returned(transforms.attention(*self.operator_call(numbers), list(tensors.values())))

    def operator_call(self, numbers: Mapping[str, Scalar]) -> ops.Call:
        """What every operator begins with."""
        return ops.Call.of((self.text, self.strict, self.wide), self.cascade, self.backend or "", numbers)

    # -- forms -------------------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def forms(self) -> Forms:
        """The quadratic form and, where the weights factor, the linear one: `Forms.found` or `Forms.obstacle` says which."""
        return apart(lambda: Forms(self))

    def linear_form(self, sizes: Mapping[str, binding.Size], tensors: Mapping[str, torch.Tensor]) -> Attention | None:
        """The linear form if a call with these arguments takes it: asked for, or faster.

        What torch.compile or a transform sees is the form that was asked for.
        """
        if self.form == "quadratic":
            return None
        if self.form == "auto" and (torch.compiler.is_compiling() or transformed()):
            return None
        if not all(sizes.values()):
            return None  # there is nothing to sum
        known: Mapping[str, int] = sizes  # type: ignore[assignment]  # concrete, or numbers that a trace fixes
        if self.form == "linear":
            return self.forms.linear(known)
        floats = [x for x in tensors.values() if x.is_floating_point()]
        if not floats or self.forms.found is None:
            return None
        training = torch.is_grad_enabled() and any(x.requires_grad for x in floats)
        like = tensors[self.cascade.with_features[0]]  # what factors is a product of features
        return self.forms.linear(known) if self.forms.choose(known, like, training) == "linear" else None

    def _as_mine(self, found: Output) -> Output:
        """The outputs of the linear form in the dtypes of the quadratic one: row statistics are in accumulation precision."""
        sequence = {r.name for r in self.cascade.ranks if r.is_sequence}
        ranks = {x.target: x.ranks for x in self.cascade.einsums}
        outs = found if isinstance(found, tuple) else (found,)
        rows = [set(ranks[n]) <= sequence for n in self.cascade.outs]
        cast = tuple(o.to(torch.promote_types(o.dtype, torch.float32)) if row else o for o, row in zip(outs, rows, strict=True))
        return cast[0] if len(cast) == 1 else cast

    def step(
        self, state: stream.States | parts.PartialState | None, *args: torch.Tensor, **kwargs: torch.Tensor | Scalar
    ) -> tuple[Output, stream.States | parts.PartialState]:
        """The outputs for the next points and the states after them: ``o, state = attn.step(state, q, k, v)``, first with None.

        Of a scan: any number of points of its rank, each call going on from the states of the one before; row by row the same as one call
        for all. Of a one-pass attention: the keys and values that follow those of earlier calls, for queries that stay; the output
        is that for all keys so far. States are tensors of constant size. Raises SpecError where the spec depends on positions along
        the rank, or needs all keys at once. With ``form="linear"`` an attention over the pairs ``j <= i`` is a scan as well.
        """
        if self.form == "linear" and self.forms.found is not None and self.forms.found.causal:
            call = Given.of(self.cascade, *binding.arguments(self.cascade, args, kwargs))
            return self.forms.build(call.sizes, points=True).step(state, *args, **kwargs)
        return stream.advance(self, state, args, kwargs)

    def prefix(self, *args: torch.Tensor, **kwargs: torch.Tensor | Scalar) -> Output:
        """The outputs after every key, of the arguments of a call: row ``n`` is the attention over the keys ``0 <= j <= n``.

        Shape [*ambient ranks, Nk, *ranks of the output], such as [B, H, Nk, Nq, E], in the dtype of the arguments; differentiable. All rows
        at once by a parallel prefix scan of the derived merge: log2(Nk) rounds, and a state for every key (Feng et al., Attention as an
        RNN, 2024). Raises SpecError for an attention of more than one pass, or without ambient ranks.
        """
        return prefix.prefixes(self, args, kwargs)

    def variant(self, arguments: Mapping[str, Any]) -> tuple[Attention, dict[str, Any]]:
        """The attention with the optional inputs that a call gives, and the arguments but for those of them that are None."""
        kept = {n: x for n, x in arguments.items() if x is not None or n not in self.optional}
        optional = self.optional & set(kept)
        return self.given(optional) if optional else self, kept

    def given(self, optional: Iterable[str]) -> Attention:
        """The same attention with these of its optional inputs given (a spec of its own, compiled once)."""
        given = tuple(sorted(optional))
        name = f"_with_{'_'.join(given)}"
        if not hasattr(self, name):
            elaborated(self, name, given)
        return getattr(self, name)  # type: ignore[no-any-return]  # set by `elaborated`

    def reference(self, *args: torch.Tensor, dtype: torch.dtype = torch.float64, **kwargs: torch.Tensor | Scalar) -> Output:
        """The cascade as written, interpreted point by point in ``dtype``: the oracle. Differentiable; slow."""
        if self.optional & set(kwargs):
            variant, kwargs = self.variant(kwargs)
            return variant.reference(*args, dtype=dtype, **kwargs)
        tensors, numbers = binding.arguments(self.cascade, args, kwargs)
        if any(x.is_nested for x in tensors.values()):
            found: Output = packed.nested(self, tensors, numbers, functools.partial(Attention.reference, dtype=dtype))
            return found
        call = Given.of(self.cascade, tensors, numbers)
        self.program.check_ranges(call)
        outs = interpret(self.cascade, call.inputs, call.sizes, dtype)
        return next(iter(outs.values())) if len(outs) == 1 else tuple(outs[n] for n in self.cascade.outs)

    # -- derivatives ---------------------------------------------------------------------------------------------------------------

    def jvp(
        self, *args: torch.Tensor, tangents: Mapping[str, torch.Tensor], **kwargs: torch.Tensor | Scalar
    ) -> tuple[Output, Output]:
        """The outputs of a call, and their derivative along a direction: ``o, t = attn.jvp(q, k, v, tangents={"q": dq, "v": dv})``.

        A tangent has the shape and dtype of its input; inputs without one stay put. One forward kernel derived from the cascade (forward
        mode); for a scan, and where a reducer has no derivative of its own, the interpreter, as slow as plain torch. Itself
        differentiable. Raises TypeError for a name that is no float input and for another dtype, ValueError for another shape.
        """
        return tangents_of.outputs(self, args, kwargs, tangents)

    def packed(self, groups: pack.Groups) -> tuple[pack.Packed, Attention]:
        """The form for sequences of different lengths (see `varlen`), by the sizes that have the same bounds; derived once."""

        def derived() -> tuple[pack.Packed, Attention]:
            found = pack.run(self.cascade, groups)
            return found, Attention(found.cascade, self.backend, self.strict)

        return self._packed.made(groups, lambda: apart(derived))

    # -- in parts ----------------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _parts(self) -> tuple[splitting.Split, Attention, Attention, Attention]:
        def derived() -> tuple[splitting.Split, Attention, Attention, Attention]:
            found = splitting.run(self.cascade)
            of = functools.partial(Attention, backend=self.backend, strict=self.strict)
            states = functools.partial(of, wide=True, inner=True)  # in accumulation precision, also where autocast is on
            return found, of(found.partial, wide=True), states(found.merge), states(found.finalise)

        return apart(derived)

    @property
    def split(self) -> splitting.Split:
        """The cascades of `state`, `merge` and `finalise`. Raises SpecError for an attention of more than one pass."""
        return self._parts[0]

    def state(
        self, *args: torch.Tensor, keys: tuple[int, int] | None = None, **kwargs: torch.Tensor | Scalar
    ) -> parts.PartialState:
        """The attention after the keys ``first <= j < last`` only (default: all), of the arguments of a call.

        `merge` puts the states of parts together in any order and grouping, `finalise` makes outputs of them; all three are
        differentiable. Raises SpecError for an attention of more than one pass, ValueError for a part that is not within the keys.
        """
        found, partial, _, _ = self._parts
        call = Given.called(self.cascade, args, kwargs)
        bounds = parts.bounds(found, self.cascade, call.sizes, keys).to(call.device)
        outs = partial(**call.inputs, **{partial.cascade.inputs[-1].name: bounds})
        outs = outs if isinstance(outs, tuple) else (outs,)
        over = len(self.cascade.over)
        values = {n: o.squeeze(over) for n, o in zip(found.states, outs, strict=True)}
        given = {**call.inputs, **splitting.constants(found.sizes, call.sizes)}
        return parts.PartialState(values, given, binding.precision_of(self.cascade, call.tensors))

    def merge(self, *states: parts.PartialState) -> parts.PartialState:
        """The state of all keys of several disjoint parts. Associative and commutative up to rounding."""
        found, _, merge, _ = self._parts
        if not states:
            raise ValueError(f"{self.name}: merge takes one state or more, found none")
        held = parts.stacked(found, len(self.cascade.over), states)
        outs = merge(**held, **_asked(merge.cascade, states[0].given))
        outs = outs if isinstance(outs, tuple) else (outs,)
        return replace(states[0], tensors=dict(zip(found.states, outs, strict=True)))

    def finalise(self, state: parts.PartialState) -> Output:
        """The outputs of a call whose keys are those of the state, in the dtype of its arguments."""
        found, _, _, finalise = self._parts
        held = {found.held[n]: x for n, x in state.tensors.items()}
        outs = finalise(**_asked(finalise.cascade, {**state.given, **held}))
        outs = outs if isinstance(outs, tuple) else (outs,)
        cast = tuple(o.to(state.dtype) for o in outs)
        return cast[0] if len(cast) == 1 else cast

    # -- looking inside ----------------------------------------------------------------------------------------------------------

    def ir(self, after: str = "build", block: int = 64, step: int = 64) -> str:
        """The cascade as text after the pass of that name (`einfuse.ir.passes.pipeline`), or those of all its kernels."""
        if self.kernels != (self,) and after not in ("build", "infer_space"):
            return "\n\n".join(kernel.ir(after, block, step) for kernel in self.kernels)
        return show(pipeline.run(self.cascade, block, step, self.strict, after))

    def passes(self) -> tuple[PassReport, ...]:
        """For every folded rank: passes before and after fusing, the reads that force the rest, and how every other was resolved.

        Stage after stage where the cascade takes several kernels. A scan is one pass over its rank by what it is.
        """
        return inside.passes(self)

    def scores(self) -> tuple[classify_score.Score, ...]:
        """What kind of number every score is: products, degree, dependence on positions, tables, bounds. None for a scan."""
        return inside.scores(self)

    def plan(self, backend: BackendName, dtype: torch.dtype = torch.float32, **sizes: int) -> KernelPlan:
        """The forward kernel as data, for feature sizes given by name (default 64)."""
        return self.plans(backend, dtype, False, **sizes)[0]

    def plans(
        self, backend: BackendName, dtype: torch.dtype = torch.float32, backward: bool = False, **sizes: int
    ) -> list[KernelPlan]:
        """The forward plan, then with ``backward`` the plans of every backward kernel."""
        return [plan for plan, _ in self.emitted(backend, dtype, backward, sizes)]

    def source(self, backend: BackendName, dtype: torch.dtype = torch.float32, backward: bool = False, **sizes: int) -> str:
        """The standalone text of the kernels (forward, and with ``backward`` all of them)."""
        return "\n\n".join(text for _, text in self.emitted(backend, dtype, backward, sizes))

    def emitted(
        self, backend: BackendName, dtype: torch.dtype, backward: bool, sizes: Mapping[str, int], target: Target | None = None
    ) -> list[tuple[KernelPlan, str]]:
        """Plan and text of every kernel at its first tiling; ``target`` asks for those of a GPU that need not be there."""
        return [(c.plan, c.source) for c in self.candidates(backend, dtype, backward, sizes, target)]  # type: ignore[misc]  # or a ScanPlan

    def candidates(
        self, backend: BackendName, dtype: torch.dtype, backward: bool, sizes: Mapping[str, int], target: Target | None = None
    ) -> list[Candidate]:
        """Every kernel at its first tiling, with smaller ones behind `Candidate.smaller`."""
        return inside.candidates(self, backend, dtype, backward, sizes, target)

    def work_plans(
        self, backend: BackendName, dtype: torch.dtype, backward: bool, sizes: Mapping[str, int]
    ) -> list[KernelPlan] | list[ScanPlan]:
        """The plans of every kernel for these widths, from disk where they were made before: what the model of costs counts."""
        static = sorted((r.size, sizes[r.size]) for r in self.cascade.ranks if r.kind == "feature" and isinstance(r.size, str))
        name = cache.key("work", self.key, backend, dtype, backward, static)
        make = lambda: [plan for plan, _ in self.emitted(backend, dtype, backward, dict(static))]  # noqa: E731
        return self._plans.made(name, lambda: cache.remembered("work", name, make))

    def example_storage(self, c: Cascade, dtype: torch.dtype) -> dict[str, Storage]:
        """Storage as a call with tensors of ``dtype`` would have it."""
        return inside.example_storage(self.cascade, c, dtype)

    def with_backend(self, backend: BackendName | None) -> Attention:
        """The same attention on another back end."""
        return Attention(self.cascade, backend, self.strict, self.origin, self.optional, self.wide, self.form)

    def with_form(self, form: FormName) -> Attention:
        """The same attention in one form: ``quadratic``, ``linear`` or ``auto``. Raises SpecError where it has no linear form."""
        return Attention(self.cascade, self.backend, self.strict, self.origin, self.optional, self.wide, form)


def _returned(outs: Sequence[torch.Tensor]) -> Output:
    return outs[0] if len(outs) == 1 else tuple(outs)


def _asked(cascade: Cascade, given: Mapping[str, Any]) -> dict[str, Any]:
    names = {t.name for t in cascade.inputs}
    return {n: x for n, x in given.items() if n in names}


def _restored(text: str, doc: str, *rest: Any) -> Attention:
    """The attention that was pickled."""
    cascade = ops.Call(text, "", rest[1], rest[4], None, None).cascade  # strict and wide
    return Attention(replace(cascade, doc=doc), *rest)
