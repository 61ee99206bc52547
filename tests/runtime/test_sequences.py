"""One attention, driven through drawn sequences of calls: whatever came before, every call is the oracle's.

What two calls may share by mistake is drawn: sizes, head groupings, dtypes, strides, which inputs want gradients, host numbers, optional
inputs, modes, threads. Between calls an attention is copied, pickled, asked for reports, and refuses calls that do not fit.
"""

from __future__ import annotations

import functools
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from hypothesis import Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

import einfuse
from einfuse.ir import Scalar
from einfuse.runtime import inside
from einfuse.runtime.backends import BackendName
from einfuse.runtime.verify import Shape, example_inputs

VARIED = """attention varied(window: int = 9) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
  in bias[h, i, j] optional
  in doc[b, N]: int optional
  s0 = sum[d](q * k) / sqrt(D) where j <= i and i - j < window
  s1 = s0 + bias if given(bias) else s0
  s = s1 where not given(doc) or doc[b, i] == doc[b, j]
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}"""
"""A host number that every call may change, an optional table with a gradient, an optional table that the mask reads."""

SPECS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "varied": (VARIED, {}, ("bias", "doc")),
    "lists of pairs": ("neighbourhood_2d", {"columns": 12, "window": 5}, ()),
    "several kernels and a tail": ("taylor_shift", {}, ()),
    "several passes": ("lssar", {}, ()),
    "a scan": ("retention", {}, ("initial", "doc")),
}
"""A text or name, its parameters, and its optional inputs."""
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
CHANGED = (
    "layouts",
    "layouts",
    "group",
    "group",
    "wanted",
    "wanted",
    "dtype",
    "mode",
    "rows",
    "keys",
    "threads",
    "window",
    "given",
    "shared",
    "seed",
)
"""What one call may differ in from the last one; twice what keys have left out before."""
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 6e-2, torch.float64: 1e-8}
"""Of the largest value: what goes wrong here is wrong by orders of magnitude, and rounding has tests of its own."""
MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "grad": nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}
LAYOUTS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda x: x,
    lambda x: x.transpose(1, 2).contiguous().transpose(1, 2) if x.ndim == 4 else x,
    lambda x: x.mT.contiguous().mT if x.ndim > 1 else x,
    lambda x: x.new_zeros(*x.shape[:-1], x.shape[-1] + 3)[..., 1:-2].copy_(x) if x.ndim else x,
)


@dataclass(frozen=True)
class Call:
    """One call, as drawn; ``shared`` heads of keys, each read by ``group`` heads of queries; 0 ``keys``: as many as rows."""

    batch: int
    shared: int
    group: int
    rows: int
    keys: int
    width: int
    dtype: torch.dtype
    layouts: tuple[int, ...]
    wanted: frozenset[str]
    mode: str
    threads: int
    window: int
    given: frozenset[str]
    seed: int


@st.composite
def calls(draw: st.DrawFn, optional: tuple[str, ...], image: bool, apart: bool) -> Call:
    return Call(
        batch=draw(st.sampled_from((1, 2))),
        shared=draw(st.sampled_from((1, 2))),
        group=draw(st.sampled_from((1, 2, 4))),
        rows=144 if image else draw(st.sampled_from((17, 5, 40, 1))),
        keys=draw(st.sampled_from((0, 31, 18, 70))) if apart else 0,
        width=draw(st.sampled_from((8, 16))),
        dtype=draw(st.sampled_from(DTYPES)),
        layouts=tuple(draw(st.lists(st.integers(0, len(LAYOUTS) - 1), min_size=8, max_size=8))),
        wanted=frozenset(draw(st.sets(st.sampled_from(("q", "k", "v", "bias", "initial", "slope", "tau"))))),
        mode=draw(st.sampled_from(tuple(MODES))),
        threads=draw(st.sampled_from((1, 2))),
        window=draw(st.sampled_from((9, 3, 1000))),
        given=frozenset(draw(st.sets(st.sampled_from(optional)))) if optional else frozenset(),
        seed=draw(st.integers(0, 5)),
    )


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def arguments(attention: einfuse.Attention, call: Call) -> dict[str, torch.Tensor | Scalar]:
    """Drawn inputs, each in a layout of its own; tables whose dtype is the call's, so that only sizes and dtypes differ between calls."""
    whole = attention.given(call.given) if call.given else attention
    shape = Shape(call.batch, call.shared * call.group, call.rows, call.keys or call.rows, (call.width, call.width), call.group)
    found = example_inputs(whole.cascade, call.dtype, call.seed, shape)
    layouts = iter(call.layouts)
    for n, x in found.items():
        if isinstance(x, torch.Tensor):
            found[n] = LAYOUTS[next(layouts)](x) if x.is_floating_point() else x
    if any(t.name == "window" and t.param for t in whole.cascade.inputs):
        found["window"] = call.window
    return found


def results(
    fn: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]], given: dict[str, torch.Tensor | Scalar], call: Call
) -> dict[str, torch.Tensor]:
    """Outputs and the wanted gradients, by name."""
    leaves = {
        n: x.detach().requires_grad_(n in call.wanted and call.mode == "grad")
        if isinstance(x, torch.Tensor) and x.is_floating_point()
        else x
        for n, x in given.items()
    }
    with MODES[call.mode](), threads(call.threads):
        found = fn(**leaves)
        outs = found if isinstance(found, tuple) else (found,)
        wanted = {n: x for n, x in leaves.items() if isinstance(x, torch.Tensor) and x.requires_grad}
        named = {f"out {k}": o.detach() for k, o in enumerate(outs)}
        if wanted:
            grads = torch.autograd.grad(outs[0], list(wanted.values()), torch.ones_like(outs[0]), allow_unused=True)
            named |= {
                f"d {n}": torch.zeros_like(x) if g is None else g for (n, x), g in zip(wanted.items(), grads, strict=True)
            }
    return named


def check(attention: einfuse.Attention, call: Call) -> None:
    given = arguments(attention, call)
    kept = {n: x.clone() if isinstance(x, torch.Tensor) else x for n, x in given.items()}
    exact = {n: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for n, x in given.items()}
    truth = results(attention.reference, exact, call)
    found = results(attention, given, call)
    assert found.keys() == truth.keys()
    for name, expected in truth.items():
        limit = TOLERANCE[call.dtype] * max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
        torch.testing.assert_close(
            found[name].double(), expected, rtol=0, atol=limit, msg=functools.partial("{} of {}: {}".format, name, call)
        )
    for n, x in kept.items():
        assert not isinstance(x, torch.Tensor) or torch.equal(x, given[n]), f"the call wrote to its input {n}"  # type: ignore[arg-type]


def pickled(attention: einfuse.Attention, call: Call) -> einfuse.Attention:
    found: einfuse.Attention = pickle.loads(pickle.dumps(attention))
    return found


def reported(attention: einfuse.Attention, call: Call) -> einfuse.Attention:
    given = arguments(attention, call)
    whole = attention.given(call.given) if call.given else attention
    tensors = {n: x for n, x in given.items() if isinstance(x, torch.Tensor)}
    numbers = {t.name: given.get(t.name, t.default) for t in whole.cascade.inputs if t.param}
    assert inside.launched(whole, tensors, numbers)  # type: ignore[arg-type]  # every number has a value
    return attention


def refused(attention: einfuse.Attention, call: Call) -> einfuse.Attention:
    given = arguments(attention, call)
    with pytest.raises(ValueError, match="v"):
        attention(**given | {"v": torch.zeros(call.batch + 5, 7, 9, 3, dtype=call.dtype)})
    return attention


DISTURBED = {"pickled": pickled, "reported": reported, "refused": refused}
"""What may happen to an attention between two calls, and must not matter."""


def machine(spec: str, backend: BackendName) -> type[RuleBasedStateMachine]:
    """A state machine over one attention on one back end."""
    text, parameters, optional = SPECS[spec]
    drawn = calls(optional, spec == "lists of pairs", spec == "varied")

    class Sequence(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.attention = einfuse.compile(text, backend=backend, **parameters)

        @rule(call=drawn, other=drawn, fields=st.lists(st.sampled_from(CHANGED), min_size=3, max_size=6))
        def called(self, call: Call, other: Call, fields: list[str]) -> None:
            """Calls that differ in one thing are those that a short key takes for one another; the last is the first again."""
            check(self.attention, call)
            for field in fields:
                check(self.attention, replace(call, **{field: getattr(other, field)}))
            check(self.attention, call)

        @rule(one=drawn, other=drawn, field=st.sampled_from(CHANGED))
        def called_by_two_threads(self, one: Call, other: Call, field: str) -> None:
            with ThreadPoolExecutor(2) as pool:
                both = (one, replace(one, **{field: getattr(other, field)}))
                for job in [pool.submit(check, self.attention, x) for x in both]:
                    job.result()

        @rule(call=drawn, how=st.sampled_from(list(DISTURBED)))
        def disturbed(self, call: Call, how: str) -> None:
            self.attention = DISTURBED[how](self.attention, call)

    return Sequence


def drive(spec: str, backend: BackendName, examples: int, steps: int, planted: int | None = None) -> None:
    """Runs sequences of calls. Where a fault is ``planted`` that is the seed that shows it soonest, and the first to show it is enough."""
    driven, chosen = machine(spec, backend), settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    if planted is not None:
        driven = seed(planted)(driven)
        phases = [x for x in Phase if x is not Phase.shrink]
        chosen = settings(chosen, phases=phases, derandomize=False, database=None)
    run_state_machine_as_test(driven, settings=chosen)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_every_call_of_a_sequence_is_the_oracles(spec: str) -> None:
    drive(spec, "torch", 4, 3)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_every_call_of_a_sequence_is_the_oracles_by_cpu_kernels(spec: str) -> None:
    drive(spec, "cpu", 2, 3)


FAULTS = {
    "cascades known by name and outputs": (
        "lists of pairs",
        2,
        "from einfuse.ir.nodes import Cascade\nCascade.digest = property(lambda self: str((self.name, self.outs)))",
    ),
    "kernels known by the dtypes they read": (
        "varied",
        5,
        "from einfuse.runtime.specialise import Specialisation, tensors\n"
        "Specialisation.key = property(lambda self: (self.cascade.digest, *(self.storage[n] for n in tensors(self.cascade)),\n"
        "  *sorted(self.static.items()), self.backend.identity, self.strict, self.backward))",
    ),
    "strides of the first call": (
        "varied",
        0,
        "from einfuse.codegen.cpu.build import CpuKernel\nbound, first = CpuKernel.bound, {}\n"
        "def bind(self, tensors, *rest):\n"
        "    laid = {n: x.as_strided(x.shape, first.setdefault((self.library, n, x.shape), x.stride())) for n, x in tensors.items()}\n"
        "    return bound(self, laid, *rest)\n"
        "CpuKernel.bound = bind",
    ),
    "lengths of the first call of a kind": (
        "varied",
        0,
        "from dataclasses import replace\nfrom einfuse.runtime.graph import Graph\nbound = Graph.bound\n"
        "Graph.bound = lambda self, given: bound(self, replace(given, numbers=self._given.numbers, sizes=self._given.sizes))",
    ),
    "one query a kind with several": (
        "varied",
        3,
        "from dataclasses import replace\nfrom einfuse.runtime.kinds import Kinds\nkey = Kinds.key\n"
        "Kinds.key = lambda self, given, workers: key(self, replace(given, sizes={**given.sizes, **dict.fromkeys(self.growing, 40)}), workers)",
    ),
}
"""What was once wrong, or would be if a key were shorter; each with the spec that shows it, and the seed that does so in few examples."""


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_sequence_shows_a_key_that_is_too_short(fault: str, tmp_path: Path) -> None:
    """Put back, each fault is found: in a process of its own, which it may bring down."""
    spec, soonest, planted = FAULTS[fault]
    found = f"import sys\nsys.path[:] = {[str(Path(__file__).parent), *sys.path]!r}"
    driven = f"import test_sequences\ntest_sequences.drive({spec!r}, 'cpu', 400, 5, planted={soonest})"
    done = forked.run("\n".join((found, planted, driven)), os.environ | {"EINFUSE_CACHE": str(tmp_path)})
    assert done.returncode, "no sequence showed it"
    assert done.returncode < 0 or "state.teardown()" in done.stderr, done.stderr
