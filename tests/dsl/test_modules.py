"""Definitions in files of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from einfuse import dsl
from einfuse.ir import SpecError
from einfuse.ir.text import show_body

USE = "use {}\nattention f {{ rank i: query; rank j: key\n s = i * j + 0.5 where {}\n out s }}"


def test_names_with_and_without_their_module(tmp_path: Path) -> None:
    (tmp_path / "mine.attn").write_text("def near[i, j](w) = close[i, j](w)\ndef close[i, j](w) = abs(i - j) < w")
    for use, where in (("mine", "mine.near[i, j](4)"), ("mine.near", "near[i, j](4)")):
        c = dsl.compile_text(USE.format(use, where), search=(tmp_path,))
        assert show_body(c) == "  s[i, j] = i * j + 0.5 where abs(i - j) < 4"


def test_a_module_sees_what_it_uses_but_does_not_hand_it_on(tmp_path: Path) -> None:
    (tmp_path / "inner.attn").write_text("def low(x) = x < 3")
    (tmp_path / "outer.attn").write_text("use inner\ndef both(x, y) = inner.low(x) and inner.low(y)")
    c = dsl.compile_text(USE.format("outer", "outer.both(i, j)"), search=(tmp_path,))
    assert show_body(c).endswith("where i < 3 and j < 3")
    with pytest.raises(SpecError, match=r"`inner\.low` is not known"):
        dsl.compile_text(USE.format("outer", "inner.low(i)"), search=(tmp_path,))


def test_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.attn").write_text("use b\ndef x(i) = i < 3")
    (tmp_path / "b.attn").write_text("use a\ndef y(i) = i < 3")
    with pytest.raises(SpecError, match="a -> b -> a use each other in a circle"):
        dsl.compile_text(USE.format("a", "a.x(i)"), search=(tmp_path,))


def test_a_fault_of_a_module_shows_the_modules_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.attn"
    path.write_text("def x(i) = \n")
    with pytest.raises(SpecError) as caught:
        dsl.compile_text(USE.format("broken", "broken.x(i)"), search=(tmp_path,))
    assert caught.value.loc is not None
    assert caught.value.loc.file == str(path)
    path.write_text("def x(i) = i < 3\ndef x(i) = i < 4\n")
    with pytest.raises(SpecError, match="`x` is defined twice") as caught:
        dsl.compile_text(USE.format("broken", "broken.x(i)"), search=(tmp_path,))
    assert "def x(i) = i < 4" in str(caught.value)


def test_own_definitions_come_before_the_prelude() -> None:
    c = dsl.compile_text("def relu(x) = max(x, 1)\nattention f { rank i: query  s = relu(i) + 0.5  out s }")
    assert show_body(c) == "  s[i] = max(i, 1) + 0.5"


def test_the_same_name_twice() -> None:
    with pytest.raises(SpecError, match="`causal` is defined twice"):
        dsl.compile_text("use masks.causal\ndef causal[i, j] = j < i\nattention f { rank i: key s = i out s }")
    with pytest.raises(SpecError, match="`causal` is defined twice"):
        dsl.compile_text("use masks.causal use masks.causal attention f { rank i: key s = i out s }")


ARGUMENTS = {
    "doc": "doc",
    "real": "real",
    "w": "3",
    "n": "2",
    "D": "D",
    "base": "2.0",
    "t": "0.5",
    "lo": "0",
    "hi": "1",
    "cap": "5",
    "p": "4",
    "k": "3",
    "mass": "0.5",
    "steps": "3",
}


@pytest.mark.parametrize("path", sorted((Path(dsl.__file__).parent).glob("*.attn")), ids=lambda p: p.stem)
def test_every_shipped_definition_elaborates(path: Path) -> None:
    module = dsl.parse(path.read_text(encoding="utf-8"), path.name)
    assert module.doc
    masks = path.stem == "masks"
    for d in module.definitions:
        ranks = [r.text for r in d.ranks]
        operand = "s" if "j" in ranks or not ranks else "q"
        args = [ARGUMENTS.get(p.text, operand) for p in d.params]
        call = (f"masks.{d.name}" if masks else d.name.text) + (f"[{', '.join(ranks)}]" if ranks else "")
        call += f"({', '.join(args)})" if args else ""
        text = ("use masks\n" if masks else "") + "attention f over b { rank i: query; rank j: key; rank d: feature\n"
        text += "in s[b, i, j] in q[b, i, d] in doc[b, N]: int in real[b, j]: bool\n"
        text += f"x = {f'int({call})' if masks else call} + s * sum[d](q)\n out x }}"
        assert dsl.compile_text(text).outs == ("x",), d.name
