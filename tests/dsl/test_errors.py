"""Every fault of a spec: what is said, where, and the next step."""

from __future__ import annotations

from pathlib import Path

import pytest

from einfuse import dsl
from einfuse.ir import SpecError

HEAD = """attention f over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
"""


def fault(text: str, **options: object) -> SpecError:
    with pytest.raises(SpecError) as caught:
        dsl.compile_text(text, "spec.attn", **options)  # type: ignore[arg-type]  # tests pass what fits
    error = caught.value
    shown = str(error)
    assert ".py" not in shown, "our own files are none of the user's business"
    assert "lark" not in shown.lower()
    if error.loc is not None and error.loc.file == "spec.attn":
        assert shown.startswith(f"spec.attn:{error.line}:{error.column}: ")
        assert "^" in shown or not text
    return error


# text after HEAD (which has five lines), phrase, line, column, part of the hint
BODIES = {
    "unknown name": ("  s[i, j] = slop * i\n  out s\n}", "the name `slop` is not known", 6, 13, ""),
    "unknown name, near": ("  in slope[h]\n  s = slop * i\n  out s\n}", "the name `slop` is not known", 7, 7, "slope"),
    "unknown function": ("  s[i] = exq(i)\n  out s\n}", "the function `exq` is not known", 6, 10, "exp"),
    "unknown definition": ("  s[i] = sofmax[j](i * j)\n  out s\n}", "the definition `sofmax` is not known", 6, 10, "softmax"),
    "unknown rank": ("  s[i, x] = 1.0 * i\n  out s\n}", "the rank `x` is not known", 6, 8, ""),
    "rank twice in a target": ("  s[i, i] = 1.0 * i\n  out s\n}", "the rank `i` stands twice in the target `s`", 6, 8, ""),
    "ambient rank in a target": ("  s[b, i] = 1.0 * i\n  out s\n}", "`b` is ambient", 6, 5, "leave it out"),
    "target misses a rank": ("  s[i] = i * j\n  out s\n}", "the target `s` misses the rank `j`", 6, 3, "s[i, j]"),
    "target keeps a reduced rank": ("  s[i, j] = sum[j](i * j)\n  out s\n}", "keeps the rank `j` that it reduces", 6, 3, ""),
    "too few indices": ("  s[i, j] = q[i, j]\n  out s\n}", "`q` takes 4 indices, found 2", 6, 13, "q[b, h, i, d]"),
    "ambient index of a statement": (
        "  s[i, j] = 1.0 * i * j\n  t = s[b, i, j]\n  out t\n}",
        "`s` takes 2 indices, found 3",
        7,
        7,
        "ambient ranks (b) are left out",
    ),
    "float index": ("  s[i] = q[b, h, i / 2, 0]\n  out s\n}", "an index is an integer, found a float", 6, 18, "floor"),
    "indices of a number": ("  s[i] = D[i]\n  out s\n}", "`D` is a single number", 6, 10, ""),
    "wrong arity of a function": ("  s[i] = exp(i, i)\n  out s\n}", "`exp` takes one operand, found 2", 6, 10, ""),
    "wrong arity of a definition": (
        "  s[i] = softcap(i)\n  out s\n}",
        "`softcap` takes 2 arguments, found 1",
        6,
        10,
        "softcap(x, cap)",
    ),
    "missing ranks of a definition": ("  s = softmax(q)\n  out s\n}", "`softmax` takes 1 rank, found 0", 6, 7, "softmax[j](s)"),
    "max of one": ("  s = max(q)\n  out s\n}", "`max` of one value needs a rank", 6, 7, "max[j](x)"),
    "reducer without operand": ("  s = max[j]\n  out s\n}", "the reducer `max` needs an operand", 6, 7, "max[j](x)"),
    "reducer without ranks": ("  s = sum(q)\n  out s\n}", "the reducer `sum` needs ranks", 6, 7, "sum[j](x)"),
    "operand without parentheses": ("  s = max[j] q\n  out s\n}", "unexpected `out`", 7, 3, "in parentheses"),
    "number as condition": ("  s = q where i\n  out s\n}", "a `where` takes a condition, found a number", 6, 15, "x != 0"),
    "condition as number": ("  s = q + (i < 3)\n  out s\n}", "`+` takes numbers, found a condition", 6, 7, "int(condition)"),
    "number joined by and": ("  s = q where i and j\n  out s\n}", "`and` joins conditions, found a number", 6, 15, "!= 0"),
    "integer division of floats": ("  s = q // 2\n  out s\n}", "`//` divides integers, found a float", 6, 7, "floor(a / b)"),
    "remainder of a float": ("  s = q % 2\n  out s\n}", "`%` divides integers, found a float", 6, 7, ""),
    "mixed choice": ("  s = q if i < 3 else i < 2\n  out s\n}", "one side of this choice is a condition", 6, 7, ""),
    "choice by number": ("  s = q if i else 0\n  out s\n}", "a choice depends on a condition", 6, 7, ""),
    "compared kinds": ("  s = q where i == true\n  out s\n}", "`==` compares a number with a condition", 6, 15, ""),
    "sum of conditions": (
        "  s = sum[j](j < i)\n  out s\n}",
        "`sum` reduces numbers, found a condition",
        6,
        7,
        "sum[j](int(condition))",
    ),
    "any of numbers": ("  s = any[j](j * i)\n  out s\n}", "`any` reduces conditions, found a number", 6, 7, ""),
    "reduced rank does not occur": ("  s = sum[j](q)\n  out s\n}", "the rank `j` does not occur", 6, 11, "size(j)"),
    "reduced twice": ("  s = sum[d, d](q)\n  out s\n}", "the rank `d` is reduced twice", 6, 14, ""),
    "ambient rank reduced": (
        "  s = sum[h](q)\n  out s\n}",
        "`h` is ambient and cannot be reduced",
        6,
        11,
        "take `h` out of `over`",
    ),
    "reduced over an expression": ("  s = sum[j + 1](q * j)\n  out s\n}", "this is not a rank", 6, 11, "rank j: key"),
    "reduced over a size": ("  s = sum[D](q)\n  out s\n}", "`D` is not a rank", 6, 11, ""),
    "condition over a reduced rank": (
        "  s = sum[d](q) / 2 where d < 3\n  out s\n}",
        "`d` is reduced inside this statement",
        6,
        27,
        "into the reducer",
    ),
    "where in a call": ("  s = exp(q where i < 3)\n  out s\n}", "a `where` stands inside a reducer", 6, 19, "then `exp(t)`"),
    "points counted": ("  s[i] = sum[j](1)\n  out s\n}", "`j` does not occur", 6, 14, "count[j](condition)"),
    "topk without a slot": ("  s = topk[j](i * j)\n  out s\n}", "`topk` needs a rank for the slots", 6, 7, "topk[j -> n](x)"),
    "argmax with a slot": ("  s = argmax[j -> d](i * j)\n  out s\n}", "`argmax` gives one coordinate", 6, 19, "argmax[j](x)"),
    "sum with a slot": ("  s = sum[j -> d](i * j)\n  out s\n}", "`sum` makes no slots", 6, 16, "topk[w -> n]"),
    "a function with a slot": ("  s = exp[j -> d](i * j)\n  out s\n}", "`exp` makes no slots", 6, 16, "topk[w -> n]"),
    "slot in its own map": ("  s = topk[j -> d](q * j)\n  out s\n}", "depends on the slot `d`", 6, 17, "a rank of its own"),
    "slot that is ranked": (
        "  s = topk[j -> j](i * j)\n  out s\n}",
        "the slot `j` is a rank that is ranked along",
        6,
        17,
        "rank n",
    ),
    "slot that is ambient": (
        "  s = topk[j -> h](i * j)\n  out s\n}",
        "the slot `h` is a rank that is ambient",
        6,
        17,
        "rank n",
    ),
    "slot in front": ("  s[d, i] = topk[j -> d](i * j)\n  out s\n}", "the slot `d` stands last", 6, 3, "s[i, d]"),
    "ranked conditions": ("  s = topk[j -> d](j < i)\n  out s\n}", "`topk` ranks numbers, found a condition", 6, 20, "where"),
    "ranked along nothing": ("  s = topk[j -> d](i)\n  out s\n}", "the rank `j` does not occur in what is ranked", 6, 12, ""),
    "float in a list": (
        "  s = topk[j -> d](i * j)\n  t = q where q in s\n  out t\n}",
        "`in` looks for an integer, found a float",
        7,
        15,
        "floor",
    ),
    "list of floats": ("  s[i] = i where i in q\n  out s\n}", "`q` holds floats", 6, 23, "before the first statement"),
    "list that is not there": (
        "  s[i] = i where i in lists[i]\n  out s\n}",
        "`lists` is not known here",
        6,
        23,
        "before the first",
    ),
    "list that is a number": ("  s[i] = i where i in D\n  out s\n}", "`D` is no list", 6, 23, ""),
    "list with every index": (
        "  s = topk[j -> d](i * j)\n  t = i where i in s[i, d]\n  out t\n}",
        "every index of a list but the last: 1, found 2",
        7,
        20,
        "`x in s[i]`",
    ),
    "input behind a statement": (
        "  s[i] = i\n  in x[i]\n  out s\n}",
        "`x` is not known here",
        7,
        6,
        "before the first statement",
    ),
    "redefined statement": ("  s[i] = i\n  s[i] = i\n  out s\n}", "`s` is declared twice (first in line 6)", 7, 3, ""),
    "redefined input": ("  q[i] = i\n  out q\n}", "`q` is declared twice (first in line 3)", 6, 3, ""),
    "name of a size": ("  in D[h]\n  s[i] = i\n  out s\n}", "`D` is already the size of the rank `d`", 6, 6, "rename it"),
    "read before definition": ("  s[i] = t\n  t[i] = i\n  out s\n}", "the name `t` is not known", 6, 10, ""),
    "no output": ("  s[i] = i\n}", "the attention `f` has no output", 1, 11, "out o"),
    "unknown output": ("  score[i] = i\n  out scores\n}", "the output `scores` is not defined", 7, 7, "score"),
    "input as output": ("  s[i] = i\n  out q\n}", "the output `q` is not a statement", 7, 7, ""),
    "output twice": ("  s[i] = i\n  out s, s\n}", "`s` is output twice", 7, 10, ""),
    "unknown kind": ("  rank r: querry\n  s[i] = i\n  out s\n}", "`querry` is not a kind of rank", 6, 11, "query"),
    "unknown type": ("  in x[i]: flot\n  s[i] = i\n  out s\n}", "`flot` is not a type of input", 6, 12, "float"),
    "size of a rank": (
        "  rank r: key = 1.5\n  s[i] = i\n  out s\n}",
        "the size of a rank is made of sizes, integers",
        6,
        17,
        "",
    ),
    "empty rank": ("  rank r: key = 2 - 2\n  s[i] = i\n  out s\n}", "the size of a rank is positive, found 0", 6, 17, ""),
    "untold size": (
        "  rank r: key = 2 * Nkk\n  s[i] = i\n  out s\n}",
        "nothing tells `Nkk`, of which the size of the rank `r`",
        6,
        8,
        "Nk",
    ),
    "size of itself": (
        "  rank r: key = 2 * R\n  s[i] = i\n  out s\n}",
        "nothing tells `R`, of which the size of the rank `r`",
        6,
        8,
        "",
    ),
    "axis of an expression": (
        "  in x[(d + 1) % D]\n  s[i] = i\n  out s\n}",
        "the axis `(d + 1) % D` is neither a rank",
        6,
        8,
        "explicit indices",
    ),
    "statement as a size": ("  in x[b, s]\n  s[i] = i\n  out s\n}", "`s` is not a size", 6, 11, "a new name"),
    "axis without coordinate": ("  in x[b, N]\n  s[i] = x\n  out s\n}", "axis 2 of `x` is the size `N`", 7, 10, "x[b, ...]"),
    "input not given": (
        "  in x[i] optional\n  s[i] = x\n  out s\n}",
        "the optional input `x` is not given",
        7,
        10,
        "if given(x)",
    ),
    "given of a required input": (
        "  s[i] = i if given(q) else 0\n  out s\n}",
        "`given` takes the name of an optional input",
        6,
        15,
        "",
    ),
    "definition as a name": ("  s[i] = softmax\n  out s\n}", "`softmax` is a definition", 6, 10, "softmax[j](s)"),
    "function as a name": ("  s[i] = exp\n  out s\n}", "`exp` is a function", 6, 10, "exp(x)"),
    "ranks of a function": ("  s = exp[j](q)\n  out s\n}", "the function `exp` takes no ranks", 6, 7, ""),
    "call of a tensor": ("  s = q(i)\n  out s\n}", "`q` is not a function", 6, 7, "q[...]"),
}


@pytest.mark.parametrize("case", BODIES)
def test_faults_of_a_body(case: str) -> None:
    body, phrase, line, column, hint = BODIES[case]
    error = fault(HEAD + body)
    assert phrase in error.message
    assert (error.line, error.column) == (line, column), str(error)
    assert hint in error.hint


# whole text, phrase, line, column, part of the hint
TEXTS = {
    "nothing": ("", "this file defines no attention", 1, 1, "attention name"),
    "misspelt keyword": ("atention f {}", "`atention` is not a word", 1, 1, "attention"),
    "misspelt rank": ("attention f {\n  rnak i: query\n}", "`rnak` is not a word", 2, 3, "rank"),
    "unclosed brace": ("attention f {\n  s = 1\n", "the text ends too early", 2, 8, "`{` in line 1 is never closed"),
    "assignment in a condition": ("attention f { s = 1 where i = 2 }", "unexpected `=`", 1, 29, "=="),
    "double star": ("attention f { s = 2 ** 3 }", "unexpected `*`", 1, 22, "x ^ y"),
    "ampersand": ("attention f { s = a & b }", "the character '&' has no meaning", 1, 21, "`and`"),
    "exclamation mark": ("attention f { s = !a }", "the character '!' has no meaning", 1, 19, "`not`"),
    "string": ("attention f { s = 'a' }", 'the character "\'" has no meaning', 1, 19, "docstrings"),
    "missing value": ("attention f { s = }", "unexpected `}`: expected a value", 1, 19, ""),
    "keyword as name": ("attention f { rank in: query }", "`in` is a word of the language", 1, 20, ""),
    "where twice": ("attention f { s = 1 where a where b }", "unexpected `where`", 1, 29, ""),
    "stray docstring": ('use masks\n"""a"""\nuse masks.causal', "a docstring stands first", 2, 1, "#"),
    "long number": (f"attention f {{ s = {'1' * 41} }}", "more than 40 characters", 1, 19, ""),
    "wide integer": ("attention f { s = 9223372036854775808 }", "does not fit in 64 bits", 1, 19, ""),
    "huge float": ("attention f { s = 1e999 }", "too large for a float", 1, 19, ""),
    "two of a name": (
        "attention f { s = 1 out s } attention f { s = 1 out s }",
        "the attention `f` is defined twice",
        1,
        39,
        "",
    ),
    "definition twice": ("def g(x) = x def g(x) = x attention f { s = 1 out s }", "`g` is defined twice", 1, 18, ""),
    "definition of a builtin": ("def exp(x) = x attention f { s = 1 out s }", "`exp` is part of the language", 1, 5, ""),
    "definition of a reducer": ("def sum(x) = x attention f { s = 1 out s }", "`sum` is part of the language", 1, 5, ""),
    "recursion": (
        "def g(x) = g(x) attention f { s = g(1) out s }",
        "the definition `g` uses itself: g -> g",
        1,
        12,
        "no recursion",
    ),
    "mutual recursion": (
        "def g(x) = k(x) def k(x) = g(x) attention f { s = g(1) out s }",
        "uses itself: g -> k -> g",
        1,
        28,
        "no recursion",
    ),
    "unknown module": ("use mask attention f { s = 1 out s }", "module `mask` is not known", 1, 5, "masks"),
    "unknown name of a module": ("use masks.causl attention f { s = 1 out s }", "`causl` is not known", 1, 11, "causal"),
    "rank twice in over": ("attention f over b, b { s = 1 out s }", "the rank `b` stands twice in `over`", 1, 21, ""),
    "rank twice": ("attention f { rank i: key rank i: key s = 1 out s }", "`i` is declared twice", 1, 32, ""),
    "parameter type": ("attention f(w: itn = 3) { s = 1 out s }", "`itn` is not a type of parameter", 1, 16, "int"),
    "enum without members": ("attention f(w: enum = a) { s = 1 out s }", "an enum lists its members", 1, 16, ""),
    "enum default": ("attention f(w: enum(a, b) = c) { s = 1 out s }", "`w` is one of a, b, found c", 1, 29, ""),
    "default of another type": ("attention f(w: int = 1.5) { s = 1 out s }", "`w` is of type int, found 1.5", 1, 22, ""),
    "default not constant": ("attention f(w: int = 1 + 1) { s = 1 out s }", "the default of `w` is not a constant", 1, 22, ""),
    "missing structural value": (
        "attention f(w: int) { rank i: key = w  s = i out s }",
        "the parameter `w` needs a value",
        1,
        13,
        "w=...",
    ),
    "enum as number": ("attention f(w: enum(a, b) = a) { s = w out s }", "`w` is a choice among a, b", 1, 38, "w == a"),
    "enum against nothing": (
        "attention f(w: enum(aa, bb) = aa) { s = 1 if w == ab else 2 out s }",
        "`w` is one of aa, bb",
        1,
        51,
        "",
    ),
}


@pytest.mark.parametrize("case", TEXTS)
def test_faults_of_a_text(case: str) -> None:
    text, phrase, line, column, hint = TEXTS[case]
    error = fault(text)
    assert phrase in error.message
    assert (error.line, error.column) == (line, column), str(error)
    assert hint in error.hint


def test_the_line_and_a_caret_are_shown() -> None:
    assert str(fault(HEAD + "  s = q // 2\n  out s\n}")).splitlines() == [
        "spec.attn:6:7: `//` divides integers, found a float",
        "      s = q // 2",
        "          ^^^^^^",
        "  hint: write floor(a / b) for floats",
    ]


def test_faults_of_arguments() -> None:
    text = "attention f(width: int = 3, act: enum(tanh, none) = tanh, on: bool = true) { rank i: query  s = i * width  out s }"
    assert "f has no parameter `widht`" in fault(text, params={"widht": 3}).message
    assert "`width`" in fault(text, params={"widht": 3}).hint
    assert "`width` is of type int, found 2.5" in fault(text, params={"width": 2.5}).message
    assert "`width` is of type int, found true" in fault(text, params={"width": True}).message
    assert "`act` is one of tanh, none, found relu" in fault(text, params={"act": "relu"}).message
    assert "`on` is of type bool, found 1" in fault(text, params={"on": 1}).message
    assert "`bias` is not an optional input" in fault(text, given={"bias"}).message
    assert "has no attention `g`" in fault(text, name="g").message


def test_a_fault_inside_a_definition_points_into_the_users_text() -> None:
    own = fault("def g(x) = x // 2\n" + HEAD + "  s = g(q)\n  out s\n}")
    assert (own.line, own.column) == (1, 12)
    of_the_prelude = fault(HEAD + "  s = square(i < 3)\n  out s\n}")
    assert (of_the_prelude.line, of_the_prelude.column) == (6, 7)
    assert "square(i < 3)" in str(of_the_prelude)


@pytest.mark.slow
def test_limits() -> None:
    assert "a spec has at most 1,000,000" in fault("#" * 1_000_001).message
    deep = fault("attention f { s = " + "(1 + " * 300 + "1" + ")" * 300 + " out s }")
    assert "nested more than 200 levels" in deep.message
    assert "nested more than 200 levels" in fault("attention f { rank i: key s = i" + " + i" * 1000 + " out s }").message
    chain = "".join(f"def g{n}(x) = g{n + 1}(x) + 1\n" for n in range(300)) + "def g300(x) = x\n"
    assert "levels deep" in fault(chain + "attention f { rank i: key s = g0(i) out s }").message
    doubling = "".join(f"def g{n}(x) = g{n + 1}(x) + g{n + 1}(x)\n" for n in range(30)) + "def g30(x) = x + 1\n"
    assert "too large" in fault(doubling + "attention f { rank i: key s = g0(i) out s }").message
    idle = doubling.replace("g30(x) = x + 1", "g30(x) = 0 * x")
    assert "too much work" in fault(idle + "attention f { rank i: key s = g0(i) out s }").message
    stored = "".join(f"def g{n}(x) {{ y = g{n + 1}(x + {n}.5) z = g{n + 1}(x - {n}.5) return y * z }}\n" for n in range(20))
    stored += "def g20(x) = exp(x)\n"
    assert "1,000 statements" in fault(stored + "attention f { rank i: key s = g0(exp(i)) out s }").message


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.attn"
    path.write_bytes(b"attention f {\n  # \xff\n}")
    with pytest.raises(SpecError, match="byte 18 is not UTF-8") as caught:
        dsl.read_spec(path)
    assert (caught.value.line, caught.value.column) == (2, 5)
    path.write_bytes(b" " * 1_000_001)
    with pytest.raises(SpecError, match="at most 1,000,000"):
        dsl.read_spec(path)
