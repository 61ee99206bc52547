"""Kernels built for aarch64 and run by qemu, beside the oracle: `test_emulated.py` runs some; Debian has both as packages.

    apt install g++-aarch64-linux-gnu qemu-user
    python tests/lanes/emulated.py [SPEC ...]        thirty specs unless given; forward and gradients, fp32 and bf16

A kernel is a program of its own here: what a call gives it comes in on standard input, what it wrote goes out.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import einfuse
from einfuse.codegen import cpu
from einfuse.codegen.plan import KernelPlan, table_ranks
from einfuse.ir import Scalar
from einfuse.runtime.verify import verify

COMPILER, EMULATOR, LIBRARIES = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
OPTIONS = ("-std=c++20", "-O1", "-fexpensive-optimizations", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-w",
           "-fopenmp", "-fno-exceptions")  # fmt: skip
SPECS = tuple(
    "full causal gqa sliding_window alibi alibi_window document padding bias t5_bias shaw deberta rope softcap sink sigmoid relu2 topk"
    " sparsemax talking_heads paged block_table dropout cosine differential linear retention gated_delta delta ssd".split()
)
_MAIN = """
#include <cstdio>
#include <vector>
static std::vector<char> taken() {
  int64_t n = 0;
  if (std::fread(&n, 8, 1, stdin) != 1) std::exit(3);
  std::vector<char> held(n + 64);
  if (n && std::fread(held.data(), 1, n, stdin) != (size_t)n) std::exit(3);
  held.resize(n);
  return held;
}
int main() {
  const auto head = taken();
  const int64_t count = *(const int64_t*)head.data();
  std::vector<std::vector<char>> tensors;
  std::vector<void*> ptrs;
  for (int64_t n = 0; n < count; ++n) tensors.push_back(taken());
  for (auto& x : tensors) ptrs.push_back(x.data());
  const auto strides = taken(), sizes = taken(), params = taken();
  const int failed = einfuse_kernel(ptrs.data(), (const int64_t*)strides.data(), (const int64_t*)sizes.data(), (const double*)params.data(), 2);
  if (failed) return 4;
  for (auto& x : tensors) std::fwrite(x.data(), 1, x.size(), stdout);
}
"""


@dataclass(frozen=True, slots=True)
class Emulated:
    """A kernel as a program for another processor; a call writes the plan's output tensors."""

    plan: KernelPlan
    program: Path

    def __call__(self, tensors: Mapping[str, torch.Tensor], params: Mapping[str, Scalar], sizes: Mapping[str, int]) -> None:
        """Runs it on copies that lie in one piece."""
        plan = self.plan
        tables = [tensors[f"{r}_{k}"].contiguous() for r in table_ranks(plan) for k in ("count", "block")]
        named = [tensors[t.name] for t in plan.tensors]
        held = [x.detach().contiguous() for x in named]
        counts = [sizes[n] for n in plan.sizes] + [n for x in held for n in x.shape] + [x.shape[-1] for x in tables[1::2]]
        every = [*held, *tables]
        parts = [struct.pack("q", len(every)), *map(raw, every)]
        parts += [packed("q", [n for x in held for n in x.stride()]), packed("q", counts)]
        parts += [packed("d", [float(params[n]) for n, _ in plan.params])]
        given = b"".join(struct.pack("q", len(p)) + p for p in parts)
        done = subprocess.run([EMULATOR, "-L", LIBRARIES, str(self.program)], input=given, capture_output=True, check=False)
        assert done.returncode == 0, f"{plan.name}: {EMULATOR} ended with {done.returncode}: {done.stderr.decode()[-2000:]}"
        at = 0
        for t, x, y in zip(plan.tensors, named, held, strict=True):
            size = y.numel() * y.itemsize
            if t.out and size:
                found = torch.frombuffer(bytearray(done.stdout[at : at + size]), dtype=y.dtype).view(y.shape)
                x.copy_(found)
            at += size


def raw(x: torch.Tensor) -> bytes:
    """The bytes of a tensor in one piece."""
    return x.reshape(-1).view(torch.uint8).numpy().tobytes()


def packed(kind: str, numbers: Sequence[float]) -> bytes:
    return struct.pack(f"{len(numbers)}{kind}", *numbers)


def missing() -> str:
    """What is not installed; empty: nothing."""
    return " and ".join(n for n in (COMPILER, EMULATOR) if shutil.which(n) is None)


def checked(specs: Sequence[str], folder: Path, dtypes: Sequence[str] = ("float32", "bfloat16")) -> list[str]:
    """The comparisons of these specs that are wrong, with kernels that are built in ``folder``. Prints a line a spec."""

    def build(plan: KernelPlan, source: str, *_: Any, **__: Any) -> Emulated:
        program = folder / hashlib.sha256(source.encode()).hexdigest()[:20]
        if not program.exists():
            command = [COMPILER, *OPTIONS, "-x", "c++", "-", "-o", str(program)]
            subprocess.run(command, input=source + _MAIN, text=True, check=True)
        return Emulated(plan, program)

    wrong: list[str] = []
    with mock.patch.object(cpu, "build", build):
        for spec in specs:
            rows = verify(einfuse.compile(spec), backends=("cpu",), dtypes=dtypes, brief=True).rows
            bad = [f"{r.name} {r.dtype} {r.what}: {r.error:.1e} of {r.allowed:.1e}" for r in rows if not r.ok]
            print(f"{spec}: {len(rows) - len(bad)} of {len(rows)} right", flush=True)
            wrong += bad
    return wrong


def main(specs: Sequence[str]) -> int:
    if missing():
        print(f"not installed: {missing()}")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        wrong = checked(specs or SPECS, Path(folder))
    print("\n".join(wrong) or "none is wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
