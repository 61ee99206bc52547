"""Scratch memory of a thread: zeros that nothing else holds, no more of it than the points of a call need."""

import ctypes
import re
import subprocess
from pathlib import Path

import pytest
import torch

import einfuse
from einfuse.codegen.cpu.build import find_compiler
from einfuse.codegen.cpu.names import HEADERS


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """``taken(sizes, at, n)``: the addresses of buffers of so many floats, which it fills with ones; -1 where one did not hold zeros."""
    text = "#include <cstdint>\n#include <cstdlib>\n#include <cstring>\n#include <sys/mman.h>\nusing T = float; using I = int32_t;\n"
    text += "constexpr int MOST_BUFFERS = 64;\n" + "".join(HEADERS[h].read_text() for h in ("vector", "runtime"))
    text += """extern "C" int taken(const long* sizes, long* at, long n) {
      Scratch scratch;
      for (long k = 0; k < n; ++k) {
        float* const p = scratch.take<float>(sizes[k]);
        if (!p) return -2;
        for (long x = 0; x < sizes[k] + W; ++x) { if (p[x] != 0) return -1; p[x] = 1; }
        at[k] = (long)p;
      }
      return W;
    }"""
    path: Path = tmp_path_factory.mktemp("scratch") / "scratch.so"
    command = [
        find_compiler(),
        "-std=c++20",
        "-O1",
        "-march=native",
        "-w",
        "-shared",
        "-fPIC",
        "-x",
        "c++",
        "-",
        "-o",
        str(path),
    ]
    subprocess.run(command, input=text, text=True, check=True)
    return ctypes.CDLL(str(path))


@pytest.mark.parametrize("sizes", [[1, 0, 16, 64, 1007, 1008, 5000, 3], [900] * 12, [64] * 60])
def test_buffers_are_zeros_and_lie_apart(library: ctypes.CDLL, sizes: list[int]) -> None:
    """Those below a page, those of pages, and more small ones than there is room for beside the thread's own variables."""
    given, at = torch.tensor(sizes), torch.zeros(len(sizes), dtype=torch.int64)
    beyond = library.taken(ctypes.c_void_p(given.data_ptr()), ctypes.c_void_p(at.data_ptr()), ctypes.c_long(len(sizes)))
    assert beyond > 0, "a buffer held something, or there was no memory"
    assert not (at % 64).any()
    order = at.argsort()
    ends = at[order] + 4 * (given[order] + beyond)
    assert (ends[:-1] <= at[order][1:]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_take_room_for_the_points_that_there_are(dtype: torch.dtype) -> None:
    """Rows of a tile and of a block of keys: as many as there are, and no more than it may have."""
    for kernel in einfuse.compile("causal").candidates("cpu", dtype, True, {}):
        buffers = re.findall(r"scratch\.take<\w+>\((.*)\);", kernel.source)
        assert buffers, kernel.plan.name
        assert not [x for x in buffers if re.match(r"(pairs\()?\d", x)], kernel.plan.name
        assert "prepass" in kernel.plan.name or any("_room * " in x for x in buffers), kernel.plan.name
