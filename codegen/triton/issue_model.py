"""How long a loop of a compiled kernel takes on an NVIDIA GPU, counted from its instructions: a model, not a measurement.

    work       = cycles that a multiprocessor needs for an iteration of one program on each of its units
    matrix     = products, or what they read from shared memory (a wgmma 2 KB for its left operand and 32 bytes a column)
    arithmetic = the busiest of issue, floating point, integer, special functions, shared-memory accesses
    cycles     = the larger of the two + (the smaller + 40) / programs on the multiprocessor

A matrix instruction that the assembler serialised takes 64 cycles more, which only other groups of four warps fill. Rates: 2048 bf16
multiply-adds of the matrix unit a cycle (sm_80: 1024), 16 special functions, 128 fp32 operations (sm_80: 64), 64 integer operations,
comparisons and selections, four instructions. The 40 cycles and the share of the peak clock (0.65) are fitted to 15 kernels of causal
attention of width 64 in six sets of tiles, timed on an H200: off by 12 % in the mean square, and by up to 30 % where fewer than three stages
are loaded ahead, which it does not see. The form before, calibrated on three published times, ranked one program of 128 x 128 above
several of 64 rows, which take 0.8 of its time.
"""

from __future__ import annotations

from dataclasses import dataclass

from einfuse.codegen.targets import Rates
from einfuse.codegen.triton.statistics import Iteration

LATENCY, WAIT, SUSTAINED = 40.0, 64.0, 0.65


@dataclass(frozen=True, slots=True)
class Work:
    """Cycles of a multiprocessor for one iteration of one program, unit by unit."""

    matrix: float
    issue: float
    floats: float
    integers: float
    special: float
    shared: float
    groups: float
    chain: tuple[tuple[float, int], ...]  # cycles of each kind of wgmma, and how many of it a group of four warps runs

    @property
    def units(self) -> dict[str, float]:
        return {
            "issue": self.issue,
            "fp32": self.floats,
            "integer": self.integers,
            "special": self.special,
            "shared": self.shared,
        }

    @property
    def arithmetic(self) -> float:
        return max(self.units.values())

    @property
    def bound(self) -> str:
        """The busiest unit."""
        every = self.units | {"matrix": self.matrix}
        return max(every, key=every.__getitem__)

    def cycles(self, resident: int, serialised: bool) -> float:
        """Of a multiprocessor for one iteration of each program that is resident, over their number."""
        matrix = self.matrix
        if serialised:
            matrix = sum(n * max(c, (c + WAIT) / (self.groups * resident)) for c, n in self.chain) * self.groups
        return max(matrix, self.arithmetic) + (min(matrix, self.arithmetic) + LATENCY) / resident


def work(loop: Iteration, warps: int, gpu: Rates) -> Work:
    """The work of an iteration of a program with so many warps."""
    groups, n = warps / 4, loop.counts
    chain = tuple((columns * 1024 / gpu.matrix, count) for columns, _, count in loop.wgmma)
    matrix = sum(cycles * count for cycles, count in chain)
    matrix += 8.0 * n.get("mma", 0)  # m16n8k16; Hopper runs them at half of wgmma's rate
    operands = sum((columns * 32 + 2048 * left) / 128 * count for columns, left, count in loop.wgmma)
    accesses = sum(n.get(k, 0) for k in ("shuffle", "shared"))
    return Work(
        matrix=max(matrix, operands) * groups,
        issue=loop.instructions * groups,
        floats=sum(n.get(k, 0) for k in ("fma", "mul", "add")) * 128 / gpu.floats * groups,
        integers=2.0 * sum(n.get(k, 0) for k in ("extremum", "compare", "select", "integer", "convert")) * groups,
        special=8.0 * sum(n.get(k, 0) for k in ("exp2", "special")) * groups,
        shared=2.0 * accesses * groups,
        groups=groups,
        chain=chain,
    )


def resident(registers: int, warps: int, shared: int, gpu: Rates) -> int:
    """How many programs a multiprocessor holds at once."""
    per_warp = -(-max(registers, 1) // 8) * 8 * 32
    return max(1, min(4 * (16384 // per_warp) // warps, gpu.shared // (shared + 1024), 64 // warps, 32))
