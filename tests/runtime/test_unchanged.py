"""A tensor is known again by itself or as the same view of the same memory, until it is written to."""

import pytest
import torch

from einfuse.runtime.unchanged import Unchanged


def of(*tensors: torch.Tensor) -> Unchanged:
    found = Unchanged.of(tensors)
    assert found is not None
    return found


@pytest.mark.parametrize("grad", [True, False])
def test_the_same_view_made_anew(grad: bool) -> None:
    doc = torch.arange(12)
    with torch.set_grad_enabled(grad):
        seen = of(doc[None], doc)
        assert seen.are([doc[None], doc])
        assert not seen.are([doc[None, 1:], doc])
        assert not seen.are([doc.view(3, 4), doc])
        assert not seen.are([doc.view(torch.float64)[None], doc])
        doc[None][0, 3] = 7
        assert not seen.are([doc[None], doc])


def test_views_of_views_are_views_of_the_first() -> None:
    doc = torch.arange(12)
    assert of(doc[2:][None]).are([doc[1:][1:][None]])


def test_equal_values_elsewhere_are_another_tensor() -> None:
    doc = torch.arange(12)
    assert not of(doc[None]).are([doc.clone()[None]])


def test_memory_that_died_is_not_known() -> None:
    doc = torch.arange(12)
    seen = of(doc[None])
    del doc
    assert not seen.are([torch.arange(12)[None]])


def test_what_counts_no_versions_is_not_held() -> None:
    with torch.inference_mode():
        doc = torch.arange(12)
    assert Unchanged.of([doc]) is None
