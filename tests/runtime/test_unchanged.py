"""A tensor is known again by itself or as the same view of the same memory, until it is written to; one of few bytes by its values."""

from collections.abc import Callable

import pytest
import torch

from einfuse.runtime.unchanged import FEW, SMALL, Unchanged

LONG = FEW // 8 + 12
"""Whole numbers that are more than a few bytes."""


def of(*tensors: torch.Tensor) -> Unchanged:
    found = Unchanged.of(tensors)
    assert found is not None
    return found


@pytest.mark.parametrize("grad", [True, False])
def test_the_same_view_made_anew(grad: bool) -> None:
    doc = torch.arange(LONG)
    with torch.set_grad_enabled(grad):
        seen = of(doc[None], doc)
        assert seen.are([doc[None], doc])
        assert not seen.are([doc[None, 1:], doc])
        assert not seen.are([doc.view(4, -1), doc])
        assert not seen.are([doc.view(torch.float64)[None], doc])
        doc[None][0, 3] = 7
        assert not seen.are([doc[None], doc])


def test_views_of_views_are_views_of_the_first() -> None:
    doc = torch.arange(LONG)
    assert of(doc[2:][None]).are([doc[1:][1:][None]])


def test_equal_values_elsewhere_are_another_tensor() -> None:
    doc = torch.arange(LONG)
    assert not of(doc[None]).are([doc.clone()[None]])


def test_few_bytes_are_known_by_their_values() -> None:
    doc = torch.arange(12)
    seen, turned = of(doc[None]), of(doc.view(3, 4).T)
    assert seen.are([torch.arange(12)[None]])
    assert turned.are([doc.view(3, 4).T.clone()])
    assert not turned.are([doc.view(4, 3)])
    assert not seen.are([doc])
    assert not seen.are([doc[None].int()])
    assert not seen.are([torch.arange(1, 13)[None]])
    assert not seen.are([torch.arange(LONG)[None]])
    assert not of(torch.ones(4)).are([torch._neg_view(torch.ones(4))])


def test_memory_that_died_is_not_known() -> None:
    doc = torch.arange(LONG)
    seen = of(doc[None])
    del doc
    assert not seen.are([torch.arange(LONG)[None]])


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x[None, 1:],
        lambda x: x.view(3, 4).T,
        lambda x: x.view(3, 4)[:, :2],
        lambda x: x[3:6].expand(9, 3),
    ],
    ids=["whole", "part", "turned", "gaps", "spread"],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.bfloat16])
def test_what_is_written_behind_torch_is_seen_in_small_tensors(view: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    doc = (torch.arange(12) > 5).to(dtype)
    seen = of(view(doc))
    assert seen.are([view(doc)])
    doc.data[4] = 1
    assert not seen.are([view(doc)])
    seen = of(view(doc))
    doc.view(torch.uint8).numpy()[:] = 0
    assert not seen.are([view(doc)])


def test_large_tensors_are_written_behind_torch_when_the_user_says_so() -> None:
    doc = torch.zeros(SMALL + 1, dtype=torch.uint8)
    seen = of(doc)
    doc.numpy()[7] = 1
    assert seen.are([doc])
    torch.autograd.graph.increment_version(doc)
    assert not seen.are([doc])


def test_what_counts_no_versions_is_known_where_it_is_small() -> None:
    with torch.inference_mode():
        doc, large = torch.arange(12), torch.zeros(SMALL + 1, dtype=torch.uint8)
        seen = of(doc)
        assert seen.are([doc])
        doc[3] = 0
        assert not seen.are([doc])
    assert Unchanged.of([large]) is None
