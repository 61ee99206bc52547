"""Triton kernels on a machine without a GPU, outside its interpreter: said plainly. (The tests themselves run inside it.)"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import torch, triton, einfuse
try:
    einfuse.compile("causal").with_backend("triton")(*torch.randn(3, 1, 2, 8, 16))
except einfuse.EinfuseError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_triton_back_end_says_what_it_needs() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert "runs on a GPU, and q is on the CPU" in done.stdout
    assert "TRITON_INTERPRET=1" in done.stdout
