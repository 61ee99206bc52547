"""No generated kernel reads or writes where it must not, overflows an integer or assumes an alignment: see `sanitized.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from einfuse.codegen import cpu

LANE = Path(__file__).parent / "sanitized.py"
CHECKS = "address,alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero,float-cast-overflow"
FLAGS = (
    f"-O0 -g1 -fsanitize={CHECKS} -fno-sanitize-recover=all -fsanitize-undefined-trap-on-error"
    " --param asan-instrumentation-with-call-threshold=0"
)
"""Not all of ``undefined``: what it checks besides are objects and types, of which kernels have none, and it takes half as long again.

The same checks are compiled in half the time where one of memory is a call, and undefined behaviour an illegal instruction: the
report then names its place and not its kind.
"""


def sanitizers() -> str:
    """The libraries that must be loaded first."""
    compiler = shutil.which(os.environ.get("CXX") or "c++") or cpu.find_compiler()
    names = ("libasan.so", "libubsan.so")
    found = [
        subprocess.run([compiler, f"-print-file-name={n}"], capture_output=True, text=True, check=False).stdout.strip()
        for n in names
    ]
    if not all(os.path.isabs(x) for x in found):
        pytest.skip(f"{compiler} has no sanitizers")
    return " ".join(found)


def run(*groups: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {
        "CXXFLAGS": FLAGS,
        "LD_PRELOAD": sanitizers(),
        "ASAN_OPTIONS": "detect_leaks=0:handle_sigill=1",  # Python's own leaks are many
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",
    }
    return subprocess.run([sys.executable, str(LANE), *groups], env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("groups", ["softmax weights", "masks scans other"])
def test_sanitized(groups: str) -> None:
    """Two processes, for two workers: each takes seconds to start under a sanitizer."""
    done = run(*groups.split())
    ran = done.stdout.splitlines()
    assert ran[-1:] == ["whole"], f"at {ran[-1:]}:\n{done.stderr[-6000:]}"
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "said"), [("heap", "heap-buffer-overflow"), ("guard", "SEGV")])
def test_a_kernel_that_reads_too_far_is_found(memory: str, said: str) -> None:
    done = run(memory)
    assert done.stdout.splitlines() == ["one key too far"]
    assert done.returncode != 0
    assert f"AddressSanitizer: {said}" in done.stderr
