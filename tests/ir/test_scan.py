"""The algebra of recurrences: what is read off an update, the form in blocks, its backward, all by interpretation in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from narrowed import scan

from einfuse import dsl
from einfuse.ir import Cascade, Fold, SpecError, State, interpret
from einfuse.ir import expr as ex
from einfuse.ir.nodes import Scan
from einfuse.ir.passes import chunk, chunk_backward
from einfuse.ir.recurrence import NotLinearError, log_decay, update
from einfuse.ir.text import parse, show, show_expr
from einfuse.ir.verify import verify
from einfuse.runtime.given import Given
from einfuse.runtime.scatter import accumulate
from einfuse.runtime.verify import Shape, example_inputs, example_sizes

SPECS = sorted((Path(__file__).parents[2] / "library" / "specs" / "linear").glob("*.attn"))
SHAPE = Shape(1, 2, 11, 11, (3, 2), 2)


def built(path: Path) -> Scan:
    module = dsl.parse(dsl.read_spec(path), path.name)
    given = {i.name for i in dsl.signature(module).inputs if i.optional}
    return scan(dsl.elaborate(module, given=given))


def drawn(cascade: Cascade) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    found = example_inputs(cascade, torch.float64, 3, SHAPE)
    return {n: x for n, x in found.items() if isinstance(x, torch.Tensor)}, example_sizes(cascade, SHAPE)


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
@pytest.mark.parametrize("step", [3, 4])
def test_blocks_mean_the_same(path: Path, step: int) -> None:
    c = built(path)
    blocked = verify(chunk.run(c, step))
    assert parse(show(blocked)) == blocked
    assert parse(show(c)) == c
    x, sizes = drawn(c)
    wanted = interpret(c, x, sizes)
    for name, found in interpret(blocked, x, sizes).items():
        torch.testing.assert_close(found, wanted[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_blocks_may_be_made_finer(path: Path) -> None:
    c = built(path)
    coarse = chunk.run(c, 4)
    fine = verify(chunk.run(coarse, 3))
    assert all(x.step <= 3 for x in fine.body if isinstance(x, Fold))
    assert chunk.run(coarse) == coarse == chunk.run(coarse, 8)
    x, sizes = drawn(c)
    wanted = interpret(c, x, sizes)
    for name, found in interpret(fine, x, sizes).items():
        torch.testing.assert_close(found, wanted[name], rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_the_backward_is_autograd(path: Path) -> None:
    c = built(path)
    x, sizes = drawn(c)
    leaves = {n: v.requires_grad_() if v.is_floating_point() else v for n, v in x.items()}
    wanted = [n for n, v in leaves.items() if v.requires_grad]
    outs = interpret(c, leaves, sizes)
    directions = {n: torch.randn_like(o) for n, o in outs.items()}
    truth = torch.autograd.grad(list(outs.values()), [leaves[n] for n in wanted], list(directions.values()))
    found = chunk_backward.run(chunk.run(c, 4), wanted)
    for stage in (found.forward, found.backward):
        verify(stage)
        assert parse(show(stage)) == stage
    (fold,) = found.backward.body
    assert isinstance(fold, Fold)
    assert fold.count is not None
    counted = {**sizes, str(found.backward.rank(fold.count).size): -(-sizes["N"] // fold.step)}
    env = {n: v.detach() for n, v in leaves.items()}
    env |= {n: v for n, v in interpret(found.forward, env, counted).items() if n in found.saved}
    env |= {f"d_{n}{end}": d for n, d in directions.items() for end in ("", "_last")}
    parts = interpret(found.backward, env, counted)
    total: dict[str, torch.Tensor] = {}
    for part in found.gradients:
        accumulate(total, found.backward, part, parts[part.statement], Given(env, {}, counted))
    for name, gradient in zip(wanted, truth, strict=True):
        torch.testing.assert_close(total[name], gradient, rtol=1e-9, atol=1e-10)


def classified(*lines: str) -> tuple[Fold, State]:
    text = (
        "attention f over b { rank i: query; rank d, e: feature in k[b, i, d] in v[b, i, e] in g[b, i] in w[b, i, d] scan i { "
    )
    c = dsl.compile_text(text + " ".join(lines) + " } out S }")
    fold = c.body[-1]
    assert isinstance(fold, Fold)
    return fold, fold.states[0]


@pytest.mark.parametrize(
    ("lines", "decay", "writes", "read"),
    [
        (("state S[d, e] = S + k * v",), "1", 1, None),
        (("state S[d, e] = exp(w) * (S + k * v)",), "exp(w[b, i, d])", 1, None),
        (("state S[d, e] = (S if g > 0 else 0) + k * v",), "select(g[b, i] > 0, 1, 0)", 1, None),
        (("state S[d, e] = S - g * (S - k * v)",), "1 - g[b, i]", 1, None),
        (("u = sum[d](k * S)", "r = v - u", "state S[d, e] = exp(g) * S + k * r"), "exp(g[b, i])", 2, "u"),
    ],
)
def test_what_an_update_is_made_of(lines: tuple[str, ...], decay: str, writes: int, read: str | None) -> None:
    found = update(*classified(*lines))
    assert show_expr(found.decay) == decay
    assert len(found.writes) == writes
    assert found.read == read


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (("state S[d, e] = tanh(S) + k * v",), "`tanh` of the state is not linear"),
        (("state S[d, e] = S * S + k * v",), "multiplies the state with itself"),
        (("u = sum[d](k * S)", "state S[d, e] = S + k * max(u, v)",), "`max` of the state is not linear"),
        (("u = sum[d](k * S)", "t = sum[d](w * S)", "state S[d, e] = S - k * u - w * t"), "holds 2 reads of it"),
    ],
)  # fmt: skip
def test_what_is_not_linear_says_why(lines: tuple[str, ...], why: str) -> None:
    with pytest.raises(NotLinearError, match=why):
        update(*classified(*lines))


def test_a_decay_of_unknown_sign_runs_point_by_point() -> None:
    text = (
        "attention f over b { rank i: query; rank d: feature in k[b, i, d] in g[b, i] scan i { state S[d] = g * S + k } out S }"
    )
    assert "sign of the decay is not known" in (chunk.obstacle(scan(dsl.compile_text(text))) or "")
    assert chunk.obstacle(scan(dsl.compile_text(text.replace("g * S", "sigmoid(g) * S")))) is None


def test_logarithms_of_decays() -> None:
    g = ex.load("g")
    assert show_expr(log_decay(ex.call("*", ex.call("exp", g), ex.const(0.5))).log or ex.ZERO).startswith("g[] + (-0.693")
    half = log_decay(ex.call("sqrt", ex.call("exp", g)))
    assert show_expr(half.log or ex.ZERO) == "g[] * 0.5"
    starts = ex.call(">", g, ex.const(0.0))
    found = log_decay(ex.call("select", starts, ex.ZERO, ex.call("exp", g)))
    assert found.reset == starts
    assert found.log is not None
    with pytest.raises(NotLinearError, match="choice inside a choice"):
        log_decay(ex.call("select", ex.call("<", g, ex.ONE), ex.call("exp", g), ex.call("select", starts, ex.ZERO, ex.ONE)))


def test_a_gradient_through_a_maximum_is_refused() -> None:
    text = "attention f over b { rank i: query; rank d: feature in k[b, i, d] scan i { m = max[d](k) state S[d] = S + k * m } out S }"
    with pytest.raises(SpecError, match="the gradient through `max` inside a scan"):
        chunk_backward.run(chunk.run(scan(dsl.compile_text(text)), 4), ("k",))
