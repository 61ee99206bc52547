"""Attentions of one shape: a score, a mask, a normaliser, and choices of what is read."""

from __future__ import annotations

import re

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


_RANKED = {
    # whose list it is: what is ranked of a candidate C with the key K, of blocks of SIZE; equal values are among them
    "[i]": (
        "sum[d](q * K)",
        "relu(sum[d](q * K))",
        "-abs(i - SIZE * C)",
        "C % 3",
        "softmax[C](sum[d](q * K))",
        "slope * C + row[h, i]",
    ),
    "[i // SIZE]": ("sum[d](mq * K)", "C % 3", "-abs(x - C)", "tanh(sum[d](mq * K))"),
    "": ("sum[d](K * K)", "C % 3", "max[i](sum[d](q * K))", "-C"),
}
_FORCED = ("", "C == 0", "C % 4 == 1", "C == i // SIZE")
_CANDIDATES = ("", "SIZE * C <= i", "C % 2 == 0", "C > 50", "C < prefix[b]", "sum[d](K * K) > 3", "C != i // SIZE")
_USES = {
    # what becomes of the list, and the question to it; J is the candidate of a key, AT whose list a query reads
    "members": "J in sel AT",
    "slots": "",
    "first": "J == near AT",
    "nested": "j in fine[i]",
    "kept": "J in kept AT",
    "inverse": "J in sel AT",
    "pairs": "i // SIZE * W + j // SIZE in sel",
    "diagonals": "i - J in sel",
    "queries": "i in sel",
    "given": "J in list[b, i]",
}
_LISTS: dict[str, list[str]] = {
    "pairs": ["sel[n] = topk[x, w -> n](sum[d](mq * mk))"],
    "queries": ["sel[n] = topk[i -> n](sum[d](q * q) where i != 2)"],
    "given": [],
}
_CONDITIONS = ("M", "M and j <= i", "M or j == i", "not (M)", "M and pad[b, j]", "M or (j < 2 and i > 3)")
_KEPT = ("n < 2", "n < prefix[b]", "n % 2 == 0", "n < 1 + OWN % 3")


@st.composite
def selections(draw: st.DrawFn) -> str:
    """A whole attention that chooses what it reads.

    Keys, blocks of keys, pairs of blocks, queries, diagonals or heads, by scores of queries, of blocks of queries or of all; as many slots as
    candidates, fewer or more. The list is asked for members, read slot by slot, cut short, looked into by another choice, or given.
    """
    use = draw(st.sampled_from((*_USES, "heads")))
    if use == "heads":
        return draw(_routed_heads())
    size = draw(st.sampled_from((2, 4) if use == "pairs" else (1, 2, 4)))
    shared = {"pairs": ("",), "diagonals": ("",), "queries": ("",), "inverse": ("[i]", "")}.get(use, tuple(_RANKED))
    prefix = draw(st.sampled_from([x for x in shared if size > 1 or x != "[i // SIZE]"]))
    own = {"[i]": "i", "[i // SIZE]": "x", "": ""}[prefix]
    words = {
        "SIZE": str(size),
        "C": "j" if size == 1 else "w",
        "K": "k" if size == 1 else "mk",
        "J": "j" if size == 1 else f"j // {size}",
    }
    words |= {
        "AT": prefix.replace("SIZE", str(size)),
        "OWN": own or "h",
        "RANKS": own,
        "ROW": prefix[1:-1].replace("SIZE", str(size)),
    }

    def choice() -> str:
        """What is ranked, and where it exists."""
        forced, where = draw(st.sampled_from(_FORCED)), draw(st.sampled_from(_CANDIDATES))
        if own != "i":  # what is chosen for several queries cannot depend on one
            forced, where = ("" if "i" in words_of(x) else x for x in (forced, where))
        value = draw(st.sampled_from(_RANKED[prefix]))
        return (f"1e30 if {forced} else {value}" if forced else value) + (f" where {where}" if where else "")

    made = "near[RANKS] = argmax[C]" if use == "first" else "sel[RANKS, n] = topk[C -> n]"
    lines = [*_LISTS[use]] if use in _LISTS else [f"{made}({choice()})"]
    score, value, last = "sum[d](q * k)", "v", "j"
    if use == "nested":
        lines.append("fine[i, m] = topk[j -> m](sum[d](q * k) - 0.1 * j where J in sel AT)")
    elif use == "kept":
        lines.append(f"kept[RANKS, n] = sel where {draw(st.sampled_from(_KEPT))}")
    elif use == "inverse":
        lines.append("place[RANKS, C] = sum[n](n + 1.0 where sel == C)")
        score += " * stop(place[ROW, J])"
    if use == "slots":
        lines.append("s[i, n] = sum[d](q * k[b, h // group, sel[ROW, n] * SIZE % Nk, d])")
        value, last = "v[b, h // group, sel[ROW, n] * SIZE % Nk, e]", "n"
    else:
        lines.append(f"s[i, j] = {score} where {draw(st.sampled_from(_CONDITIONS)).replace('M', _USES[use])}")
    norm = draw(st.just("") | normalisers())
    lines.append(f"o[i, e] = sum[{last}]({'norm' if norm else 'softmax'}[{last}](s) * {value})")
    listed = any(x.startswith("sel[") for x in lines)
    lines = [re.sub(rf"\b({'|'.join(words)})\b", lambda m: words[m[0]], x).replace("[, ", "[").replace("[]", "") for x in lines]
    lines = [x.replace(" [", "[").replace("  ", " ").rstrip() for x in lines]
    return _with_lists(
        norm, lines, draw(st.sampled_from(("o", "o, sel") if listed else ("o",))), size, draw(st.sampled_from((2, 1, 3, 20)))
    )


_GATES = {
    # whose list of heads it is: what is ranked
    "[i]": ("gate", "relu(gate)", "h % 2", "softmax[h](gate)", "sum[d](q * q)", "-abs(h - i % 3)"),
    "": ("max[i](gate)", "h % 2", "-h"),
}
_HEADS = ("", "h != i % 2", "h > 50", "gate > 0", "h % 2 == 0")
_SHARES = ("", "softmax[h](gate) * ", "(gate if h in sel AT else 0) * ")


@st.composite
def _routed_heads(draw: st.DrawFn) -> str:
    """Heads that a query, or all of them, choose: computed where they stand, or those of the list slot by slot."""
    at, slots = draw(st.sampled_from(("[i]", ""))), draw(st.sampled_from((2, 1, 6)))
    where = draw(st.sampled_from(_HEADS if at else tuple(x for x in _HEADS if "i" not in words_of(x) and "gate" not in x)))
    slot = "sel[i, n]" if at else "sel[n]"
    lines = [f"{slot} = topk[h -> n]({draw(st.sampled_from(_GATES[at]))}{f' where {where}' if where else ''})"]
    norm = draw(st.just("") | normalisers())
    name, seen = "norm" if norm else "softmax", draw(st.sampled_from(("", "j <= i", "pad[b, j]")))
    if draw(st.booleans()):
        share = draw(st.sampled_from(("", f"gate[b, {slot}, i] * ")))
        lines.append(
            f"s[i, n, j] = sum[d](q[b, {slot}, i, d] * k[b, {slot} // group, j, d])" + (f" where {seen}" if seen else "")
        )
        lines.append(f"o[i, e] = sum[n]({share}sum[j]({name}[j](s) * v[b, {slot} // group, j, e]))")
    else:
        share, last = draw(st.sampled_from(_SHARES)), draw(st.sampled_from(("", f" where h in sel{at}")))
        lines.append(f"s[h, i, j] = sum[d](q * k) where h in sel{at}" + (f" and {seen}" if seen else ""))
        lines.append(f"o[h, i, e] = {share.replace(' AT', at)}sum[j]({name}[j](s) * v){last}")
    text = "\n".join(f"  {x}" for x in lines)
    head = f"attention drawn over b {{\n  rank h: head; rank i: query; rank j: key; rank n: feature = {slots}; rank d, e: feature\n"
    inputs = [f"  in {x}" for x in _inputs(text)]
    return norm + head + "\n".join([*inputs, text, f"  out {draw(st.sampled_from(('o', 'o, sel')))}"]) + "\n}\n"


def _with_lists(norm: str, lines: list[str], outs: str, size: int, slots: int) -> str:
    """The attention of statements about blocks of keys w of so many tokens, blocks of queries x, and slots n of a list."""
    text = "\n".join(f"  {x}" for x in lines)
    words = words_of(text)
    ranks = ["i: query", "j: key", "d, e: feature"]
    blocks = [f"{r}: {kind} = ({n} + {size - 1}) // {size}" for r, kind, n in (("x", "query", "Nq"), ("w", "key", "Nk"))]
    ranks += [x for x in blocks if x[0] in words or {"x": "mq", "w": "mk"}[x[0]] in words]
    ranks += [f"{r}: feature = {n}" for r, n in (("n", slots), ("m", 3)) if r in words]
    means = [
        f"  m{y}[{r}, d] = mean[{t}]({y} where {t} // {size} == {r})"
        for y, r, t in (("q", "x", "i"), ("k", "w", "j"))
        if f"m{y}" in words
    ]
    head = f"attention drawn over b, h {{\n  rank {'; rank '.join(ranks)}\n"
    inputs = [f"  in {x}" for x in _inputs(text)]
    return norm + head + "\n".join([*inputs, *means, text, f"  out {outs}"]) + "\n}\n"


def words_of(text: str) -> set[str]:
    """The names in a text."""
    return set(re.findall(r"[A-Za-z_]\w*", text))


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
        "list": "list[b, i, 4]: int",
        "gate": "gate[b, h, i]",
    }
    return always + [declared for name, declared in optional.items() if name in text]
