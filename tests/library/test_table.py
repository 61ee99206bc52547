"""library/README.md says what the library is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from torch import nn

import einfuse
from einfuse.ir.text import show
from einfuse.library import catalogue, layers, table, tested

BARE = {"Attending", "SkippingTokens", "TransformerBlock", "TripletAttention"}
"""The base class of all, a way around any module, a block around any layer, and a gate of convolutions in plain torch."""
TORCH = ("modulating", "spectral")
"""Files of layers that are torch's: convolutions, transforms and gates."""
README = Path(table.__file__).resolve().parent / "README.md"


@pytest.mark.slow
def test_the_table_is_the_one_that_would_be_written() -> None:
    assert table.table() == README.read_text(encoding="utf-8"), "run `python -m einfuse.library.table`"


def test_every_spec_and_every_layer_is_in_it() -> None:
    text = README.read_text(encoding="utf-8")
    for s in einfuse.list_specs():
        assert f"| [{s.name}]({s.path.removeprefix('library/')}) |" in text, "run `python -m einfuse.library.table`"
        assert (README.parents[1] / s.path).is_file()
    public = {n for n, x in vars(layers).items() if inspect.isclass(x) and issubclass(x, nn.Module)}
    named = set(re.findall(r"\w+", text))
    built_on = table.built_on()
    bare = {n for n in public if not built_on[n]}  # these name no spec: a layer that they are made of does
    assert public - bare | {n for m in catalogue.mechanisms() for n in m.layers} <= named
    for n in bare - BARE:
        if vars(layers)[n].__module__.rpartition(".")[2] in TORCH:
            continue
        words = set(re.findall(r"\w+", inspect.getsource(getattr(layers, n))))
        assert words & (set(dir(layers)) - {n}), f"{n} is built on no spec and on no other layer"


def rows() -> list[list[str]]:
    """The cells of every row, in the order of the columns."""
    lines = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| [")]
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_no_cell_is_blank() -> None:
    columns = table.COLUMNS.split(" | ")
    assert len(rows()) == len(einfuse.list_specs()) >= 120
    assert all(len(r) == len(columns) and all(r) for r in rows())
    for sign in {c for r in rows() for c in r} & {"-", "none"}:
        assert f"`{sign}`" in table.HEAD, "a cell that says nothing has its reason in the head"
    assert [r[0] for r in rows() if r[columns.index("formula")] == "none"] == []


def meaning(name: str) -> str:
    """What a spec computes, whatever it calls itself, its inputs, statements and numbers that a call may set."""
    cascade = einfuse.compile(name).cascade
    text = "\n".join(line for line in show(cascade).splitlines()[1:] if not line.startswith("  rank"))
    text = re.sub(r"(  param \w+: \w+) = .*", r"\1", text)
    names: dict[str, str] = {}
    own = [t.name for t in cascade.inputs] + [x.target for x in cascade.einsums]
    for word in re.findall(r"[A-Za-z_]\w*", text):
        if word in own:
            names.setdefault(word, f"n{len(names)}")
    return re.sub(r"[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), text)


@pytest.mark.slow
def test_no_two_specs_say_the_same() -> None:
    """Those with optional inputs apart: `cross` is `full` and `padding` in one."""
    seen: dict[str, str] = {}
    for s in einfuse.list_specs():
        if einfuse.compile(s.name).optional:
            continue
        other = seen.setdefault(meaning(s.name), s.name)
        assert other == s.name, f"{other} and {s.name} are one mechanism: keep one of them"


def test_known_rows() -> None:
    columns = table.COLUMNS.split(" | ")
    cells = {r[0].split("]")[0][1:]: dict(zip(columns, r, strict=True)) for r in rows()}
    assert (cells["full"]["passes"], cells["full"]["backward"], cells["full"]["mask"]) == ("3 -> 1", "3", "-")
    assert cells["causal"]["mask"] == "formula"
    assert cells["document"]["mask"] == "data"
    assert cells["retention"]["linear form"] == "scan"
    assert cells["taylor2"]["linear form"] == "rank D \\* (D // 2 + 1) + D + 1, a scan"
    assert cells["gat"]["layers, models"] == "GraphAttention"
    assert cells["gat"]["formula"] == "[global_graph_series](../tests/library/test_global_graph_series.py)"
    assert "[geometry](../tests/test_geometry.py)" in cells["swin"]["formula"]


def test_what_tests_a_spec_is_told_from_their_sources() -> None:
    found = tested.tested({"swin", "retention", "gat", "nothing"}, {"GraphAttention": {"gat"}})
    assert found["swin"] == {"test_geometry.py"}
    assert "helpers/recurrences.py" in found["retention"]
    assert found["gat"] == {"library/test_global_graph_series.py"}
    assert found["nothing"] == set()
