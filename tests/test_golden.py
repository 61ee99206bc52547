"""What einfuse makes of one spec: its derivation, one kernel to read as a whole, and the form of the kernels of every back end.

Texts before and after each pass are in tests/ir/filecheck. Kernel texts are held by what they must contain: the whole of one changes with
every printer, and nobody can review that.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

import einfuse
from einfuse.runtime.backends import BackendName

SPEC = "alibi_window"
KERNEL = {"cpu": r'extern "C"', "triton": r"(?m)^def launch\(", "torch": r"(?m)^def kernel\("}


def test_derivation(golden: Callable[[str], None]) -> None:
    (report,) = einfuse.compile(SPEC).passes()
    lines = [f"{report.rank}: {report.before} -> {report.after}"]
    lines += [f"{d.reader} {d.how} {d.statistic} with {d.detail} ({d.proof})" for d in report.decisions]
    golden("\n".join(lines) + "\n")


def test_a_kernel_to_read(golden: Callable[[str], None]) -> None:
    golden(einfuse.compile("relu").source("triton", torch.float32))


@pytest.mark.parametrize("backend", KERNEL)
def test_one_kernel_forward_three_backward(backend: BackendName) -> None:
    """Prepass, rows and columns: nothing of the size of all pairs is kept between them."""
    attention = einfuse.compile(SPEC)
    for backward, kernels in ((False, 1), (True, 4)):
        text = attention.source(backend, torch.float32, backward=backward)
        assert len(re.findall(KERNEL[backend], text)) == kernels


def test_products_are_matrix_products_and_full_phases_have_no_mask() -> None:
    text = einfuse.compile("causal").source("triton", torch.bfloat16).split("def causal_described")[0]
    full, masked = re.split(r"for j_lo in .*# (?:full|masked)\n", text)[1:]
    assert (full.count("_dot("), masked.count("_dot(")) == (2, 2)
    assert "tl.where(j" not in full
    assert "tl.where(j[None, :] <= " in masked
