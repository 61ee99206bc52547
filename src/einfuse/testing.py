"""Hypothesis strategies for specs: `specs` draws whole attentions as `.attn` text, to property-test a compiler pass or your own variant.

    from hypothesis import given
    from einfuse.testing import specs

    @given(specs())
    def test_my_pass(text): ...

`specs()` draws whole attentions, `masks(depth)` conditions over b, h, i, j, `normalisers()` definitions of `norm[j](s)`: docs/testing.md
(examples there). A drawn text always elaborates; it shrinks towards plain softmax attention. Needs the package `hypothesis`.
"""

from __future__ import annotations

from hypothesis import strategies as st

_SCALES = ("", " / sqrt(D)", " * 0.25", " * tau[h]")
_TERMS = (
    "slope * (j - i)",
    "-slope * abs(i - j)",
    "bias[b, h, i, j]",
    "head_bias[h, i, j]",
    "table[h, j - i + Nq]",
    "row[h, i]",
    "column[b, j]",
    "slope * row[h, i]",
    "sin(0.3 * i) * column[b, j]",
)
_SCORES = ("s0", "cap * tanh(s0 / cap)", "0.5 * s0 + slope", "s0 - 0.1 * s0 * s0", "sin(s0)", "min(s0, 3)")
_MASKS = (
    "j <= i",
    "i - j < window",
    "j - i < window",
    "j < prefix[b]",
    "doc[b, i] == doc[b, j]",
    "pad[b, j]",
    "(i - j) % 3 == 0",
    "i // 4 == j // 4",
    "j < 2",
    "abs(i - j) <= window",
    "h > 0",
)
_WEIGHTS = (
    # name, statements before the weight, weight: every weight is smooth almost everywhere
    ("stable", "m = max[j](s)", "exp(s - m)"),
    ("plain", "", "exp(min(s, 20))"),
    ("sigmoid", "", "sigmoid(s - 1)"),
    ("relu2", "", "relu(s)^2"),
    ("softplus", "", "softplus(s)"),
    ("tanh", "", "tanh(s)"),
    ("taylor", "", "1 + s + s * s / 2"),
    ("signed", "m = max[j](abs(s))", "sign(s) * exp(abs(s) - m)"),
    ("scaled", "m = max[j](abs(s))", "(s / (m + 0.5))^4"),
    ("centred", "n = count[j](s)\n  mu = sum[j](s) / n", "s - mu"),
)
_NORMS = (
    # statements after `p`, and the result
    ("", "p"),
    ("n2 = count[j](s)", "p / n2"),
    ("l = sum[j](p)", "p / (abs(l) + 0.5)"),
    ("l = sum[j](abs(p))", "p / (1 + l)"),
    ("l = sum[j](p * p)", "p / sqrt(l + 0.1)"),
    ("l = sum[j](abs(p))", "max(p / (l + 0.5) - 0.05, 0)"),
)


@st.composite
def masks(draw: st.DrawFn, depth: int = 2) -> str:
    """A predicate over b, h, i, j: atoms joined by and, or, not."""
    kind = draw(st.integers(0, 3)) if depth else 0
    if kind == 0:
        return draw(st.sampled_from(_MASKS))
    if kind == 3:
        return f"not ({draw(masks(depth - 1))})"
    return f"({draw(masks(depth - 1))}) {'and' if kind == 1 else 'or'} ({draw(masks(depth - 1))})"


@st.composite
def normalisers(draw: st.DrawFn) -> str:
    """A definition ``def norm[j](s)``: a weight function and what it is divided by."""
    _, before, weight = draw(st.sampled_from(_WEIGHTS))
    after, result = draw(st.sampled_from(_NORMS))
    lines = [x for x in (before, f"p = {weight}", after, f"return {result}") if x]
    return "def norm[j](s) {\n  " + "\n  ".join(lines) + "\n}\n"


@st.composite
def specs(draw: st.DrawFn) -> str:
    """A whole attention: score, captured tensors, mask, normaliser, grouped keys, maybe normalised keys, maybe row statistics."""
    scale = draw(st.sampled_from(_SCALES))
    terms = draw(st.lists(st.sampled_from(_TERMS), max_size=2, unique=True))
    score = draw(st.sampled_from(_SCORES))
    mask = draw(st.none() | masks())
    cosine = draw(st.booleans())
    statistic = draw(st.booleans())
    norm = draw(normalisers())
    where = f" where {mask}" if mask else ""
    key = "kn" if cosine else "k"
    body = [f"  s0[i, j] = sum[d](q * {key}){scale}" + "".join(f" + {t}" for t in terms)]
    if cosine:
        body.insert(0, "  kn[j, d] = k / sqrt(sum[d](k * k) + 0.1)")
    body.append(f"  s[i, j] = {score}{where}")
    late = draw(
        st.sampled_from(("", "", " where j % 2 == 0", " where j > i - 3", " where s > 0.2", " where s + 0.5 > max[j](s)"))
    )
    body.append(f"  o[i, e] = sum[j](norm[j](s) * v{late})")
    if statistic:
        body.append("  z[i] = sum[j](sigmoid(s))")
    text = "\n".join(body)
    inputs = [f"  in {x}" for x in _inputs(text)]
    params = ", ".join(p for p, n in (("window: int = 4", "window"), ("cap: float = 5.0", "cap")) if n in text)
    head = f"attention drawn{f'({params})' if params else ''} over b, h {{\n  rank i: query; rank j: key; rank d, e: feature\n"
    return norm + head + "\n".join([*inputs, text, "  out o, z" if statistic else "  out o"]) + "\n}\n"


def _inputs(text: str) -> list[str]:
    always = ["q[b, h, i, d]", "k[b, h // group, j, d]", "v[b, h // group, j, e]"]
    optional = {
        "tau": "tau[h]",
        "slope": "slope[h]",
        "bias[b": "bias[b, h, i, j]",
        "head_bias": "head_bias[h, i, j]",
        "table": "table[h, Nq + Nk]",
        "row": "row[h, i]",
        "column": "column[b, j]",
        "prefix": "prefix[b]: int",
        "doc": "doc[b, N]: int",
        "pad": "pad[b, j]: bool",
    }
    return always + [declared for name, declared in optional.items() if name in text]
