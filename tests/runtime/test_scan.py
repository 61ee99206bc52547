"""Recurrences through the runtime: chunked = recurrent = quadratic, gradients, lengths that no block divides, steps, strong decay."""

from __future__ import annotations

import pytest
import recurrences
import torch

import einfuse
from einfuse.runtime.attention import Attention, Output
from einfuse.runtime.backends import BackendName
from einfuse.runtime.bound import Trial
from einfuse.runtime.parts import PartialState
from einfuse.runtime.verify import Shape, example_inputs

LENGTHS = (1, 15, 17, 63, 65, 1000)


def inputs(
    attention: Attention, n: int, dtype: torch.dtype = torch.float64, widths: tuple[int, ...] = (6, 5)
) -> dict[str, torch.Tensor]:
    found = example_inputs(attention.cascade, dtype, n, Shape(2, 2, n, n, widths, 2))
    return {k: x for k, x in found.items() if isinstance(x, torch.Tensor)}


def started(name: str, backend: BackendName) -> Attention:
    a = einfuse.compile(name, backend=backend)
    return a.given({"initial"}) if "initial" in a.optional else a


COUPLED = {
    "what is below": "state S[d] = 0.5 * S + k; state M[d] = 0.5 * M + S",
    "what is above": "state M[d] = 0.5 * M + S; state S[d] = 0.5 * S + k",
    "a decay": "state S[d] = 0.5 * S + k; state M[d] = sigmoid(S) * M + k",
    "by a statement": "state S[d] = 0.5 * S + k; t = 2 * S; state M[d] = 0.5 * M + t",
}
"""States that are updated by another one, as the momentum of Titans is (Behrouz et al., 2025)."""


@pytest.mark.parametrize("update", COUPLED.values(), ids=COUPLED)
def test_a_state_may_be_updated_by_another(update: str) -> None:
    text = "attention f over b { rank i: query = N; rank d: feature; in k[b, i, d]; scan i { UPDATE; o = M }; out o }"
    a = einfuse.compile(text.replace("UPDATE", update), backend="torch")
    x = inputs(a, 9)["k"].requires_grad_()
    found, wanted = a(x), a.reference(x)
    assert isinstance(found, torch.Tensor)
    assert isinstance(wanted, torch.Tensor)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(o.sin().sum(), x)[0] for o in (found, wanted))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", recurrences.RECURRENT)
def test_blocks_are_the_recurrence(name: str) -> None:
    a = started(name, "torch")
    for n in LENGTHS if name != "mamba" else LENGTHS[:-1]:
        x = inputs(a, n)
        for found, wanted in zip(a(**x), recurrences.RECURRENT[name](x), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", recurrences.QUADRATIC)
def test_blocks_are_the_quadratic_form(name: str) -> None:
    a = einfuse.compile(name, backend="torch")
    for n in LENGTHS:
        x = inputs(a, n)
        found = a(**x)
        first = found[0] if isinstance(found, tuple) else found
        torch.testing.assert_close(first, recurrences.QUADRATIC[name](x), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*recurrences.RECURRENT, *recurrences.QUADRATIC}))
def test_gradients(name: str) -> None:
    a = started(name, "torch")
    n = 17 if name not in ("window_linear", "joint") else 19  # points beyond the window, or in the next group
    shape = Shape(1, 1, n, n, (2, 2), 1)
    x = {k: y for k, y in example_inputs(a.cascade, torch.float64, 0, shape).items() if isinstance(y, torch.Tensor)}
    names = [n for n, y in x.items() if y.is_floating_point()]

    def run(*values: torch.Tensor) -> Output:
        return a(**{**x, **dict(zip(names, values, strict=True))})

    assert torch.autograd.gradcheck(run, [x[n].clone().requires_grad_() for n in names])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retention", "gated_delta"])
def test_the_cpu_kernel_agrees_with_its_oracle(name: str) -> None:
    shape = Shape(2, 2, 81, 81, (24, 40), 1)
    certificate = einfuse.verify(einfuse.compile(name), backends=["cpu"], dtypes=["float32"], shape=shape, brief=True)
    assert certificate.rows
    assert certificate.ok, [r for r in certificate.rows if not r.ok]


@pytest.mark.parametrize("name", recurrences.PACKED)
def test_packed_documents_are_as_if_alone(name: str) -> None:
    a = einfuse.compile(name, backend="torch")
    packed = a.given({"doc"}) if "doc" in a.optional else a
    lengths = (5, 1, 70, 14)
    x = inputs(packed, sum(lengths))
    ids = torch.repeat_interleave(torch.tensor([3, 1, 4, 2]), torch.tensor(lengths))
    found = packed(**{**x, "doc": ids.expand(2, -1).contiguous()})
    along = {t.name: next((n for n, e in enumerate(t.axes) if e.value == "N"), None) for t in packed.cascade.inputs}
    rows, at = [], 0
    for n in lengths:
        part = {k: y if along[k] is None else y.narrow(along[k] or 0, at, n) for k, y in x.items()}
        part = {k: torch.zeros_like(y) if k == "doc" else y for k, y in part.items() if k in a_inputs(a, name)}
        rows.append(a(**part))
        at += n
    torch.testing.assert_close(found[0], torch.cat([r[0] for r in rows], -2), rtol=1e-10, atol=1e-10)
    for state, last in zip(found[1:], rows[-1][1:], strict=True):
        torch.testing.assert_close(state, last, rtol=1e-10, atol=1e-10)


def a_inputs(a: Attention, name: str) -> set[str]:
    """The inputs of a spec as it is called without packing; `packed_linear` always packs."""
    return {t.name for t in a.cascade.inputs} | ({"doc"} if name == "packed_linear" else set())


AGAIN = {"window_linear": 16}
"""Points of the sequence before that must be given again: those in the window, which are not in the state yet."""


@pytest.mark.parametrize("name", recurrences.STARTED)
def test_a_sequence_goes_on_from_its_final_states(name: str) -> None:
    a = einfuse.compile(name, backend="torch")
    x = inputs(a, 96)
    x |= {"doc": torch.zeros_like(x["doc"])} if "doc" in x else {}
    along = {t.name: next((n for n, e in enumerate(t.axes) if e.value == "N"), None) for t in a.cascade.inputs}
    again = AGAIN.get(name, 0)
    cuts = ((0, 48), (48 - again, 48 + again))
    first, second = ({n: y if along[n] is None else y.narrow(along[n] or 0, *cut) for n, y in x.items()} for cut in cuts)
    _, *held = a(**first)
    found = a.given(set(recurrences.STARTED[name]))(**second, **dict(zip(recurrences.STARTED[name], held, strict=True)))
    whole = a(**x)
    torch.testing.assert_close(found[0].narrow(-2, again, 48), whole[0].narrow(-2, 48, 48), rtol=1e-10, atol=1e-10)
    for state, last in zip(found[1:], whole[1:], strict=True):
        torch.testing.assert_close(state, last, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", recurrences.SPIKES)
def test_strong_decay_neither_overflows_nor_loses_near_points(name: str) -> None:
    """A gate that forgets everything at every tenth point and keeps nearly all between: differences of large sums must not eat the small
    ones, in fp32 and across blocks. (A decay per head forgets at every point.)"""
    a = einfuse.compile(name, backend="torch")
    source, keeps, forgets = recurrences.SPIKES[name]
    x = inputs(a, 130, torch.float32)
    if "log_a" in x:
        x["log_a"] = torch.zeros_like(x["log_a"])
    if source == "slope":
        x[source] = torch.tensor([keeps, forgets])
    else:
        axes = next(t.axes for t in a.cascade.inputs if t.name == source)
        along = next(n for n, e in enumerate(axes) if e.value == "N")
        where = (torch.arange(130) % 10 == 0).reshape([-1 if n == along else 1 for n in range(x[source].ndim)])
        x[source] = torch.where(where, torch.tensor(forgets), torch.tensor(keeps)).expand(x[source].shape).contiguous()
    wanted = a.reference(**{k: v.double() if v.is_floating_point() else v for k, v in x.items()}, dtype=torch.float64)
    found = a(**x)
    for y, z in zip(*((o if isinstance(o, tuple) else (o,)) for o in (found, wanted)), strict=True):
        scale = z.abs().max().item()
        torch.testing.assert_close(y.double() / scale, z / scale, rtol=2e-5, atol=2e-6)


HALVED = """attention halved over b, h {
  rank i: query = N; rank d, e: feature
  in q[b, h, i, d]; in k[b, h, i, d]; in v[b, h, i, e]; in g[b, h, i, FEATURE]
  scan i {
    state S[d, e] = exp(g) * S + k * v
    o = sum[d](q * S)
  }
  out o
}"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("feature", ["d", "e"], ids=["summed over", "kept"])
def test_a_decay_of_features_is_cut_in_halves(feature: str, dtype: torch.dtype) -> None:
    """exp(-50) at a token and none at others, 0 at some: products of two decays neither overflow nor lose near points, in 16 bits as well."""
    cascade = einfuse.compile(HALVED.replace("FEATURE", feature)).cascade
    x = example_inputs(cascade, dtype, 0, Shape(1, 2, 37, 37, (16, 16), 1))
    drawn = torch.randint(0, 5, (1, 2, 37, 16), generator=torch.Generator().manual_seed(0))
    x["g"] = torch.tensor([-torch.inf, -50.0, -1.0, -1e-3, 0.0], dtype=dtype)[drawn]
    trial = Trial(cascade, x, dtype)
    for what, found in trial.run(Attention(cascade, "triton")).items():
        assert trial.compared(what, found).ok, (what, trial.compared(what, found))


@pytest.mark.slow
def test_strong_decay_in_a_kernel() -> None:
    a = einfuse.compile("retention", backend="cpu")
    x = inputs(a, 130, torch.float32)
    x["slope"] = torch.tensor([300.0, 60.0])
    found, state = a(**x)
    assert torch.isfinite(state).all()
    only_now = (x["q"] * x["k"]).sum(-1, keepdim=True) * x["v"] / x["q"].shape[-1] ** 0.5
    torch.testing.assert_close(found, only_now, rtol=1e-5, atol=1e-6)


GATED = """attention gated over b, h {
  rank i: query = N; rank d, e: feature
  in q[b, h, i, d]; in k[b, h, i, d]; in v[b, h, i, e]; in g[b, h, i]
  f = GATE
  scan i {
    state S[d, e] = f * S + k * (v - 0.1 * f * sum[d](k * S))
    o = sum[d](q * S)
  }
  out o
}"""
NOTHING = {
    "exp(g)": (-1e9, -3e38, -torch.inf),
    "exp(log(g))": (0.0,),
    "sigmoid(g) * exp2(g)": (-1e30,),
    "exp(g - 2) ^ 3": (-torch.inf,),
}


@pytest.mark.parametrize(("gate", "least"), [(gate, x) for gate, xs in NOTHING.items() for x in xs])
def test_a_gate_that_is_0_in_any_type_forgets_all_and_nothing_else(gate: str, least: float) -> None:
    """Its logarithm is huge or infinite: no sum over a block may hold it, or near points lose their digits."""
    cascade = einfuse.compile(GATED.replace("GATE", gate)).cascade
    x = example_inputs(cascade, torch.float32, 0, Shape(1, 2, 70, 70, (4, 4), 1))
    places = torch.arange(70) % 10 == 7
    x["g"] = torch.where(places, torch.tensor(least), 0.3 + 0.6 * torch.rand(1, 2, 70))
    trial = Trial(cascade, x, torch.float32)
    assert all(torch.isfinite(trial.truth[what]).all() for what in ("out 0", "d q", "d k", "d v"))
    for what, found in trial.run(Attention(cascade, "torch")).items():
        assert trial.compared(what, found).ok, (what, trial.compared(what, found))


def test_an_update_that_is_not_linear_runs_point_by_point() -> None:
    text = """attention cell over b {
      rank i: query = N; rank d, e: feature = D
      in x[b, i, d]
      in w[e, D]
      scan i {
        state s[d] = tanh(s + x)
        y = s * s
      }
      out y, s
    }"""
    a = einfuse.compile(text, backend="torch")
    assert "step 1 {" in a.ir("chunk")
    x = torch.randn(2, 9, 4, dtype=torch.float64)
    w = torch.zeros(4, 4, dtype=torch.float64)
    s, rows = torch.zeros(2, 4, dtype=torch.float64), []
    for t in range(9):
        s = torch.tanh(s + x[:, t])
        rows.append(s * s)
    y, last = a(x, w)
    torch.testing.assert_close(y, torch.stack(rows, 1))
    torch.testing.assert_close(last, s)


@pytest.mark.parametrize("name", ["gated_delta", "ssd", "linear"])
def test_steps_are_the_rows_of_one_call(name: str) -> None:
    a = einfuse.compile(name, backend="torch")
    x = inputs(a, 20)
    whole = a(**x)
    first = whole[0] if isinstance(whole, tuple) else whole
    along = {t.name: next((n for n, e in enumerate(t.axes) if e.value == "N"), None) for t in a.cascade.inputs}
    state, rows, at = None, [], 0
    for count in (1, 1, 7, 1, 10):
        part = {n: y if (axis := along[n]) is None else y.narrow(axis, at, count) for n, y in x.items()}
        out, state = a.step(state, **part)
        rows.append(out[0] if isinstance(out, tuple) else out)
        at += count
    torch.testing.assert_close(torch.cat(rows, -2), first, rtol=1e-12, atol=1e-12)


def test_steps_of_a_one_pass_attention_merge_its_states() -> None:
    a = einfuse.compile("full", backend="torch")
    q, k, v = (torch.randn(2, 2, n, 4, dtype=torch.float64) for n in (3, 12, 12))
    state = None
    for lo, hi in ((0, 1), (1, 2), (2, 9), (9, 12)):
        out, state = a.step(state, q, k[:, :, lo:hi], v[:, :, lo:hi])
        torch.testing.assert_close(out, a(q, k[:, :, :hi], v[:, :, :hi]), rtol=1e-12, atol=1e-12)
        assert isinstance(state, PartialState)
        assert sum(s.numel() for s in state.tensors.values()) == 2 * 2 * 3 * (1 + 1 + 4), "the states do not grow"


def test_steps_refuse_what_depends_on_positions() -> None:
    q, k = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 1, 4)
    with pytest.raises(einfuse.SpecError, match="depends on the position along `j`"):
        einfuse.compile("causal").step(None, q, k, k)
    scaled = einfuse.compile("""
    attention scaled over b, h {
      rank i: query; rank j: key; rank d, e: feature
      in q[b, h, i, d]
      in k[b, h, j, d]
      in v[b, h, j, e]
      o[i, e] = sum[j](sigmoid(sum[d](q * k) - log(Nk)) * v)
      out o
    }
    """)
    with pytest.raises(einfuse.SpecError, match="depends on the number of points along `j`"):
        scaled.step(None, q, k, k)
    a = einfuse.compile("packed_linear")
    with pytest.raises(einfuse.SpecError, match="depends on the position along `i`"):
        a.step(None, **inputs(a, 3))
    with pytest.raises(einfuse.SpecError, match="any_order reads turn by the position along `j`, which a step does not know"):
        einfuse.compile("any_order").step(None, q, k, k, torch.arange(3)[None])
    with pytest.raises(einfuse.SpecError, match="hard_windows reads other points of q than `j`, which a step does not know"):
        einfuse.compile("hard_windows").step(None, k, k, k, k[..., 0], torch.ones(1, 1, dtype=torch.bool))


@pytest.mark.slow
def test_long_sequences_do_not_drift() -> None:
    a = einfuse.compile("retention", backend="cpu")
    n = 65_536
    q, k, v = (torch.randn(1, 1, n, 16) for _ in range(3))
    slope = torch.tensor([0.01])
    found, state = a(q, k, v, slope)
    exact, last = einfuse.compile("retention", backend="torch")(q.double(), k.double(), v.double(), slope.double())
    assert (found.double() - exact)[:, :, -256:].abs().max() / exact.abs().max() < 1e-5
    assert (state.double() - last).abs().max() / last.abs().max() < 1e-5


def test_what_cannot_be_scanned_says_so() -> None:
    head = "attention f over b { rank i: query = N; rank j: key = N; rank d: feature in x[b, i, d] in y[b, j, d] "
    scan = "scan i { state s[d] = 0.5 * s + x } "
    with pytest.raises(einfuse.SpecError, match="at most one scan"):
        einfuse.compile(head + scan + scan.replace("s[d]", "t[d]").replace("* s", "* t") + "out s, t }")
    with pytest.raises(einfuse.SpecError, match="needs the final state"):
        einfuse.compile(head + scan + "o = x * s out o }")
    with pytest.raises(einfuse.SpecError, match="reduces over `i`"):
        einfuse.compile(head + scan + "o = sum[i](x) z = s out o, s }")


@pytest.mark.parametrize(
    "body",
    [
        "state S[d, e] = 0.9 * S + k * v; size = sum[d, e](S * S); o = sum[d](q * S) / sqrt(1 + size)",
        "size = sum[d, e](S * S where d <= e); state S[d, e] = S / sqrt(1 + size) + k * v; o = sum[d](q * S)",
        "state S[d, e] = 0.9 * S + k * v; o = sum[d, e](q * S * v)",
    ],
)
def test_a_reduction_over_two_features_at_once(body: str) -> None:
    """Of a state that was updated, inside an update that is not linear, and of a product with the state."""
    ranks = "rank i: query = N; rank d, e: feature; in q[b, i, d]; in k[b, i, d]; in v[b, i, e]"
    attention = einfuse.compile(f"attention f over b {{ {ranks}; scan i {{ {body} }}; out o }}", backend="torch")
    x = [torch.randn(2, 9, n, dtype=torch.float64, requires_grad=True) for n in (4, 4, 3)]
    found, exact = attention(*x), attention.reference(*x)
    assert isinstance(found, torch.Tensor)
    assert isinstance(exact, torch.Tensor)
    torch.testing.assert_close(found, exact)
    torch.testing.assert_close(torch.autograd.grad(found.sin().sum(), x), torch.autograd.grad(exact.sin().sum(), x))


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
def test_a_state_that_is_overwritten_keeps_its_last_write_alone(backend: BackendName) -> None:
    """And random numbers are the same bits inside a scan as outside."""
    attention = einfuse.compile(
        """attention last_of_some over b {
          rank i: query = N; rank d: feature
          in q[b, i, d]
          in k[b, i, d]
          scan i {
            state last[d] = k
            state some[d] = some + (k if random(3, b, i) < 0.5 else 0)
            o = sum[d](q * some)
          }
          out o, last
        }""",
        backend=backend,
    )
    q, k = torch.randn(2, 70, 8), torch.randn(2, 70, 8)
    for found, truth in zip(attention(q, k), attention.reference(q, k), strict=True):
        torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=2e-5)
    assert torch.equal(attention(q, k)[1], k[:, -1])
