"""Any spec from a cache: the interpreter on pages beside the interpreter on the tokens of each sequence, side by side."""

from __future__ import annotations

import pytest
import torch
from caches import Case
from hypothesis import HealthCheck, assume, given, note, settings

import einfuse
from einfuse.dsl import compile_text
from einfuse.ir import Cascade, SpecError, interpret
from einfuse.ir.passes import cache
from einfuse.ir.verify import verify
from einfuse.runtime import binding
from einfuse.testing import selections, specs

HEAD = """attention mine over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
"""


def check(cascade: Cascade, slots: bool = False, keys: str = "") -> None:
    found = cache.run(cascade, slots, keys)
    verify(found.cascade)
    Case.of(cascade, found).check()


def test_every_spec_of_the_library_is_read_from_pages_or_refused_by_line() -> None:
    read, refused = [], {}
    for spec in einfuse.list_specs():
        cascade = einfuse.compile(spec.name).cascade
        try:
            found = cache.run(cascade)
        except SpecError as e:
            refused[spec.name] = e
            continue
        verify(found.cascade)
        Case.of(cascade, found).check()
        read.append(spec.name)
    print(f"{len(read)} specs are read from pages, {len(refused)} are refused")
    assert len(read) >= 150
    assert all(e.line for e in refused.values())
    assert {"causal", "alibi", "document", "sink", "streaming", "bias", "padding", "entmax15", "topk", "moba", "rope"} <= set(
        read
    )


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(specs())
def test_specs_drawn_at_random_are_read_from_pages(text: str) -> None:
    _drawn(text, False)


@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(selections())
def test_choices_drawn_at_random_are_read_from_slots(text: str) -> None:
    _drawn(text, True)


def _drawn(text: str, slots: bool) -> None:
    note(text)
    try:
        cascade = compile_text(text)
        cache.run(cascade, slots)
    except SpecError:
        assume(False)
    check(cascade, slots)


@pytest.mark.parametrize("name", ["causal", "document", "two_sources"])
def test_slots_are_pages_of_one_token(name: str) -> None:
    check(einfuse.compile(name).cascade, slots=True)


def test_a_read_of_another_key_follows_its_page() -> None:
    before = "  s = sum[d](q * (k + k[b, h // group, max(j - 1, 0), d])) where j <= i\n"
    shifted = HEAD + before + "  o[i, e] = sum[j](softmax[j](s) * v)\n  out o\n}"
    check(compile_text(shifted))


def test_tables_by_sizes_and_positions_are_those_of_a_sequence() -> None:
    text = HEAD + "  in far[j]\n  in near[i]\n  s = sum[d](q * k) + far * near * i / Nk where j >= i - Nq // 2\n"
    check(compile_text(text + "  o[i, e] = sum[j](softmax[j](s) * v)\n  out o\n}"))


def test_the_librarys_paged_is_causal_from_pages() -> None:
    paged, causal = einfuse.compile("paged").cascade, einfuse.compile("causal").cascade
    case = Case.of(causal, cache.run(causal))
    given = case.cached()
    sizes = binding.sizes(paged, {n: x for n, x in given.items() if isinstance(x, torch.Tensor)})
    theirs = interpret(paged, given, sizes)["o"]  # type: ignore[arg-type]  # no symbols here
    torch.testing.assert_close(theirs, case.outputs()["o"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("body", "line", "reason"),
    [
        (
            "  s = sum[d](q * k)\n  m[j] = max[i](s)\n  o[i, e] = sum[j](exp(s - m) * v)",
            7,
            "m reduces over i, and a cache has no rows",
        ),
        (
            "  n[i] = sum[d](q * q)\n  s = sum[d](q * k) - n[j]\n  o[i, e] = sum[j](softmax[j](s) * v)",
            7,
            "reads n of another row",
        ),
        (
            "  s = sum[d](q * k[B - 1 - b, h // group, j, d])\n  o[i, e] = sum[j](softmax[j](s) * v)",
            6,
            "reads k of another sequence",
        ),
        ("  s = sum[d](q * k)\n  o[j, e] = max[i](s) * v", 7, "the output o has no row of i"),
    ],
)
def test_what_cannot_be_is_refused_by_its_line(body: str, line: int, reason: str) -> None:
    with pytest.raises(SpecError, match=reason) as refused:
        cache.run(compile_text(HEAD + body + "\n  out o\n}"))
    assert refused.value.line == line


def test_scans_and_unnamed_sizes_are_refused() -> None:
    with pytest.raises(SpecError, match="delta cannot read its keys from a cache: a scan has states"):
        cache.run(einfuse.compile("delta").cascade)
    with pytest.raises(SpecError, match="one size of a rank of kind key was expected, found none"):
        cache.run(einfuse.compile("quest").cascade)
