"""What a spec means: the statements it becomes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from einfuse import dsl
from einfuse.ir import Cascade, Rank, SpecError, Tensor, const, index, load, size
from einfuse.ir.expr import call
from einfuse.ir.text import show, show_body

Body = Callable[..., list[str]]
Build = Callable[..., Cascade]

ALIBI = '''"""ALiBi in a causal window (Press et al., ICLR 2022)."""
attention alibi_window(window: int = 256) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]              # grouped-query attention is an index expression
  in v[b, h // group, j, e]
  in slope[h]
  s[i, j] = sum[d](q * k) / sqrt(D) + slope * (j - i)   where j <= i and i - j < window
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}
'''


def test_the_whole_of_an_attention() -> None:
    c = dsl.compile_text(ALIBI)
    assert (
        show(c)
        == """cascade alibi_window over b, h {
  rank b: batch = B
  rank h: head = H
  rank i: query = Nq
  rank j: key = Nk
  rank d: feature = D
  rank e: feature = E
  in q[B, H, Nq, D]: float
  in k[B, H // group, Nk, D]: float
  in v[B, H // group, Nk, E]: float
  in slope[H]: float
  param window: int = 256
  qk[i, j] = sum[d] q[b, h, i, d] * k[b, h // group, j, d]
  s[i, j] = qk[i, j] / sqrt(D) + slope[h] * (j - i) where j <= i and i - j < window[]
  s_max[i] = max[j] s[i, j]
  m[i] = max(stop(s_max[i]), (-1e+38))
  p[i, j] = exp(s[i, j] - m[i])
  p_sum[i] = sum[j] p[i, j]
  softmax[i, j] = p[i, j] / max(p_sum[i], 0.5)
  o[i, e] = sum[j] softmax[i, j] * v[b, h // group, j, e]
  out o
}"""
    )
    assert c.doc == "ALiBi in a causal window (Press et al., ICLR 2022)."


def test_places_survive() -> None:
    c = dsl.compile_text(ALIBI)
    places = {x.target: x.loc for x in c.einsums}
    assert places["s"] is not None
    assert (places["s"].line, places["s"].column) == (8, 3)
    assert places["m"] is not None  # filled in from the prelude: the call is its place
    assert (places["m"].line, places["m"].column) == (9, 20)
    assert c.input("slope").loc is not None


def test_parameters_are_numbers_of_the_call(cascade: Build) -> None:
    c = cascade("  s = q * scale + i // step\n  out s", "(scale: float = 2, step: int)")
    assert c.inputs[-2:] == (Tensor("scale", (), "float", True, 2.0), Tensor("step", (), "int", True, None))
    given = cascade("  s = q * scale\n  out s", "(scale: float = 2)", params={"scale": 3})
    assert given.input("scale").default == 3.0
    assert isinstance(given.input("scale").default, float)


def test_structural_parameters_are_constants(cascade: Build) -> None:
    c = cascade(
        "  rank r: key = width\n  in x[b, 2 * width + 1]\n  s[i, r] = i * r + width + x[b, r]\n  out s", "(width: int = 3)"
    )
    assert c.rank("r").size == 3
    assert c.input("x").axes == (size("B"), const(7))
    assert all(t.name != "width" for t in c.inputs)
    assert cascade("  rank r: key = width\n  s = i * r\n  out s", "(width: int)", params={"width": 8}).rank("r").size == 8


@pytest.mark.parametrize(("causal", "statement"), [(True, "s[i, j] = i * j where j <= i"), (False, "s[i, j] = i * j")])
def test_truth_values_fold_away(body: Body, causal: bool, statement: str) -> None:
    text = "  s = i * j where j <= i or not causal\n  out s"
    assert body(text, "(causal: bool = true)", params={"causal": causal}) == [statement]


@pytest.mark.parametrize(("act", "value"), [("relu", "max(q[b, h, i, d], 0)"), ("none", "q[b, h, i, d]")])
def test_choices_fold_away(body: Body, act: str, value: str) -> None:
    text = "  s = relu(q) if act == relu else q\n  out s"
    assert body(text, "(act: enum(relu, none) = none)", params={"act": act}) == [f"s[i, d] = {value}"]


def test_optional_inputs(cascade: Build) -> None:
    text = "  in bias[h, i, j] optional\n  s = i * j + (bias if given(bias) else 0)  where not given(bias) or bias > 0\n  out s"
    without, given = cascade(text), cascade(text, given={"bias"})
    assert show_body(without) == "  s[i, j] = i * j"
    assert all(t.name != "bias" for t in without.inputs)
    assert show_body(given) == "  s[i, j] = i * j + bias[h, i, j] where bias[h, i, j] > 0"


def test_ranks_and_sizes() -> None:
    c = dsl.compile_text(
        "attention f over n, head { rank i, r: query; rank j: key = M; rank c: key; rank d: feature = 64\n"
        "s = i * r * j * c * d out s }"
    )
    assert c.ranks == (
        Rank("n", "batch", "N"),
        Rank("head", "head", "HEAD"),
        Rank("i", "query", "Nq"),
        Rank("r", "query", "R"),
        Rank("j", "key", "M"),
        Rank("c", "key", "C"),
        Rank("d", "feature", 64),
    )
    assert c.body[0].ranks == ("i", "r", "j", "c", "d")  # type: ignore[union-attr]  # no folds yet


def test_axes() -> None:
    c = dsl.compile_text(
        "attention f over b, h { rank i: query; rank j: key; rank d: feature = 8\n"
        "in k[pages, P, h // group, d] in page[b, N]: int in x[j // 4, d // 2, i] in tau\n"
        "s = k[page[b, j // P], j % P, h // group, d] * x * tau out s }"
    )
    assert c.input("k").axes == (size("pages"), size("P"), call("//", size("H"), size("group")), const(8))
    assert c.input("x").axes == (call("//", size("Nk"), const(4)), const(4), size("Nq"))
    assert c.input("tau").axes == ()
    page = load("page", index("b"), call("//", index("j"), size("P")))
    assert load("k", page, call("%", index("j"), size("P")), call("//", index("h"), size("group")), index("d")) in (
        c.body[0].map.args[0].args  # type: ignore[union-attr]
    )


def test_ranks_of_a_target_are_inferred_in_order_of_declaration(body: Body) -> None:
    assert body("  s = sum[d](k * q)\n  t = sum[e](v * v)\n  out s, t") == [
        "s[i, j] = sum[d] k[b, h // group, j, d] * q[b, h, i, d]",
        "t[j] = sum[e] v[b, h // group, j, e] * v[b, h // group, j, e]",
    ]


def test_a_target_may_have_more_ranks_than_its_value(body: Body) -> None:
    assert body("  s[j, i] = 1.0 * i\n  m[i, e] = max[d](q)\n  out s, m") == [
        "s[j, i] = float(i)",
        "m[i, e] = max[d] q[b, h, i, d]",
    ]


def test_statements_read_at_other_coordinates(body: Body) -> None:
    text = "  rank r: key = Nk\n  s = sum[d](q * k)\n  t = s * s[i, r] + s[i, max(j - 1, 0)]\n  out t"
    assert body(text)[1] == "t[i, j, r] = s[i, j] * s[i, r] + s[i, max(j - 1, 0)]"


def test_integer_statements_are_filled_in(body: Body) -> None:
    text = "  n = j - i\n  near = abs(n) < 3\n  s = sum[d](q * k) + n  where near and n[j, i] < 2\n  out s"
    assert body(text) == [
        "qk[i, j] = sum[d] q[b, h, i, d] * k[b, h // group, j, d]",
        "s[i, j] = qk[i, j] + (j - i) where abs(j - i) < 3 and i - j < 2",
    ]
    assert body("  n = j - i\n  s = 2 * n\n  out s, n") == ["n[i, j] = j - i", "s[i, j] = 2 * n[i, j]"]


def test_chained_comparisons_and_precedence(body: Body) -> None:
    assert body("  s = q  where 0 <= i - d < 4 and not i == 3 or d < 2\n  out s") == [
        "s[i, d] = q[b, h, i, d] where 0 <= i - d and i - d < 4 and not i == 3 or d < 2"
    ]
    assert body("  s = -q^2 * 2 ^ -q\n  t = q - q - q / q * q\n  u = 2 ^ q ^ 3\n  out s, t, u") == [
        "s[i, d] = -q[b, h, i, d] ^ 2 * 2 ^ (-q[b, h, i, d])",
        "t[i, d] = q[b, h, i, d] - q[b, h, i, d] - q[b, h, i, d] / q[b, h, i, d] * q[b, h, i, d]",
        "u[i, d] = 2 ^ q[b, h, i, d] ^ 3",
    ]


def test_scalar_functions_of_many(body: Body) -> None:
    assert body("  s = max(q, 1, i) + min(q, d)\n  out s") == [
        "s[i, d] = max(max(q[b, h, i, d], 1), i) + min(q[b, h, i, d], d)"
    ]


def test_conditions_inside_reducers(body: Body) -> None:
    assert body("  s = sum[d](q * k)\n  l = sum[j](s where j < 4) + 1\n  out l")[1:] == [
        "s_sum[i] = sum[j] s[i, j] where j < 4",
        "l[i] = s_sum[i] + 1",
    ]
    assert body("  l[i] = sum[d](q) where d < 4 and i > 0\n  out l") == ["l[i] = sum[d] q[b, h, i, d] where d < 4 and i > 0"]


def test_count_and_mean_are_over_existing_points(body: Body) -> None:
    text = (
        "  s = sum[d](q * k)  where j <= i and i > 2\n  t = s * 2\n  n = count[j](t)\n  m = mean[j](t where j > 0)\n  out n, m"
    )
    assert body(text)[2:] == [
        "n[i] = sum[j] 1 where j <= i and i > 2",
        "t_sum[i] = sum[j] t[i, j] where j > 0",
        "count[i] = sum[j] 1 where j <= i and i > 2 and j > 0",
        "m[i] = t_sum[i] / count[i]",
    ]


def test_a_condition_is_counted_where_it_holds(body: Body) -> None:
    lines = body("  s = sum[d](q * k)  where j <= i\n  n = count[j](s > 0 where j > 1)\n  m = count[j](j <= i)\n  out n, m")
    assert lines[1:] == [
        "n[i] = sum[j] 1 where j <= i and j > 1 and s[i, j] > 0",
        "m[i] = sum[j] 1 where j <= i",
    ]


def test_a_read_that_folds_away_still_limits_the_space(body: Body) -> None:
    assert body("  s = sum[d](q * k)  where j <= i\n  t = 0 * s + i\n  l = sum[j](s ^ 0)\n  out t, l")[1:] == [
        "t[i, j] = float(i) where j <= i",
        "l[i] = sum[j] 1.0 where j <= i",
    ]


def test_the_count_of_a_dense_space_is_its_size(body: Body) -> None:
    text = "  s = sum[d](q * k)  where i > 2\n  m = mean[j](s)\n  c = s * count[i, j](s) / size(j)\n  out m, c"
    assert body(text)[1:] == [
        "s_sum[i] = sum[j] s[i, j]",
        "m[i] = s_sum[i] / Nk",
        "count[] = sum[i, j] 1 where i > 2",
        "c[i, j] = s[i, j] * count[] / Nk",
    ]


def test_any(body: Body) -> None:
    assert body("  s = 1.0 * i  where any[j](j > i and j < 3)\n  out s") == [
        "s_max[i] = max[j] float(j > i and j < 3)",
        "s[i] = float(i) where s_max[i] > 0.0",
    ]


def test_names_of_definitions_stay_out_of_the_way(body: Body) -> None:
    text = "  m = sum[d](q * k)\n  p = softmax[j](m)\n  r = softmax[j](m + 1)\n  out p, r"
    assert body(text) == [
        "m[i, j] = sum[d] q[b, h, i, d] * k[b, h // group, j, d]",
        "m_max[i] = max[j] m[i, j]",
        "m_1[i] = max(stop(m_max[i]), (-1e+38))",
        "p_1[i, j] = exp(m[i, j] - m_1[i])",
        "p_1_sum[i] = sum[j] p_1[i, j]",
        "p[i, j] = p_1[i, j] / max(p_1_sum[i], 0.5)",
        "s[i, j] = m[i, j] + 1",
        "s_max[i] = max[j] s[i, j]",
        "m_2[i] = max(stop(s_max[i]), (-1e+38))",
        "p_2[i, j] = exp(s[i, j] - m_2[i])",
        "p_2_sum[i] = sum[j] p_2[i, j]",
        "r[i, j] = p_2[i, j] / max(p_2_sum[i], 0.5)",
    ]


def test_equal_statements_of_definitions_are_made_once(body: Body) -> None:
    text = "  s = sum[d](q * k)\n  o = sum[j](softmax[j](s) * v)\n  w = softmax[j](s)\n  out o, w"
    lines = body(text)
    assert len([x for x in lines if "max[j]" in x]) == 1
    assert lines[-1] == "w[i, j] = softmax[i, j]"


def test_an_alias_inside_a_definition_does_not_take_its_name(body: Body) -> None:
    """A temporary that only repeats another one must not rename it: the first is still read."""
    lines = body("  s = g[d](q)\n  out s", "", "def g[d](x) { u = sum[d](x) w = u z = w * 2.0 return z + u }")
    assert lines == ["u[i] = sum[d] q[b, h, i, d]", "z[i] = u[i] * 2.0", "s[i] = z[i] + u[i]"]


def test_arguments(body: Body) -> None:
    before = "def twice(x) = x * x\ndef at[r](x) = x[r, r]\ndef shift[i, j](x) = x[i, j]"
    text = "  s = sum[d](q * k)\n  a = twice(s)\n  c = twice(s + 1)\n  f = at[i](s * 2)\n  g = shift[i, j + 1](s)\n  n = twice(j - i)\n"
    text += "  t = twice(tanh(s))\n  out a, c, f, g, n, t"
    assert body(text, "", before)[1:] == [
        "a[i, j] = s[i, j] * s[i, j]",
        "x[i, j] = s[i, j] + 1",  # used twice: a statement
        "c[i, j] = x[i, j] * x[i, j]",
        "x_1[i, j] = s[i, j] * 2",  # read at other indices: a statement
        "f[i] = x_1[i, i]",
        "g[i, j] = s[i, j + 1]",
        "n[i, j] = (j - i) * (j - i)",  # integers of coordinates are repeated
        "tanh[i, j] = tanh(s[i, j])",
        "t[i, j] = tanh[i, j] * tanh[i, j]",
    ]


def test_definitions_see_sizes_but_no_names_of_the_caller(body: Body) -> None:
    assert body("  s = g(q)\n  out s", "", "def g(x) = x / D") == ["s[i, d] = q[b, h, i, d] / D"]
    with pytest.raises(SpecError, match="the name `k` is not known"):
        body("  s = g(q)\n  out s", "", "def g(x) = x * k")


def test_masks_by_name(body: Body) -> None:
    text = "  in doc[b, N]: int\n  s = 0.5 * i * j  where masks.causal[i, j] and masks.document[b, i, j](doc) and not causal[j, i + 2]\n  out s"
    assert body(text, "", "use masks\nuse masks.causal") == [
        "s[i, j] = 0.5 * i * j where j <= i and doc[b, i] == doc[b, j] and not i + 2 <= j"
    ]


def test_one_of_several_attentions() -> None:
    text = "attention a { rank i: key x = i out x } attention c { rank i: key y = i out y }"
    assert dsl.compile_text(text).name == "c"
    assert dsl.compile_text(text, name="a").outs == ("x",)


def test_signature() -> None:
    module = dsl.parse(
        '"""A file."""\nuse masks\nattention f(n: int = -2, act: enum(x, y) = y, eps: float) over b {\n'
        "rank i: key in a[b, i] in c[b, i]: int optional s = a * n out s }"
    )
    s = dsl.signature(module)
    assert (s.name, s.doc, s.outputs) == ("f", "A file.", ("s",))
    assert [(p.name, p.type, p.default, p.members) for p in s.params] == [
        ("n", "int", -2, ()),
        ("act", "enum", "y", ("x", "y")),
        ("eps", "float", None, ()),
    ]
    assert [(x.name, x.dtype, x.optional) for x in s.inputs] == [("a", "float", False), ("c", "int", True)]


@pytest.mark.parametrize(
    ("declared", "value", "kept"),
    [
        ("d, e: feature; rank z: key", "sum[d](q * q)", "bid"),
        ("d, e: feature; rank z: key", "sum[d](q * q) / E", "bide"),  # no call tells E; the error says so
        ("d, e: feature; rank z: key = (E + 1) // 2", "sum[d](q * q)", "bidez"),
        ("d: feature; rank z: key = 7", "sum[d](q * q)", "bidz"),
    ],
)
def test_ranks_that_nothing_mentions_need_no_size(declared: str, value: str, kept: str) -> None:
    c = dsl.compile_text(f"attention f over b {{ rank i: query; rank {declared}\n in q[b, i, d]\n s[i] = {value}\n out s }}")
    assert "".join(r.name for r in c.ranks) == kept
