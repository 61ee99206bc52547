"""Plans: rows of several sequences against the spec on each sequence alone, the same launches for all values, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caches import BATCH, LENGTHS, TABLE, Case, P
from narrowed import only
from noting import noting
from torch.utils._python_dispatch import TorchDispatchMode

import einfuse
from einfuse import serving
from einfuse.ir import SpecError
from einfuse.ir import expr as ex
from einfuse.ir.passes import cache
from einfuse.runtime.backends import BackendName
from einfuse.runtime.launch import Launch

TREE = """attention tree over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
  in past[b]: int
  in tree[b, i, R]: bool
  s = sum[d](q * k) / sqrt(D) where j < past or tree[b, i, j - past]
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}"""


def planned(
    attention: einfuse.Attention, rows: tuple[int, int], total: int = 7, seed: int = 0, **options: Any
) -> tuple[Case, serving.Plan, torch.Tensor, dict[str, torch.Tensor]]:
    """A case, its plan, updated to the last rows of both sequences, the starts and what holds rows."""
    found = cache.run(attention.cascade)
    case = Case.of(attention.cascade, found, seed)
    given = case.cached()
    page, length = given.pop(found.page), given.pop(found.length)
    held = {n: given.pop(n) for n in found.held}
    kept = serving.Cache(held, page, length)  # type: ignore[arg-type]  # tensors, all of them
    own = {}
    for n, at in found.own.items():
        given.pop(n)
        x, batch = case.given[n], attention.cascade.input(n).axes.index(ex.size(found.batch.size))
        assert isinstance(x, torch.Tensor)
        each = [x.select(batch, b).movedim(at - (batch < at), 0)[LENGTHS[b] - r : LENGTHS[b]] for b, r in enumerate(rows)]
        own[n] = torch.cat([*each, torch.zeros(total - sum(rows), *each[0].shape[1:], dtype=x.dtype)])
    plan = serving.plan(attention, kept, **given, **{n: torch.zeros_like(x) for n, x in own.items()}, **options)  # type: ignore[arg-type]
    starts = torch.tensor([0, rows[0], sum(rows)])
    plan.update(starts)
    return case, plan, starts, own


def agree(case: Case, outs: Any, starts: torch.Tensor, rows: tuple[int, int]) -> None:
    """Every sequence as it is alone."""
    found = outs if isinstance(outs, tuple) else (outs,)
    own = {x.target: [*case.cascade.over, *x.ranks] for x in case.cascade.body}  # type: ignore[union-attr]  # no scans
    for b in range(BATCH):
        for (n, truth), mine in zip(case.contiguous(b, rows[b]).items(), found, strict=True):
            left = [r for r in own[n] if r != case.found.batch.name]
            wanted = truth.movedim(left.index(case.found.rows.name), 0)
            torch.testing.assert_close(mine[starts[b] : starts[b + 1]], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", ["causal", "alibi", "document", "sink", "streaming", "rope"])
def test_rows_of_several_sequences_are_each_what_they_are_alone(name: str, parts: int) -> None:
    rows = (5, 1)  # in tiles of 2, and one alone
    case, plan, starts, own = planned(einfuse.compile(name, backend="torch"), rows, parts=parts, tiles=(1, 2))
    assert plan.launches == 2 * (1 if parts == 1 else 2)
    agree(case, plan.run(*(own[n] for n in plan.rows)), starts, rows)


@pytest.mark.parametrize("name", ["entmax15", "lse", "differential", "talking_heads"])
def test_several_passes_outputs_and_heads_of_their_own(name: str) -> None:
    rows = (2, 5)
    case, plan, starts, own = planned(einfuse.compile(name, backend="torch"), rows, tiles=(1, 4))
    agree(case, plan.run(*(own[n] for n in plan.rows)), starts, rows)


def test_a_tree_of_drafts_is_a_mask_of_the_rows() -> None:
    attention = einfuse.compile(TREE, backend="torch")
    rows = (3, 2)
    case, plan, starts, own = planned(attention, rows, tiles=(4,))
    past = torch.tensor(LENGTHS) - torch.tensor(rows)
    tree = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.bool)
    plan.given["past"].copy_(past)
    plan.run(own["q"], tree=torch.nn.functional.pad(tree, (0, plan.given["tree"].shape[1] - 3)))
    for b, n in enumerate(LENGTHS):
        q, k, v = (case.given[x][b : b + 1] for x in ("q", "k", "v"))  # type: ignore[index]  # tensors
        seen = torch.ones(n, n, dtype=torch.bool)
        seen[past[b] :, past[b] :] = tree[starts[b] : starts[b + 1], : rows[b]]
        k, v = (x[:, :, :n].repeat_interleave(2, 1) for x in (k, v))
        truth = torch.nn.functional.scaled_dot_product_attention(q[:, :, :n], k, v, attn_mask=seen)[0, :, past[b] :]
        torch.testing.assert_close(plan.out[0][starts[b] : starts[b + 1]], truth.transpose(0, 1), rtol=1e-9, atol=1e-9)


class Nothing(TorchDispatchMode):
    """No operation of torch at all: nothing is allocated, copied or read back."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} in a run")


def test_a_run_is_the_same_launches_for_all_values(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Any] = []
    real = Launch.__call__
    monkeypatch.setattr(Launch, "__call__", noting(launched, lambda self, *args: self, real))
    attention = einfuse.compile("causal", backend="cpu")
    case, plan, _, own = planned(attention, (5, 1), tiles=(1, 4))
    (q,) = own.values()
    plan.run(q)
    out, first = torch.empty_like(plan.out[0]), launched.copy()
    assert len(first) == plan.launches == 2
    bits = []
    for rows in ((5, 1), (0, 4), (1, 1), (2, 0)):
        at = torch.tensor([0, rows[0], sum(rows)])
        mine = torch.cat([q[:0], *(_rows(case, b, n) for b, n in enumerate(rows)), torch.zeros(7 - sum(rows), *q.shape[1:])])
        mine = mine.to(q.dtype)
        plan.update(at)
        launched.clear()
        with Nothing():  # type: ignore[no-untyped-call]  # torch does not type its modes
            found = plan.run(mine, out=out)
        assert launched == first
        assert found is out
        agree(case, out, at, rows)
        bits.append(out[at[0] : at[1]].clone())
    plan.update(torch.tensor([0, 5, 5]))
    assert torch.equal(only(plan.run(q))[:5], bits[0])  # the same bits, whoever else is there


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_run_takes_the_rows_that_there_are(backend: BackendName) -> None:
    case, plan, starts, own = planned(einfuse.compile("causal", backend=backend), (3, 1), tiles=(1, 4))
    (q,) = own.values()
    found = plan.run(q[:4].clone())
    assert isinstance(found, torch.Tensor)
    assert found.shape[0] == 4
    agree(case, found, starts, (3, 1))
    with pytest.raises(ValueError, match=r"q is \(7, 4, 4\) .* in this plan, or of 4 to 7 rows, found \(3, 4, 4\)"):
        plan.run(q[:3])


def _rows(case: Case, b: int, n: int) -> torch.Tensor:
    q = case.given["q"]
    assert isinstance(q, torch.Tensor)
    return q[b, :, LENGTHS[b] - n : LENGTHS[b]].transpose(0, 1)


@pytest.mark.parametrize("backend", [pytest.param("triton", marks=pytest.mark.slow)])
def test_kernels_of_gpus_do_the_same(backend: BackendName) -> None:
    rows = (5, 1)
    case, plan, starts, own = planned(einfuse.compile("causal", backend=backend), rows, tiles=(4,))
    agree(case, plan.run(*own.values()), starts, rows)


def test_tokens_are_appended_to_their_pages() -> None:
    attention = einfuse.compile("causal")
    kept = serving.Cache.empty(attention, pages=9, width=P, table=TABLE, batch=BATCH, k=(2, 4), v=(2, 6))
    assert (kept.tensors["k"].shape, kept.tensors["k"].stride(-3)) == ((9, P, 2, 4), 4)  # a head's rows of a page lie together
    kept.page.copy_(torch.tensor([[7, 2, 0, 5], [1, 6, 3, 4]]))
    kept.length.copy_(torch.tensor([5, 3]))
    k, v = torch.randn(6, 2, 4), torch.randn(6, 2, 6)
    kept.append(torch.tensor([0, 3, 4]), k=k, v=v)
    for x, new in (("k", k), ("v", v)):
        whole = kept.tensors[x]
        assert torch.equal(whole[[7, 2, 2], [2, 0, 1]], new[:3])  # tokens 2, 3 and 4, of the pages 7 and 2
        assert torch.equal(whole[1, 2], new[3])
        assert whole[:8].count_nonzero() == new[:4].numel()  # what belongs to none is in the last page
    kept.copy(2, 4)
    assert torch.equal(whole[4], whole[2])
    with pytest.raises(TypeError, match="causal: tokens bring k, v; found k"):
        serving.Cache.empty(attention, pages=9, width=P, table=TABLE, batch=BATCH, k=(2, 4))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("moba", "moba cannot be planned: it chooses what it reads"),
        ("delta", "delta cannot be planned: it is a scan"),
        ("linformer", "linformer cannot be planned: .* is complete only after a kernel over all tokens"),
    ],
)
def test_what_takes_more_than_one_kernel_is_refused(name: str, reason: str) -> None:
    with pytest.raises(SpecError, match=reason) as refused:
        serving.plan(einfuse.compile(name), None)  # type: ignore[arg-type]  # not looked at
    assert refused.value.line


def test_what_does_not_fit_is_named() -> None:
    _, plan, _, own = planned(einfuse.compile("causal", backend="torch"), (1, 1))
    with pytest.raises(
        ValueError, match=r"sequence 1 has 6 rows and 5 tokens; rows are the last tokens, of which there is room for 12"
    ):
        plan.update(torch.tensor([0, 1, 7]))
    with pytest.raises(ValueError, match="starts begin at 0 and end at 7 at most, found 0 and 8"):
        plan.update(torch.tensor([0, 8, 8]))
    with pytest.raises(ValueError, match=r"starts must have the shape \[3\], found \(2,\)"):
        plan.update(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"q is \(7, 4, 4\) torch.float64 in this plan, found \(7, 4, 4\) torch.float32"):
        plan.run(own["q"].float())
    with pytest.raises(ValueError, match="bias is no input in this plan"):
        plan.run(own["q"], bias=own["q"])
