"""What cannot be sharded is refused when it is asked for, by the statement that stands in the way, before any process group is touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from devices import meeting, on_all, oracle

import einfuse
from einfuse.distributed import Sharded, shard
from einfuse.distributed.here import Axis
from einfuse.ir import SpecError


class Mesh:
    """A mesh of which nobody may ask more than its names."""

    mesh_dim_names = ("seq", "head")
    device_type = "cpu"

    def get_group(self, name: str) -> Any:
        raise AssertionError("a process group was touched")


TALK = """attention talk over b {
  rank h, g: head; rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, g, j, e]
  in mix[g, h]
  s[h, i, j] = sum[d](q * k)
  t[g, i, j] = sum[h](mix * s)
  o[g, i, e] = sum[j](softmax[j](t) * v)
  out o
}"""
GATE = """attention gate over b {
  rank i: query = N; rank e: feature
  in x[b, i, e]
  scan i {
    state S[e] = sigmoid(S) + x from 0
    o = S
  }
  out o
}"""
SHIFT = """attention shift over b {
  rank i: query = N; rank d: feature
  in x[b, i, d]
  n[i] = sum[d](x * x)
  o[i] = sum[d](x) / n[max(i - 1, 0)]
  out o
}"""


@pytest.mark.parametrize(
    ("text", "ranks", "message"),
    [
        (TALK, {"h": "head"}, r":8:\d+: talk cannot be sharded over `h`: t reduces over `h`"),
        (GATE, {"i": "seq"}, r":4:\d+: gate cannot be sharded over `i`: the points of `i` come in order"),
        (GATE, {"i": "seq"}, r"hint: .*the update of the state is not linear in it \(`sigmoid`\)"),
    ],
)
def test_the_message_has_the_line_and_the_reason(text: str, ranks: dict[str, str], message: str) -> None:
    with pytest.raises(SpecError) as error:
        shard(einfuse.compile(text), Mesh(), **ranks)  # type: ignore[arg-type]
    error.match(message)


def test_an_exchange_that_was_asked_for_is_the_one_that_is_refused() -> None:
    with pytest.raises(SpecError, match="entmax15 cannot be split: it takes"):
        shard(einfuse.compile("entmax15"), Mesh(), exchange="states", j="seq")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="causal is no scan over `i`"):
        shard(einfuse.compile("causal"), Mesh(), exchange="prefix", i="seq")  # type: ignore[arg-type]


def test_a_choice_is_refused_where_it_is_made() -> None:
    clusters = einfuse.compile("clusters")
    with pytest.raises(SpecError, match=r"clusters.attn:8:\d+: clusters cannot be sharded over `i`: qs reduces over `i`"):
        shard(clusters, Mesh(), exchange="columns", i="seq", j="seq")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"clusters.attn:8:\d+: clusters cannot be split: qs is chosen among all keys"):
        shard(clusters, Mesh(), exchange="rows", i="seq", j="seq")  # type: ignore[arg-type]


def test_names_are_looked_at_first() -> None:
    with pytest.raises(ValueError, match="rank i is to lie along 'sequence', and the mesh has the axes seq, head"):
        shard(einfuse.compile("causal"), Mesh(), i="sequence")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="causal has no rank x; it has b, d, e, h, i, j"):
        shard(einfuse.compile("causal"), Mesh(), x="seq")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="ambient ranks and others cannot lie along one axis, seq"):
        shard(einfuse.compile("causal"), Mesh(), h="seq", i="seq")  # type: ignore[arg-type]


def test_results_of_other_rows_are_handed_on_between_kernels() -> None:
    with pytest.raises(AssertionError, match="a process group was touched"):
        shard(einfuse.compile(SHIFT), Mesh(), i="seq")  # type: ignore[arg-type]


@pytest.mark.parametrize(("exchange", "ranks"), [("columns", ("i", "j")), ("heads", ("i", "j")), ("states", ("j",))])
def test_a_gradient_has_no_derivative(exchange: Any, ranks: tuple[str, ...]) -> None:
    """On every device, also that without rows, and before anything is exchanged."""
    meet = meeting(2)

    def device(rank: int) -> None:
        q = torch.randn(1, 2, 3 if ranks == ("j",) else 3 * rank, 4, requires_grad=True)
        k = torch.randn(1, 2, 3 * rank, 4, requires_grad=True)
        transports = {"seq": meet.of(rank)}
        sharded = Sharded(einfuse.compile("full"), (Axis("seq", ranks),), transports, exchange, evaluate=oracle)
        (g,) = torch.autograd.grad(sharded(q, k, k).sum(), q, create_graph=True)  # type: ignore[union-attr]  # one output
        with pytest.raises(
            NotImplementedError, match=r"full.*: the gradient of an attention over devices has no derivative; take it of"
        ):
            g.square().sum().backward()

    on_all(2, device)
