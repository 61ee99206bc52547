"""Cascades of other shapes than one softmax over the keys: each spec against its formula in plain torch, and how it is cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from draws import drawn
from narrowed import flat, only
from torch import Tensor
from torch.nn import functional as F

import einfuse
from einfuse.ir import Cascade, Einsum, SpecError, interpret
from einfuse.ir.passes import canonicalise, stages
from einfuse.ir.text import parse, show
from einfuse.ir.verify import verify
from einfuse.runtime.attention import Output
from einfuse.runtime.specs import library
from einfuse.runtime.verify import Shape, example_inputs, example_sizes

pytestmark = pytest.mark.slow

SHAPE = Shape(2, 2, 9, 13, (6, 5), 2)
SPECS: dict[str, Path] = {n: p for n, p in library().items() if p.parent.name == "shapes"}
NQ, NK, D = SHAPE.queries, SHAPE.keys, SHAPE.widths[0]
ROW, COLUMN = torch.arange(NQ)[:, None], torch.arange(NK)[None, :]
X = dict[str, Tensor]


def per_head(x: Tensor) -> Tensor:
    return x[:, None, None]


def score(x: X) -> Tensor:
    return x["q"] @ x["k"].mT / math.sqrt(x["q"].shape[-1])


def causal(s: Tensor) -> Tensor:
    return s.masked_fill(COLUMN > ROW, -math.inf)


def offsets(table: Tensor, to: Tensor) -> Tensor:
    """A table [..., R, width] or [..., R] read at an offset for every pair."""
    return table[..., to, :] if table.ndim == 3 else table[..., to]


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def ntk(x: X) -> Tensor:
    f = F.elu(x["q"] / D**0.25) + 1
    p = causal(score(x)).exp()
    return (p @ x["v"] + f @ x["z"]) / (p.sum(-1, keepdim=True) + (f * F.softplus(x["c"])[:, None]).sum(-1, keepdim=True))


def mixed_branches(x: X) -> Tensor:
    g = per_head(x["mix"]).sigmoid()
    near = score(x).masked_fill((ROW - COLUMN).abs() > 8, -math.inf)
    return (g * near.softmax(-1) + (1 - g) * score(x).softmax(-1)) @ x["v"]


def mlp_bias(x: X) -> Tensor:
    table = torch.einsum("hc,rc->hr", x["w"], (x["x"][:, None] * x["u"] + x["bias"]).relu())
    r = len(x["x"])
    return (score(x) + offsets(table, (COLUMN - ROW + r // 2).clamp(0, r - 1))).softmax(-1) @ x["v"]


def statistics(x: X) -> tuple[Tensor, ...]:
    s = causal(score(x))
    p = s.softmax(-1)
    return p @ x["v"], s.amax(-1), s.logsumexp(-1), -torch.special.xlogy(p, p).sum(-1)


def talking_heads(x: X) -> Tensor:
    p = torch.einsum("gh,bhij->bgij", x["pre"], score(x)).softmax(-1)
    return torch.einsum("xg,bgij->bxij", x["post"], p) @ x["v"]


def column_sums(x: X) -> tuple[Tensor, ...]:
    p = causal(score(x)).softmax(-1)
    return p @ x["v"], p.sum(-2)


def slot(x: X) -> Tensor:
    w = score(x).softmax(-2) + 1e-8
    return w / w.sum(-1, keepdim=True) @ x["v"]


def latents(x: X) -> Tensor:
    read = (x["latent"] @ x["k"].mT / math.sqrt(D)).softmax(-1) @ x["v"]
    return (x["q"] @ x["key"].mT / math.sqrt(D)).softmax(-1) @ read


def linformer(x: X) -> Tensor:
    return (x["q"] @ (x["f"] @ x["k"]).mT / math.sqrt(D)).softmax(-1) @ (x["g"] @ x["v"])


def dropout(x: X) -> Tensor:
    b, h = x["q"].shape[:2]
    kept = [
        [[[drawn(0, 0, *p) for p in ((n, m, i, j) for j in range(NK))] for i in range(NQ)] for m in range(h)] for n in range(b)
    ]
    return (causal(score(x)).softmax(-1) * (torch.tensor(kept) >= 0.1) / 0.9) @ x["v"]


def linear(fq: Tensor, fk: Tensor, v: Tensor, eps: float) -> Tensor:
    w = fq @ fk.mT
    return w @ v / (w.sum(-1, keepdim=True) + eps)


def performer_both(x: X) -> Tensor:
    fq, fk = ((t @ x["w"].mT - t.square().sum(-1, keepdim=True) / 2).exp() / math.sqrt(len(x["w"])) for t in (x["q"], x["k"]))
    return linear(fq, fk, x["v"], 1e-8)


def additive_global(x: X) -> Tensor:
    q, k = unit(x["q"]), unit(x["k"])
    a = torch.einsum("bhid,hd->bhi", q, x["w"]) / math.sqrt(D)
    a = a / a.norm(dim=-1, keepdim=True)
    return torch.einsum("bhi,bhid->bhd", a, q)[:, :, None] * k


def cosine_weighted(x: X) -> Tensor:
    w = (x["q"].relu() @ x["k"].relu().mT * torch.cos(math.pi * (ROW - COLUMN).double() / 128)) * (COLUMN <= ROW)
    return w @ x["v"] / (w.sum(-1, keepdim=True) + 1e-6)


def rich(x: X) -> Tensor:
    p = torch.sigmoid(x["a"][..., None] + x["c"][..., None, :])
    y, z = x["yq"][:, None, :, None], x["yk"][:, None, None]
    order = torch.where(y < z, p, 1 - p).log()
    far = (1 + (y - z).abs()).log() - x["u"][..., None] - x["w"][..., None, :]
    return (score(x) + order - (per_head(x["theta"]) * far).square() / 2).softmax(-1) @ x["v"]


def spectral_tokens(x: X) -> Tensor:
    q, k = (t - t.mean(-1, keepdim=True) for t in (x["q"], x["k"]))
    q, k = (t.square() / (t.square().sum(-1, keepdim=True) + 1e-7) for t in (q, k))
    return x["v"] + unit(q) @ (F.normalize(k, dim=-2).mT @ x["v"]) / math.sqrt(NQ)


def kmax(x: X) -> Tensor:
    s = (x["q"] @ unit(x["k"]).mT) * x["scale"][:, :, None] + x["shift"][:, :, None]
    return F.one_hot(s.argmax(-2), NQ).to(s).mT @ x["v"]


def carriers(x: X) -> Tensor:
    """A window's keys and its carrier side by side, window after window."""
    read = (x["cq"] @ x["ck"].mT / math.sqrt(D)).softmax(-1) @ x["cv"]
    rows = []
    for i in range(NQ):
        w, own = i // 4, slice(i // 4 * 4, i // 4 * 4 + 4)
        keys = torch.cat([x["k"][:, :, own], x["key"][:, :, w : w + 1]], 2)
        values = torch.cat([x["v"][:, :, own], read[:, :, w : w + 1]], 2)
        rows.append((x["q"][:, :, i : i + 1] @ keys.mT / math.sqrt(D)).softmax(-1) @ values)
    return torch.cat(rows, 2)


def combiner(x: X) -> Tensor:
    rows = []
    for i in range(NQ):
        start = i // 4 * 4
        keys, values = [x["k"][:, :, start : i + 1]], [x["v"][:, :, start : i + 1]]
        for r in range(i // 4):
            q, k, v = (x[n][:, :, 4 * r : 4 * r + 4] for n in "qkv")
            keys.append(k.mean(2, keepdim=True))
            values.append((q.mean(2, keepdim=True) @ k.mT / math.sqrt(D)).softmax(-1) @ v)
        rows.append((x["q"][:, :, i : i + 1] @ torch.cat(keys, 2).mT / math.sqrt(D)).softmax(-1) @ torch.cat(values, 2))
    return torch.cat(rows, 2)


def interface(x: X) -> Tensor:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    read = attend(x["latent"], x["k"], x["v"])
    return attend(x["q"], x["key"], read + attend(x["mq"], x["mk"], read))


def relational(x: X) -> Tensor:
    """With a value for every pair, as the paper writes it."""
    each = (x["w"].shape[1], -1)
    r = torch.einsum("bilc,bjlc->bijl", x["rq"].unflatten(-1, each), x["rk"].unflatten(-1, each))
    values = torch.einsum("bijl,hle->bhije", r, x["w"]) + x["symbol"][:, :, None]
    return torch.einsum("bhij,bhije->bhie", score(x).softmax(-1), values)


def two_sources(x: X) -> Tensor:
    s = torch.cat([score(x), x["q"] @ x["key"].mT / math.sqrt(D)], -1)
    return s.softmax(-1) @ torch.cat([x["v"], x["value"]], 2)


def coarse_to_fine(x: X) -> Tensor:
    """Cell by cell; a cell without keys has weight, and nothing in it."""
    pairs = (x["q"][..., None, :] + x["k"][:, :, None]).tanh()
    fine = (pairs * x["a"][:, None, None]).sum(-1)
    cells = ((x["coarse_q"][..., None, :] + x["coarse_k"][:, :, None]).tanh() * x["c"][:, None, None]).sum(-1).softmax(-1)
    out = torch.zeros(*x["q"].shape[:-1], x["v"].shape[-1], dtype=torch.float64)
    for r in range(-(-NK // 4)):
        own = slice(4 * r, 4 * r + 4)
        out += cells[..., r : r + 1] * (fine[..., own].softmax(-1) @ x["v"][:, :, own])
    return out


def aggregated(x: X) -> Tensor:
    """Row by row, with the window's keys and the pooled ones side by side."""
    rows = []
    for i in range(NQ):
        near = [j for j in range(NK) if abs(j // 6 - i // 6) <= 1 and abs(j % 6 - i % 6) <= 1]
        at = torch.tensor([(j // 6 - i // 6 + 1) * 3 + j % 6 - i % 6 + 1 for j in near])
        unit_q = unit(x["q"][:, :, i])
        n = len(near) + x["pooled_k"].shape[2]
        focus = ((unit_q + x["learned"]) * F.softplus(x["tau"])[:, None] * math.log(n))[..., None, :]
        s = (focus @ unit(x["k"][:, :, near]).mT)[..., 0, :] + x["bias"][:, at]
        far = (focus @ unit(x["pooled_k"]).mT)[..., 0, :] + x["far"][:, i]
        p = torch.cat([s, far], -1).softmax(-1)
        late = torch.einsum("bhd,hjd->bhj", unit_q, x["t"][:, at]) + x["beta"][:, at]
        p = torch.cat([p[..., : len(near)] + late, p[..., len(near) :]], -1)
        rows.append(p[..., None, :] @ torch.cat([x["v"][:, :, near], x["pooled_v"]], 2))
    return torch.cat(rows, 2)


def hashed_codes(x: X) -> Tensor:
    """As the paper writes it, over sums of the codes."""
    cq, ck = x["q"].sign(), x["k"].sign()
    top = cq @ (ck.mT @ x["v"]) + (D + 1) * x["v"].sum(-2, keepdim=True)
    return top / (cq @ ck.sum(-2)[..., None] + (D + 1) * NK)


def linear_angular(x: X) -> Tensor:
    return unit(x["v"] / 2 + unit(x["q"]) @ (unit(x["k"]).mT @ x["v"]) / math.pi)


def gated_groups(x: X) -> Tensor:
    local = (x["q"] @ x["k"].mT / 4).relu().square() * (ROW // 4 == COLUMN // 4)
    return local @ x["v"] + x["lq"] @ (x["lk"].mT @ x["v"]) / NK


def fast(x: X) -> Tensor:
    lengths: dict[str, Tensor] = {n: x[n].norm(dim=-1) for n in "qk"}
    q, k = (x[n] / lengths[n].amax(-1)[..., None, None] for n in "qk")
    f = (1 + q @ k.mT + (q @ k.mT).square() / 2) * (COLUMN <= ROW)
    return f / f.sum(-1, keepdim=True) @ x["v"]


def fisher(x: X) -> Tensor:
    """Node by node: its neighbours' assignments, weighed among themselves."""
    a = (x["x"] @ x["mu"].mT / x["x"].shape[-1] + x["c"]).softmax(-1)
    out = torch.zeros(*x["adj"].shape[:2], *x["mu"].shape, dtype=torch.float64)
    for b, i in torch.cartesian_prod(*map(torch.arange, x["adj"].shape[:2])).tolist():
        near = x["adj"][b, i]
        out[b, i] = a[b, near].softmax(0).mT @ x["x"][b, near] - x["mu"]
    return out


def prior_map(x: X) -> tuple[Tensor, ...]:
    y, z = (3 ** ((5 * x[n]).sigmoid() + 1e-5) - 1 for n in ("wy", "wx"))
    dy, dx = ROW // 4 - COLUMN // 4, ROW % 4 - COLUMN % 4
    g = -(dy**2) / (2 * y[..., None] ** 2) - dx**2 / (2 * z[..., None] ** 2) - (2 * math.pi * (y * z)[..., None]).log()
    g, p = g.log_softmax(-1), score(x).log_softmax(-1)  # in logarithms: a narrow Gaussian underflows
    return p.exp() @ x["v"], (p.exp() * (p - g)).sum(-1), (g.exp() * (g - p)).sum(-1)


def squeeze(x: X) -> Tensor:
    return x["x"] * (x["x"].mean(1, keepdim=True) @ x["w1"].mT).relu().matmul(x["w2"]).sigmoid()


def two_axes(x: X) -> Tensor:
    return (5 * (x["q"] @ x["k"].mT).softmax(-2)).softmax(-1) @ x["v"]


FORMULAS: dict[str, Callable[[X], Tensor | tuple[Tensor, ...]]] = {
    "decayed_softmax": lambda x: score(x).softmax(-1) * (-per_head(x["decay"]).abs() * (ROW - COLUMN).abs()).exp() @ x["v"],
    "differential": lambda x: (
        (causal(score(x)).softmax(-1) - per_head(x["weight"]) * causal(x["q2"] @ x["k2"].mT / math.sqrt(D)).softmax(-1))
        @ x["v"]
    ),
    "ntk": ntk,
    "mixed_branches": mixed_branches,
    "distance": lambda x: (-torch.cdist(x["q"], x["k"]).square() / math.sqrt(D)).softmax(-1) @ x["v"],
    "mlp_bias": mlp_bias,
    "second_normaliser": lambda x: (
        (per_head(x["gamma"]) * causal(score(x)).softmax(-1)).masked_fill(COLUMN > ROW, -math.inf).softmax(-1) @ x["v"]
    ),
    "statistics": statistics,
    "talking_heads": talking_heads,
    "column_sums": column_sums,
    "slot": slot,
    "two_axes": two_axes,
    "latents": latents,
    "interface": interface,
    "carriers": carriers,
    "combiner": combiner,
    "kmax": kmax,
    "performer_both": performer_both,
    "relu_linear": lambda x: linear(x["q"].relu(), x["k"].relu(), x["v"], 1e-6),
    "efficient": lambda x: x["q"].softmax(-1) @ (x["k"].softmax(-2).mT @ x["v"]) / math.sqrt(D),
    "additive_global": additive_global,
    "cosine_weighted": cosine_weighted,
    "rich": rich,
    "spectral_tokens": spectral_tokens,
    "decoupled": lambda x: (x["g"].sigmoid() / x["g"].sigmoid().sum(-1, keepdim=True)) @ x["v"],
    "relational": relational,
    "linformer": linformer,
    "dropout": dropout,
    "two_sources": two_sources,
    "coarse_to_fine": coarse_to_fine,
    "aggregated": aggregated,
    "hashed_codes": hashed_codes,
    "linear_angular": linear_angular,
    "gated_groups": gated_groups,
    "factorised": lambda x: x["q"] @ (x["k"].softmax(-2).mT @ x["v"]) / math.sqrt(D) + x["q"] * x["position"],
    "fast": fast,
    "fisher": fisher,
    "prior_map": prior_map,
    "squeeze": squeeze,
}
STAGES = {"mlp_bias": 2, "column_sums": 2, "slot": 2, "two_axes": 2, "latents": 2, "linformer": 2} | {
    "interface": 3,
    "carriers": 2,
    "combiner": 2,
    "kmax": 2,
    "performer_both": 2,
    "relu_linear": 2,
    "efficient": 2,
    "additive_global": 2,
    "spectral_tokens": 2,
    "linear_angular": 2,
    "gated_groups": 2,
    "factorised": 2,
    "fast": 2,
    "squeeze": 2,
}
"""Kernels of the forward pass, where one does not do."""


SHARED = ("k", "v", "k2", "symbol", "key", "value", "coarse_k", "pooled_k", "pooled_v", "lk")
"""One for several heads, where there are fewer of them than of the queries."""


def inputs(name: str) -> X:
    c = einfuse.compile(name).cascade
    return {n: t for n, t in example_inputs(c, torch.float64, 2, SHAPE).items() if isinstance(t, Tensor)}


def test_every_shape_has_a_formula() -> None:
    assert set(SPECS) == set(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
def test_spec_against_its_formula(name: str) -> None:
    x = inputs(name)
    out = einfuse.compile(name).reference(**x, dtype=torch.float64)
    heads = x["q" if "q" in x else "g"].shape[1] if {"q", "g"} & set(x) else 1
    whole = {n: t.repeat_interleave(heads // t.shape[1], 1) if n in SHARED and t.ndim == 4 else t for n, t in x.items()}
    wanted = FORMULAS[name](whole)
    for found, truth in zip(*(y if isinstance(y, tuple) else (y,) for y in (out, wanted)), strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", FORMULAS)
def test_tiles_and_their_gradients(name: str) -> None:
    """The lowered kernels in float64, by the tiled torch back end: what is left is the order of sums."""
    attention = einfuse.compile(name)
    x = {n: t.requires_grad_(t.is_floating_point()) for n, t in inputs(name).items()}
    results = []
    runs: tuple[Callable[..., Output], ...] = (attention.reference, attention.with_backend("torch"))
    for run in runs:
        outs = run(**x)
        outs = outs if isinstance(outs, tuple) else (outs,)
        generator = torch.Generator().manual_seed(0)
        loss = sum((o * torch.randn(o.shape, generator=generator)).sum() for o in outs)
        assert isinstance(loss, Tensor)
        leaves = [t for t in x.values() if t.requires_grad]
        results.append([*outs, *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)])
    for found, truth in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", FORMULAS)
def test_stages_mean_the_same_as_the_whole(name: str) -> None:
    c = einfuse.compile(name).cascade
    cut = stages.run(flat(c))
    assert len(cut) == STAGES.get(name, 1)
    sizes = example_sizes(c, SHAPE)
    known = example_inputs(c, torch.float64, 3, SHAPE)
    truth = interpret(c, known, sizes)
    for stage in cut:
        assert parse(show(verify(stage))) == stage
        known |= interpret(stage, known, sizes)
    for out, value in truth.items():
        torch.testing.assert_close(known[out] if len(cut) > 1 else truth[out], value, rtol=1e-10, atol=1e-10)


def elements(c: Cascade, name: str) -> list[str]:
    """The sequence ranks of a statement."""
    kinds = {r.name: r.kind for r in c.ranks}
    return [r for x in c.einsums if x.target == name for r in x.ranks if kinds[r] in ("query", "key")]


@pytest.mark.parametrize("name", STAGES)
def test_nothing_of_the_size_of_all_pairs_crosses_a_cut(name: str) -> None:
    for stage in stages.run(flat(einfuse.compile(name).cascade)):
        assert all(len(elements(stage, out)) <= 1 for out in stage.outs)


def test_a_table_of_offsets_is_made_once_for_all_batches() -> None:
    table, main = stages.run(flat(einfuse.compile("mlp_bias").cascade))
    assert (table.over, table.outs) == (("h",), ("table",))
    assert main.over == ("b", "h")


def test_two_folds_that_need_each_other_s_statistics_take_turns() -> None:
    """One softmax over keys of two ranks: the sums of each need the maxima of both, so one of the ranks is read again."""
    text = """attention both over b {
  rank i: query; rank j: key; rank r: key = R; rank d: feature
  in q[b, i, d]
  in k[b, j, d]
  in l[b, r, d]
  s = sum[d](q * k)
  t = sum[d](q * l)
  m = max(max[j](s), max[r](t))
  z[i] = m + log(sum[j](exp(s - m)) + sum[r](exp(t - m)))
  out z
}"""
    attention = einfuse.compile(text, backend="torch")
    assert sorted(p.after for p in attention.passes()) == [1, 2]
    q, k, r = (torch.randn(2, n, 4, dtype=torch.float64, requires_grad=True) for n in (7, 11, 5))
    wanted = (q @ torch.cat([k, r], 1).mT).logsumexp(-1)
    found = attention(q, k, r)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, wanted)
    for a, b in zip(torch.autograd.grad(found.sum(), (q, k, r)), torch.autograd.grad(wanted.sum(), (q, k, r)), strict=True):
        torch.testing.assert_close(a, b)


def test_two_terms_of_a_sum_have_one_gradient_in_memory_of_their_own() -> None:
    text = """attention terms over b {
  rank i: query; rank d: feature
  in x[b, i, d]
  in y[b, i, d]
  z[i, d] = x + y
  out z
}"""
    x, y = (torch.randn(2, 5, 4, requires_grad=True) for _ in range(2))
    found = einfuse.compile(text, backend="torch")(x, y)
    assert isinstance(found, Tensor)
    dx, dy = torch.autograd.grad(found.sum(), (x, y))
    assert torch.equal(dx, torch.ones(2, 5, 4))
    assert torch.equal(dy, dx)
    assert dx.data_ptr() != dy.data_ptr()


def test_one_kernel_is_left_as_it_is() -> None:
    c = einfuse.compile("full").cascade
    assert stages.run(flat(c)) == (c,)


def test_reductions_over_ranks_of_several_kinds() -> None:
    text = """attention totals over b {
  rank i: query; rank j: key; rank d: feature
  in q[b, i, d]
  in k[b, j, d]
  near = sum[j, d](q * k where j <= i)
  most = max[i, j](sum[d](q * k))
  every = sum[i, j, d](q * k)
  out near, most, every
}"""
    attention = einfuse.compile(text, backend="torch")
    q, k = (torch.randn(2, n, 4, dtype=torch.float64, requires_grad=True) for n in (7, 11))
    near, most, every = attention(q, k)
    s = q @ k.mT
    wanted = s.tril().sum(-1), s.amax((-2, -1)), s.sum((-2, -1))
    for found, truth in zip((near, most, every), wanted, strict=True):
        torch.testing.assert_close(found, truth)
        for a, b in zip(
            torch.autograd.grad(found.sum(), (q, k), retain_graph=True),
            torch.autograd.grad(truth.sum(), (q, k), retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_dropped_weights_are_the_same_in_every_back_end_and_differ_by_seed() -> None:
    q, k = (torch.zeros(1, 2, 33, 4) for _ in range(2))
    v = torch.eye(33).expand(1, 2, 33, 33)
    attention = einfuse.compile("dropout", rate=0.4)
    weights = {n: only(attention.with_backend(n)(q, k, v, seed=7)) for n in ("torch", "cpu")}
    assert torch.equal(weights["cpu"] == 0, weights["torch"] == 0)
    other = only(attention.with_backend("cpu")(q, k, v, seed=8))
    later = only(attention.with_backend("cpu")(q, k, v, seed=7, offset=1))
    below = torch.ones(33, 33).tril().bool()
    for w in (*weights.values(), other, later):
        assert abs((w[..., below] == 0).double().mean() - 0.4) < 0.05
    assert not torch.equal(weights["cpu"] == 0, other == 0)
    assert not torch.equal(weights["cpu"] == 0, later == 0)


def test_a_pair_that_would_have_to_be_stored_is_refused() -> None:
    text = """attention twice over b {
  rank i: query; rank j: key; rank r: key = Nk
  in x[b, i, j]
  p[i, r] = sum[j](x * x[b, i, r])
  o[i] = sum[j](p[i, max(j - 1, 0)])
  out o
}"""
    with pytest.raises(SpecError, match="`p` reduces over j for every pair of i and r"):
        einfuse.compile(text, backend="torch")(torch.randn(1, 5, 5))


def test_canonical_forms_keep_no_scalars_of_a_head() -> None:
    canonical = canonicalise.run(flat(einfuse.compile("mixed_branches").cascade))
    assert "g" not in {x.target for x in canonical.body if isinstance(x, Einsum)}
