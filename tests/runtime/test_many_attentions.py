"""Ever new attentions, called and dropped: what the process keeps of them does not grow with their number."""

from __future__ import annotations

import gc
import linecache
import sys
from collections.abc import Iterator, Sized
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import einfuse
from einfuse.flex import assemble, flex_attention
from einfuse.ir.text import parse
from einfuse.runtime import ops, transforms
from einfuse.runtime.recent import Living, Recent

SPEC = """cascade numbered over b, h {
  rank b: batch = B
  rank h: head = H
  rank i: query = Nq
  rank j: key = Nk
  rank d: feature = D
  rank e: feature = E
  in q[B, H, Nq, D]: float
  in k[B, H, Nk, D]: float
  in v[B, H, Nk, E]: float
  s[i, j] = sum[d] q[b, h, i, d] * k[b, h, j, d] * NUMBER
  p[i, e] = sum[j] s[i, j] * v[b, h, j, e] where j <= i + 1
  out p
}"""


def attention(n: int) -> einfuse.Attention:
    """One of many, by its number."""
    return einfuse.Attention(parse(SPEC.replace("NUMBER", f"{n}.5")), "torch")


def unbounded() -> Iterator[tuple[str, int]]:
    """Every container and cache of our modules that has no bound of its own, and those of Python that hold modules and texts."""
    yield "sys.modules", len(sys.modules)
    yield "linecache.cache", len(linecache.cache)
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "einfuse":
            for attribute, x in list(vars(module).items()):
                cached = getattr(x, "cache_info", None)
                if cached is not None and cached().maxsize is None:
                    yield f"{name}.{attribute}", cached().currsize
                elif isinstance(x, Sized) and not isinstance(x, Recent | type):
                    yield f"{name}.{attribute}", len(x)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # by torch.func.jvp itself
def test_no_container_of_the_process_grows_with_attentions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds the last ones is bounded; here they are few, so that all that hangs on others has to go."""
    monkeypatch.setattr(ops, "_PROGRAMS", Living(2))
    monkeypatch.setattr(assemble, "_COMPILED", Recent(2))
    x = torch.randn(1, 1, 3, 4, requires_grad=True)

    def use(n: int) -> None:
        one = attention(n)
        torch.autograd.grad(one(x, x, x).sum(), x)  # type: ignore[union-attr]
        torch.func.jvp(lambda q: one(q, x, x), (x,), (x,))
        torch.func.vmap(lambda q: one(q, q, q))(x[None].detach().expand(2, -1, -1, -1, -1))
        flex_attention(x, x, x, score_mod=lambda s, b, h, i, j: s * n)
        one.with_backend("triton")(x.detach(), x, x)

    def sizes(numbers: range) -> dict[str, int]:
        for n in numbers:
            use(n)
        transforms.tangent_of.cache_clear()
        gc.collect()
        return dict(unbounded())

    before = sizes(range(2))
    after = sizes(range(2, 6))
    grown = {n: (before.get(n), size) for n, size in after.items() if size > before.get(n, 0) + 2}
    assert not grown


def test_programs_live_as_long_as_their_attentions(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 4
    monkeypatch.setattr(ops, "_PROGRAMS", Living(most))  # attentions of other tests may be alive
    held = attention(0)
    cascade = held.cascade
    for n in range(2 * most):
        ops.register(replace(cascade, name=f"other{n}"), False, False)
    gc.collect()
    assert len(ops._PROGRAMS) <= most + 1
    assert ops.Call(held.text, "", False, False, None, None).program is held.program
    text = held.text
    del held
    for n in range(most):
        ops.register(replace(cascade, name=f"another{n}"), False, False)
    gc.collect()
    assert len(ops._PROGRAMS) <= most
    assert ops.Call(text, "", False, False, None, None).program.cascade == cascade  # made again from its text


def test_what_something_holds_is_found_and_what_nothing_holds_is_not() -> None:
    class Thing:
        pass

    living: Living[int, Thing] = Living(2)
    kept = living.made(0, Thing)
    for n in range(1, 9):
        living.made(n, Thing)
    assert len(living) == 3
    assert living.made(0, Thing) is kept
    assert living.made(8, lambda: kept) is not kept


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_compiled_kernels_are_unloaded() -> None:
    """A specification's kernel is loaded by every copy of it that is built: 4 of them, one after the other."""

    def loaded() -> int:
        gc.collect()
        return Path("/proc/self/maps").read_text().count("memfd:einfuse")

    x = torch.randn(1, 1, 3, 4)

    def use() -> None:
        one = attention(0).with_backend("cpu")
        one.program.built.clear()
        one(x, x, x)
        one.program.built.clear()

    use()
    del x.grad
    before = loaded()
    for _ in range(4):
        use()
    assert loaded() <= before
