"""Stages as types: which class a cascade is of, what the constructors refuse, and that text, records and pickles give the same class back."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace

import corpus
import pytest

from einfuse.ir import Blocked, Cascade, Flat, Scan, SpecError, verify
from einfuse.ir.nodes import class_of
from einfuse.ir.passes import chunk, chunk_backward, infer_space, pipeline, registry
from einfuse.ir.passes.sequence import PIPELINE
from einfuse.ir.rewrite import flat, map_folds, prune
from einfuse.ir.text import parse, show
from einfuse.runtime import records

HEAD = "cascade c { rank i: query = N rank j: key = N rank d: feature = 4 in x[N, N]: float in y[N, 4]: float"
SUM, MASS = "o[i] = sum[j] x[i, j]", "fold j { state o[i] = sum x[i, j] }"
SCAN = "fold i { state S[d] = set S[d] + y[i, d] o[i] = sum[d] S[d] }"
BLOCKS = SCAN.replace("fold i", "fold i step 8")
WHOLE: dict[type[Cascade], str] = {
    Flat: SUM,
    Cascade: MASS,
    Scan: f"s[i] = y[i, 0] {SCAN}",
    Blocked: BLOCKS,
}


def made(body: str) -> Cascade:
    return parse(f"{HEAD} {body} out o }}")


def back_from_records(c: Cascade) -> Cascade:
    found = records.loads(records.dumps(c))
    assert isinstance(found, Cascade)
    return found


@pytest.mark.parametrize("held", WHOLE, ids=lambda held: held.__name__)
@pytest.mark.parametrize(
    "back",
    [lambda c: parse(show(c)), lambda c: pickle.loads(pickle.dumps(c)), back_from_records],
    ids=["text", "pickle", "record"],
)
def test_a_cascade_is_of_the_class_of_its_body(held: type[Cascade], back: Callable[[Cascade], Cascade]) -> None:
    c = made(WHOLE[held])
    assert type(c) is held
    assert type(back(c)) is held
    assert back(c) == c


@pytest.mark.parametrize("held", WHOLE, ids=lambda held: held.__name__)
@pytest.mark.parametrize("body", WHOLE.values(), ids=[x.__name__ for x in WHOLE])
def test_a_constructor_refuses_the_body_of_another_stage(held: type[Cascade], body: str) -> None:
    c, other = made(WHOLE[held]), made(body)
    if type(other) is held:
        assert replace(c, body=other.body) == other
        return
    with pytest.raises(AssertionError, match=f"c is made as {held.__name__}, and its body is that of {type(other).__name__}"):
        replace(c, body=other.body)
    moved = c.with_body(other.body)
    assert (type(moved), moved.body, moved.inputs) == (type(other), other.body, c.inputs)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"{SCAN} {SCAN.replace('S', 'T').replace('o[i]', 't[i]')}", "an attention has at most one scan"),
        (f"{SCAN} {MASS.replace('o[i]', 't[i]')}", "a scan stands beside no other fold"),
        (f"{BLOCKS} t[i] = o[i]", "a scan in blocks stands alone"),
    ],
)
def test_a_scan_is_the_only_fold(body: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        made(body)


def test_what_comes_in_blocks_without_a_state_is_still_blocked() -> None:
    """The gradient of what only reads states needs none of their adjoints."""
    text = """cascade c { rank i: query = N rank d: feature = 4 in q[N, 4]: float in k[N, 4]: float
      fold i { state S[d] = set S[d] + k[i, d] o[i, d] = q[i, d] * S[d] } out o }"""
    scan = infer_space.run(parse(text))
    assert isinstance(scan, Scan)
    blocked = chunk.run(scan)
    backward = chunk_backward.run(blocked, ["q"]).backward
    assert (type(blocked), type(backward)) == (Blocked, Blocked)
    assert not backward.fold.states
    verify.verify(backward, "blocked")


def test_a_record_of_another_stage_is_none() -> None:
    """The cache makes anew what does not read back."""
    text = records.dumps(made(SUM))
    assert b'"ir.nodes:Flat"' in text
    with pytest.raises(records.RecordError, match="c is made as Cascade, and its body is that of Flat"):
        records.loads(text.replace(b"ir.nodes:Flat", b"ir.nodes:Cascade"))


def test_statements_around_a_scan_are_told_apart() -> None:
    c = made(f"s[i] = y[i, 0] {SCAN} t[i] = o[i] + s[i]")
    assert isinstance(c, Scan)
    before, after = c.around(c.fold)
    assert ([x.target for x in before], [x.target for x in after]) == (["s"], ["t"])
    assert [x.target for x in c.einsums] == ["s", "t"]
    assert [y.target for y in c.fold.einsums + c.fold.states] == ["o", "S"]


def test_pruning_may_leave_no_scan() -> None:
    c = made(f"{SCAN} t[i] = y[i, 0]")
    assert type(prune(replace(c, outs=("t",)))) is Flat


def test_only_changed_folds_make_another_cascade() -> None:
    c = made(MASS)
    assert map_folds(c, lambda f: f) is c
    assert [f.step for f in map_folds(c, lambda f: replace(f, step=4)).folds] == [4]


def test_a_fold_is_refused_with_the_reason() -> None:
    c = made(SUM)
    assert flat(c, "no folds here") is c
    with pytest.raises(SpecError, match="no folds here"):
        flat(made(MASS), "no folds here")


def test_a_signature_is_what_the_registry_says() -> None:
    found = {p.name: p for p in (*PIPELINE, *registry.TRANSFORMS)}
    assert found["online_fuse"].requires == ("flat", "canonical")
    assert found["canonicalise"].ensures == ("flat", "canonical")
    assert (found["chunk"].takes, found["chunk"].ensures) == ("scan", ("blocked",))
    assert (found["chunk_backward"].takes, found["chunk_backward"].requires) == ("scan", ("blocked",))
    assert {p.name for p in found.values() if p.takes == "scan"} == {"chunk", "chunk_backward", "resume", "transition"}


@pytest.mark.parametrize("name", corpus.BODIES)
def test_the_pipeline_goes_through_the_stages(name: str) -> None:
    seen: list[tuple[str, Cascade]] = []
    pipeline.run(corpus.cascade(name), observe=lambda p, c: seen.append((p, c)))
    for p, c in seen:
        flat_still = p in ("build", "infer_space", "relocate", "canonicalise")
        assert isinstance(c, Flat) == (flat_still or not c.folds), p
        assert class_of(c.body) is type(c)
