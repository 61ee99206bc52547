"""Records: what the compiler derives goes through text and comes back the same, and a text can make nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

import einfuse
from einfuse.codegen.plan import Const, Value
from einfuse.codegen.plan.scan import ScanPlan
from einfuse.ir import Expr, Span, const
from einfuse.ir.derivation import Derivation
from einfuse.runtime import records
from einfuse.runtime.backends import BACKENDS
from einfuse.runtime.scan import ScanProgram
from einfuse.runtime.specs import library


def there_and_back(value: object) -> object:
    found = records.loads(records.dumps(value))
    assert found == value
    assert repr(found) == repr(value)  # 1, 1.0 and True are equal, and so are 0.0 and -0.0
    return found


@pytest.mark.parametrize(
    "value",
    [
        None,
        (),
        (1, 1.0, True, "1", -0.0, 0.0, math.inf, -math.inf, 2**80, 5e-324, 0.1),
        [[1], [1], {"a": (1,), "b": [2]}],
        frozenset({"k", "v"}),
        'line\nend "quoted" é \ud800 \0',
        Const(Value("x", ("i",), "float"), -math.inf),
        Expr("load", (Expr("index", (), "i"),), "q", Span("a.attn", 3, 4, 5)),
    ],
    ids=["none", "empty", "numbers", "lists", "set", "text", "operation", "place"],
)
def test_there_and_back(value: object) -> None:
    there_and_back(value)


def test_places_in_the_text_are_kept() -> None:
    """They take no part in comparison, and an error needs them."""
    pair = (Expr("const", (), 1, Span("a", 1, 1)), Expr("const", (), 1, Span("a", 2, 7)), const(1))
    found = records.loads(records.dumps(pair))
    assert [x.loc for x in found] == [Span("a", 1, 1), Span("a", 2, 7), None]


def test_equal_parts_stand_once_and_lists_are_apart() -> None:
    e = const(1.5)
    for _ in range(8):
        e = einfuse.ir.call("+", e, Expr("max", (e, e)))  # a tree of 3 ** 8 leaves
    assert len(records.dumps(e)) < 10_000
    assert records.loads(records.dumps(e)).op == "+"
    a, b = records.loads(records.dumps([[], []]))
    assert a is not b
    one, other = records.loads(records.dumps([Derivation("j"), Derivation("j")]))
    assert one is not other


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b"[1",
        b"\xff\xfe",
        b'[{"a":1}]',
        b'[["tuple",0]]',
        b'["x",["tuple","x"]]',
        b'[1,["dict",0]]',
        b'[["os:system"]]',
        b'["true",["os:system",0]]',
        b'[["ir.nodes:Literal"]]',
        b'[["ir.nodes:dataclass"]]',
        b'[["ir.nodes:Span.__init__"]]',
        b'[["codegen.scan.ladder:Layout"]]',
        b'[["runtime.cache:Entry"]]',
        b'[["ir.nodes:Span"]]',
        b"[[[]]]",
        b"[" * 100_000,
    ],
    ids=lambda x: repr(x[:30]),
)
def test_what_is_no_record_is_refused(text: bytes) -> None:
    with pytest.raises(records.RecordError):
        records.loads(text)


def test_what_is_no_plain_data_is_not_written() -> None:
    @dataclass(frozen=True)
    class Other:
        x: int = 1

    for value in (Other(), object(), torch.float32, print, {1, 2}):
        with pytest.raises(AssertionError, match="is no plain record"):
            records.dumps(value)


@pytest.mark.parametrize("name", ["alibi_window", "gated_delta", "topk", "paged"])
def test_what_a_spec_becomes(name: str) -> None:
    _there_and_back(name)


@pytest.mark.slow
def test_what_every_tenth_spec_becomes() -> None:
    for name in sorted(library())[::10]:
        _there_and_back(name)


def _there_and_back(name: str) -> None:
    """Its cascades, backward, split and plans."""
    whole = einfuse.compile(name)
    there_and_back(whole.cascade)
    reader = whole.selection.rest if whole.selection else whole  # what reads the lists of a choice may be several kernels
    for attention in reader.stages or (reader,):
        program = attention.program
        wanted = tuple(t.name for t in program.cascade.inputs if t.dtype == "float" and not t.param)
        if isinstance(program, ScanProgram):
            there_and_back(program.reverse(wanted))
        else:
            there_and_back(program.backward_of(wanted))
            there_and_back(program.halves.split if program.halves else None)
        there_and_back([c.plan for c in attention.candidates("cpu", torch.float32, True, {})])


def test_the_pieces_of_a_scan() -> None:
    """What is kept of a scan for each back end, texts included."""
    (plan,) = [c.plan for c in einfuse.compile("gated_delta").candidates("cpu", torch.float32, False, {})]
    assert isinstance(plan, ScanPlan)
    for backend in (b for name, b in BACKENDS.items() if name != "pallas"):  # it refuses scans
        pieces = backend.pieces(plan, 2)
        found = records.loads(records.dumps(pieces))
        assert [(p.plan, p.source, p.options) for p in found] == [(p.plan, p.source, p.options) for p in pieces]
