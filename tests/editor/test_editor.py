"""What editors ask about a text, function by function."""

from __future__ import annotations

from pathlib import Path

import pytest

from einfuse import dsl
from einfuse._editor import inside, names
from einfuse._editor.document import Document
from einfuse._editor.faults import faults, quick_faults
from einfuse._editor.fixes import fix
from einfuse._editor.hover import hover
from einfuse.dsl import ast
from einfuse.dsl.modules import builtin
from einfuse.ir import Span

SPECS = sorted((Path(__file__).parents[2] / "library" / "specs").rglob("*.attn"))
TEXT = '''"""A window."""
def scaled[j](s, t) { m = max[j](s); p = exp(s * t - m * t); return p / sum[j](p) }

attention near(window: int = 64, act: enum(tanh, none) = none) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
  n = i - j
  s = sum[d](q * k) / sqrt(D) where 0 <= n < window
  o = sum[j](scaled[j](s, 2.0) * v)
  out o
}
'''
DOCUMENT = Document(TEXT)


def place(text: str, name: str, nth: int = 0) -> tuple[int, int]:
    """Line and column of the nth place where ``name`` stands in a text."""
    start = -1
    for _ in range(nth + 1):
        start = text.index(name, start + 1)
    return text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start)


def shown(text: str, span: Span) -> str:
    start = names.offset(text, span.line, span.column)
    return text[start : start + span.length]


# -- names ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "definition"),
    [
        ("s, 2.0", "s = sum[d]"),
        ("n < window", "n = i - j"),
        ("window\n", "window: int"),
        ("scaled[j](s, 2.0)", "scaled[j](s, t)"),
        ("p / sum", "p = exp"),
        ("t - m", "t) {"),
        ("D) where", "d, e: feature"),
        ("group, j, e", "group, j, d"),
        ("j, e]", "j: key"),
        ("none) over", "none) = "),
        ("o\n}", "o = sum"),
        ("b, h, i", "b, h {"),
    ],
)
def test_a_name_leads_to_its_definition(use: str, definition: str) -> None:
    found = names.at(DOCUMENT.names, *place(TEXT, use))
    assert found is not None
    assert found.target is not None
    assert (found.target.line, found.target.column) == place(TEXT, definition)


def test_every_place_of_a_name_is_found() -> None:
    assert DOCUMENT.module is not None
    found = names.references(DOCUMENT.module, *place(TEXT, "s, 2.0"))
    assert [shown(TEXT, x) for x in found] == ["s", "s"]
    assert found[0].line == place(TEXT, "s = sum[d]")[0]
    assert len(names.references(DOCUMENT.module, *place(TEXT, "j: key"))) == 6
    assert names.references(DOCUMENT.module, *place(TEXT, "sqrt")) == []


def test_every_place_holds_its_name() -> None:
    assert all(shown(TEXT, x.span).split(".")[-1] == x.key[2] for x in DOCUMENT.names)


def test_a_repeat_binds_names_of_its_own() -> None:
    text = """attention f over b {
  rank j: key
  in x[b, j]
  t = sum[j](x)
  u = repeat(3, t = t + 1.0, t * 0.5)
  out u
}"""
    found = Document(text)
    outer = names.at(found.names, *place(text, "t + 1.0"))
    inner = names.at(found.names, *place(text, "t * 0.5"))
    assert outer is not None
    assert inner is not None
    assert outer.target is not None
    assert inner.target is not None
    assert (outer.target.line, inner.target.line) == (4, 5)


def test_names_lead_across_files(tmp_path: Path) -> None:
    used, using = tmp_path / "shapes.attn", tmp_path / "spec.attn"
    used.write_text("def band(i, j, w) = abs(i - j) < w\n")
    using.write_text(
        "use shapes\nattention f over b {\n  rank i: query; rank j: key\n  in x[b, i, j]\n"
        "  o = sum[j](x where shapes.band(i, j, 3) or masks.causal(i, j))\n  out o\n}\n".replace(" or masks.causal(i, j)", "")
    )
    document = Document.at(using)
    found = names.at(document.names, *place(document.text, "shapes.band"))
    assert found is not None
    assert found.target == Span(str(used), 1, 5, 4)
    module = names.at(document.names, 1, 5)
    assert module is not None
    assert module.target == Span(str(used), 1, 1)
    home = Document.at(used)
    assert home.module is not None
    everywhere = names.references(home.module, 1, 5, home.search, [used, using])
    assert [(Path(x.file).name, x.line) for x in everywhere] == [("shapes.attn", 1), ("spec.attn", 5)]


def test_the_prelude_is_a_file(tmp_path: Path) -> None:
    text = TEXT.replace("scaled[j](s, 2.0)", "softmax[j](s)")
    found = names.at(Document(text).names, *place(text, "softmax"))
    assert found is not None
    assert found.target is not None
    assert "softmax" in Path(found.target.file).read_text().split("\n")[found.target.line - 1]


@pytest.mark.parametrize("path", SPECS[::9], ids=lambda p: p.stem)
def test_every_name_of_a_spec_has_a_meaning(path: Path) -> None:
    """But for what the language itself knows: its functions, kinds and types."""
    document = Document.at(path)
    assert document.module is not None
    found = {(x.span.line, x.span.column): x for x in document.names}
    assert len(found) == len(document.names), "a place has one meaning"
    for node, _ in ast.walk(document.module):
        own = {ast.RankLine: "kind", ast.Input: "type", ast.Param: "type"}.get(type(node), "")
        for child in ast.children(node):
            if isinstance(child, ast.Name) and child.loc is not None and child is not getattr(node, own, None):
                assert builtin(child.text) or (child.loc.line, child.loc.column) in found, child
    assert all(hover(document, x.span.line, x.span.column) is not None for x in document.names[:20])


# -- faults --------------------------------------------------------------------------------------------------------------------------


def test_a_good_text_has_no_fault() -> None:
    assert faults(TEXT) == []


def test_every_attention_says_its_first_fault() -> None:
    text = TEXT.replace("* v)", "* w)") + TEXT[TEXT.index("attention") :].replace("near", "far").replace("q * k", "q * kk")
    assert [(x.message, x.line) for x in quick_faults(text)] == [
        ("the name `w` is not known here", 11),
        ("the name `kk` is not known here", 20),
    ]


def test_passes_find_what_elaborating_does_not() -> None:
    text = """attention f over b {
  rank i: query; rank d: feature
  in k[b, i, d]
  scan i {
    state S[d] = S + k
    o = S * 2.0
  }
  u[d] = S * 2.0
  out o, u
}"""
    assert quick_faults(text) == []
    assert [(x.line, x.message) for x in faults(text)] == [(8, "u needs the final state, and no kernel runs after the scan")]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (TEXT.replace("* v)", "* vv)"), TEXT),
        (TEXT.replace("attention near", "atention near"), TEXT),
        (TEXT.replace("0 <= n < window", "n = window"), TEXT.replace("0 <= n < window", "n == window")),
        (TEXT.replace("sqrt(D)", "D ** 0.5"), TEXT.replace("sqrt(D)", "D ^ 0.5")),
        (TEXT.replace("0 <= n < window", "0 <= n && n < window"), TEXT.replace("0 <= n < window", "0 <= n and n < window")),
        (TEXT.replace("o = sum", "o[i] = sum"), TEXT.replace("o = sum", "o[i, e] = sum")),
    ],
)
def test_a_hint_mends_the_text(wrong: str, right: str) -> None:
    (error,) = quick_faults(wrong)
    found = fix(error, wrong)
    assert found is not None
    assert found.title == error.hint
    mended = wrong[: found.start] + found.text + wrong[found.stop :]
    assert " ".join(mended.split()) == " ".join(right.split())


def test_a_hint_that_leaves_something_open_changes_nothing() -> None:
    (error,) = quick_faults(TEXT.replace("i: query", "i: line"))
    assert fix(error, TEXT) is None


# -- what is shown -------------------------------------------------------------------------------------------------------------------


def test_ranks_that_are_not_written_are_shown() -> None:
    assert [(x.span.line, x.words) for x in inside.ranks(DOCUMENT)] == [(9, "[i, j]"), (10, "[i, j]"), (11, "[i, e]")]


def test_one_line_says_passes_and_tiles() -> None:
    (found,) = inside.lenses(DOCUMENT)
    live = 16 + 15  # 16 tiles of 64 on the diagonal, one beside each: i - j < 64
    assert found.words == f"3 passes -> 1 over j, {100 * live / 256:.2g} % of tiles live at 1024"
    assert shown(TEXT, found.span) == "near"


@pytest.mark.parametrize(
    ("at", "nth", "words"),
    [
        ("j: key", 0, ["rank j: key = Nk"]),
        ("h // group", 0, ["head, ambient"]),
        ("D)", 0, ["the size of `d`"]),
        ("k[b", 0, ["in k[b, h // group, j, d]: float"]),
        ("window\n", 0, ["window: int = 64", "a number of the call"]),
        ("none) over", 0, ["act: enum(tanh, none) = none", "known at compile time"]),
        ("group, j, d", 0, ["bound at the call"]),
        ("t) {", 0, ["of `def scaled`"]),
        ("scaled[j](s, 2.0)", 0, ["def scaled[j](s, t)"]),
        ("n < window", 0, ["n[i, j]: int"]),
        ("o = sum", 0, ["o[i, e]: float", "as elaborated", "after the passes", "proven"]),
    ],
)
def test_hovering_says_what_a_name_is(at: str, nth: int, words: list[str]) -> None:
    found = hover(DOCUMENT, *place(TEXT, at, nth))
    assert found is not None
    for w in words:
        assert w in found.words


def test_hovering_over_nothing_says_nothing() -> None:
    assert hover(DOCUMENT, 1, 1) is None
    assert hover(Document("attention"), 1, 3) is None


def test_a_scan_is_said_to_be_one() -> None:
    path = next(p for p in (Path(__file__).parents[2] / "library" / "specs").rglob("*.attn") if "scan i" in dsl.read_spec(p))
    assert inside.lenses(Document.at(path))[-1].words == "a scan along i"
