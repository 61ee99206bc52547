"""What this machine can do at most: multiply-adds in float32, bf16 dot products where it has them, and a plain copy."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from einfuse.codegen.cpu.build import FLAGS, find_compiler

REPEATS = 2_000_000
COPIED = 128 << 20  # bytes: beyond any cache

_TEXT = """
#include <cstdint>
using T = float;
typedef T V __attribute__((vector_size(%(bytes)d)));
constexpr int MOST = 12;  // independent sums: as many as hide the latency of two units
#define EACH(k) _Pragma("GCC unroll 12") for (int k = 0; k < MOST; ++k)  // unrolled: the sums are registers

extern "C" double multiply_adds(int threads, long repeats) {  // floating-point operations done
#pragma omp parallel num_threads(threads)
  {
    V s[MOST], x = V{} + 0.999f, y = V{} + 0.001f;
    EACH(k) s[k] = V{};
    asm volatile("" : "+v"(x), "+v"(y));
    for (long n = 0; n < repeats; ++n) EACH(k) { s[k] = s[k] * x + y; asm volatile("" : "+v"(s[k])); }
    EACH(k) asm volatile("" : : "v"(s[k]));
  }
  return 2.0 * threads * repeats * MOST * (sizeof(V) / sizeof(T));
}
extern "C" double bf16_dots(int threads, long repeats) {
#if defined(__AVX512BF16__)
#pragma omp parallel num_threads(threads)
  {
    V s[MOST], x = V{} + 1.f, y = x;
    EACH(k) s[k] = V{};
    asm volatile("" : "+v"(x), "+v"(y));
    for (long n = 0; n < repeats; ++n) EACH(k) asm volatile("vdpbf16ps %%2, %%1, %%0" : "+v"(s[k]) : "v"(x), "v"(y));
    EACH(k) asm volatile("" : : "v"(s[k]));
  }
  return 4.0 * threads * repeats * MOST * (sizeof(V) / sizeof(T));
#else
  return 0;
#endif
}
"""


def peaks(threads: int, clock: Callable[[], float]) -> dict[str, float]:
    """GFLOP/s of ``f32`` and ``bf16`` (that of f32 where there are no dot products), GB/s read and written by ``copy``: best of five."""
    with tempfile.TemporaryDirectory() as folder:
        library = ctypes.CDLL(str(_built(Path(folder))))
        found = {}
        for name, symbol in (("f32", "multiply_adds"), ("bf16", "bf16_dots")):
            function = getattr(library, symbol)
            function.restype, function.argtypes = ctypes.c_double, [ctypes.c_int, ctypes.c_long]
            found[name] = max(_rate(lambda f=function: f(threads, REPEATS), clock) for _ in range(5)) / 1e9  # type: ignore[misc]
    source = torch.ones(COPIED // 4)
    target = torch.empty_like(source)

    def copy() -> float:
        target.copy_(source)
        return 2.0 * COPIED

    copy()
    found["copy"] = max(_rate(copy, clock) for _ in range(5)) / 1e9
    return found | {"bf16": found["bf16"] or found["f32"]}


def _rate(work: Callable[[], float], clock: Callable[[], float]) -> float:
    start = clock()
    done = work()
    return done / (clock() - start)


def _built(folder: Path) -> Path:
    capability = torch.backends.cpu.get_cpu_capability()
    text = _TEXT % {"bytes": 64 if "AVX512" in capability else 32 if "AVX2" in capability else 16}
    if "AVX" not in capability:
        text = text.replace('v"(', 'w"(')  # the vector registers of other machines
    path = folder / "peak.so"
    command = [find_compiler(), *FLAGS, "-x", "c++", "-", "-o", str(path)]
    subprocess.run(command, input=text, text=True, check=True)
    return path
