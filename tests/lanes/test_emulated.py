"""Kernels are right on aarch64, by an emulator where there is one: see `emulated.py`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LANE = Path(__file__).with_name("emulated.py")


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(shutil.which, ("aarch64-linux-gnu-g++", "qemu-aarch64"))), reason="needs Debian's cross compiler and qemu"
)
def test_right_on_aarch64() -> None:
    done = subprocess.run([sys.executable, str(LANE), "alibi_window"], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["none is wrong"], done.stdout + done.stderr[-4000:]
