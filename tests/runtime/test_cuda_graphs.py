"""A call that a CUDA graph captures is right at every replay, whatever its tensors hold then: hazards 8 to 13 of GPUs.

No GPU is needed: while a `Tape` is on, torch says that a graph is captured; it keeps the launches, and runs them again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import einfuse
from einfuse.flex.captures import contents
from einfuse.flex.value import UNKNOWN
from einfuse.runtime import crossover, launch
from einfuse.runtime.backends import TritonBackend
from einfuse.runtime.binding import arguments, host_number
from einfuse.runtime.inside import launched
from einfuse.runtime.recent import Recent
from einfuse.runtime.unchanged import Unchanged

N = 80
SPEC = """
attention {name} over b, h {{
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in doc[b, N]: int
  s = sum[d](q * k) / sqrt(D) where doc[b, i] == doc[b, j]
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}}
"""

LINEAR = """
attention weighed over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  s = sum[d](q * k) / D
  o[i, e] = sum[j](s * v) / (4 + sum[j](s))
  out o
}
"""


@dataclass
class Tape:
    """The launches of a captured call, and the operators of torch that it ran."""

    on: bool = False
    launches: list[Callable[[], object]] = field(default_factory=list)
    operators: set[str] = field(default_factory=set)

    def capture(self, call: Callable[[], Any]) -> Any:
        """The outputs of a call that is captured after two that warm up."""
        with torch.no_grad():
            for _ in range(2):
                call()
            self.on = True
            try:
                with Captured(self):
                    return call()
            finally:
                self.on = False

    def replay(self) -> None:
        for again in self.launches:
            again()


class Captured(TorchDispatchMode):
    """Refuses what waits for a device, as a stream that is captured does."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is not typed
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition("::")[2]
        assert name not in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"), f"{name} waits for the device"
        self.tape.operators.add(name.partition(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    tape = Tape()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: tape.on)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: tape.on)
    made = launch.Built.of

    def of(*args: Any) -> launch.Built:
        built = made(*args)

        def run(tensors: Mapping[str, Any], numbers: Mapping[str, Any], sizes: Mapping[str, int]) -> Any:
            if tape.on:
                tape.launches.append(lambda: built.kernel(tensors, numbers, sizes))
            return built.kernel(tensors, numbers, sizes)

        return replace(built, kernel=run)

    monkeypatch.setattr(launch.Built, "of", of)
    return tape


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_hazards_8_and_9_a_replay_finds_the_live_tiles_of_its_own_masks(
    tape: Tape, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "LOOK", dict.fromkeys(launch.LOOK, 1))  # every mask is looked at, by calls that may look
    text = SPEC.format(name=f"replayed_{backend}")
    attention = einfuse.compile(text, backend=backend)
    q, k, v = (torch.randn(1, 2, N, 16) for _ in range(3))
    doc = (torch.arange(N) // 16)[None]
    out = tape.capture(lambda: attention(q, k, v, doc))
    doc.copy_(torch.arange(N)[None] // 70)
    tape.replay()
    assert tape.launches
    torch.testing.assert_close(out, einfuse.compile(text, backend="torch")(q, k, v, doc), rtol=1e-4, atol=1e-5)


def test_hazard_9_what_a_graph_reads_is_not_given_back(tape: Tape) -> None:
    held: Recent[int, torch.Tensor] = Recent(1)
    lost = weakref.ref(held.made(0, lambda: torch.zeros(1)))
    tape.on = True
    kept = weakref.ref(held.made(1, lambda: torch.zeros(1)))
    tape.on = False
    held.made(2, lambda: torch.zeros(1))
    assert lost() is None
    assert kept() is not None


def test_hazard_10_bounds_of_parts_are_made_on_the_device(tape: Tape) -> None:
    """One query on 16k keys takes them in parts. Tensors without memory are copied from the host by an operator that shows."""
    attention = einfuse.compile("full")
    given = {n: torch.empty(1, 4, 1 if n == "q" else 16384, 64, dtype=torch.bfloat16, device="meta") for n in "qkv"}
    backend = TritonBackend(processors=132)
    call = arguments(attention.cascade, (), given)
    launched(attention, *call, backend=backend)  # what is worked out once
    with Captured(tape):
        kernels = launched(attention, *call, backend=backend)
    assert [x.kernel.plan.name for x in kernels] == ["full_partial", "full_merged"]
    assert "arange" in tape.operators
    assert not tape.operators & {"_to_copy", "copy_", "lift_fresh", "lift", "scalar_tensor"}


def test_hazard_11_tables_of_sequences_are_made_at_every_replay(tape: Tape) -> None:
    attention = einfuse.compile("causal", backend="torch")
    q, k, v = (torch.randn(12, 2, 8) for _ in range(3))
    cu = torch.tensor([0, 5, 12])
    tape.capture(lambda: einfuse.varlen(attention, q, k, v, cu_seqlens_q=cu))
    assert "repeat_interleave" in tape.operators
    tape.on = True
    with pytest.raises(
        RuntimeError, match=r"causal: the bounds of .* cannot be captured in a CUDA graph; make this call once before"
    ):
        einfuse.varlen(attention, q, k, v, cu_seqlens_q=cu.clone())


def test_hazard_11_a_number_on_a_device_is_refused(tape: Tape) -> None:
    tape.on = True
    assert host_number("f", "scale", torch.tensor(2.0), "") == 2.0
    with pytest.raises(TypeError, match="f: scale is a number of the host, and a CUDA graph cannot read it from a device"):
        host_number("f", "scale", torch.tensor(2.0, device="meta"), "")


def test_hazard_12_no_kernel_is_timed_while_a_graph_is_captured(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two forms that are near each other the model's rates decide."""
    timed: list[str] = []
    monkeypatch.setattr(crossover, "known", lambda kind, setting: None)
    monkeypatch.setattr(crossover.Estimate, "near", True)
    forms = einfuse.compile(LINEAR).forms
    monkeypatch.setattr(type(forms), "calibrate", lambda self, kind, *rest: timed.append(kind))
    sizes = {"B": 1, "H": 2, "Nq": 4096, "Nk": 4096, "D": 16, "E": 16}
    tape.on = True
    assert forms.choose(sizes, torch.empty(1), False) == "linear"
    assert timed == []
    tape.on = False
    forms.choose({**sizes, "Nk": 4097}, torch.empty(1), False)
    assert sorted(timed) == ["quadratic", "sums"]


def test_hazard_13_nothing_that_was_seen_before_counts_as_seen(tape: Tape) -> None:
    x = torch.arange(4)
    before = Unchanged.of([x])
    assert before is not None
    assert before.are([x])
    assert contents(x).bounds == (0, 3)
    tape.on = True
    assert not before.are([x])
    assert Unchanged.of([x]) is None
    assert contents(x).bounds == UNKNOWN
    assert contents(torch.zeros(2)).minus_infinity
