"""Plans as C++ for CPUs: `emit` prints a standalone file, `build` compiles and loads it."""

from einfuse.codegen.cpu.build import BuildError as BuildError
from einfuse.codegen.cpu.build import CpuKernel as CpuKernel
from einfuse.codegen.cpu.build import build as build
from einfuse.codegen.cpu.build import compiled as compiled
from einfuse.codegen.cpu.build import find_compiler as find_compiler
from einfuse.codegen.cpu.listing import by_block as by_block
from einfuse.codegen.cpu.ranking import best as best
from einfuse.codegen.cpu.tiling import Caches as Caches
from einfuse.codegen.cpu.tiling import caches as caches
from einfuse.codegen.cpu.tiling import narrower as narrower
from einfuse.codegen.cpu.tiling import tile as tile
from einfuse.codegen.plan import KernelPlan


def emit(plan: KernelPlan) -> str:
    """The C++ text of a plan (see `source`)."""
    from einfuse.codegen.cpu import source  # here: a process whose kernels are all built prints none

    return source.emit(plan)


def merge(rows: KernelPlan, columns: KernelPlan) -> KernelPlan | None:
    """Two plans as one, where they can be (see `merged`)."""
    from einfuse.codegen.cpu import merged

    return merged.merge(rows, columns)
