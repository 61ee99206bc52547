"""Memory of outputs: what is asked of the system for large ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from einfuse.runtime.memory import HUGE, LARGE, empty, lasting
from einfuse.runtime.outputs import Output

CPU = torch.device("cpu")
MAPS = Path("/proc/self/smaps")


def flags(address: int) -> set[str]:
    """What the kernel of the system knows about the mapping that holds an address."""
    for found in re.finditer(r"^([0-9a-f]+)-([0-9a-f]+) (?:.|\n)*?^VmFlags: (.*)$", MAPS.read_text(), re.MULTILINE):
        if int(found[1], 16) <= address < int(found[2], 16):
            return set(found[3].split())
    raise AssertionError("no mapping holds the address")


@pytest.mark.skipif(not MAPS.exists() or not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no large pages here")
@pytest.mark.parametrize(("numbers", "asked"), [(4 * LARGE, True), (64, False)])
def test_large_pages_are_asked_for_where_they_pay(numbers: int, asked: bool) -> None:
    x = empty((numbers // 4, 4), torch.float32, CPU)
    assert (x.shape, x.dtype) == ((numbers // 4, 4), torch.float32)
    assert ("hg" in flags(x.data_ptr() + x.nbytes // 2)) == asked


@pytest.mark.skipif(not MAPS.exists() or not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no large pages here")
@pytest.mark.parametrize(("numbers", "asked"), [(HUGE, True), (64, False)])
def test_what_stays_is_zeros_in_large_pages(numbers: int, asked: bool) -> None:
    x = lasting((numbers // 4 + 1, 4), torch.bfloat16, CPU)
    assert (x.shape, x.dtype) == ((numbers // 4 + 1, 4), torch.bfloat16)
    assert not x.count_nonzero()
    assert ("hg" in flags(x.data_ptr() + x.nbytes // 2)) == asked
    assert x[-1].fill_(1).sum() == 4  # it is ours to write to


def test_a_fake_tensor_has_no_memory_to_ask_for() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert empty((LARGE,), torch.float32, CPU).shape == (LARGE,)


@pytest.mark.parametrize("shape", [(), (3,), (2, 0, 5), (0, 1), (1, 2, 3, 4), (LARGE // 4 + 1,)])
@pytest.mark.parametrize("strides", ["contiguous", "turned"])
@pytest.mark.parametrize("cleared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_what_is_made_ready_makes_the_same(shape: tuple[int, ...], strides: str, cleared: bool, dtype: torch.dtype) -> None:
    turned = torch.empty(shape[::-1], device="meta").permute(tuple(range(len(shape)))[::-1])
    given = turned.stride() if strides == "turned" else None
    output = Output(shape, dtype, cleared, given, () if given is not None else tuple(f"N{n}" for n in range(len(shape))))
    several: tuple[dict[int | str, int], ...] = ({}, {f"N{n}": extent + 1 for n, extent in enumerate(shape)})
    for sizes in several:
        make, right = output.maker(CPU, sizes), output.materialised(CPU, sizes)
        made = [make(), make()]
        for x in made:
            assert (x.shape, x.stride(), x.dtype, x.device) == (right.shape, right.stride(), right.dtype, right.device)
            assert not cleared or not x.count_nonzero()
        assert not right.numel() or made[0].data_ptr() != made[1].data_ptr()
        with torch.inference_mode():
            assert make().is_inference()
