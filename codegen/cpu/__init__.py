"""Plans as C++ for CPUs: `emit` prints a standalone file, `build` compiles and loads it."""

from einfuse.codegen.cpu.build import BuildError as BuildError
from einfuse.codegen.cpu.build import CpuKernel as CpuKernel
from einfuse.codegen.cpu.build import build as build
from einfuse.codegen.cpu.build import find_compiler as find_compiler
from einfuse.codegen.cpu.emit import emit as emit
from einfuse.codegen.cpu.merge import merge as merge
from einfuse.codegen.cpu.tiling import Caches as Caches
from einfuse.codegen.cpu.tiling import caches as caches
from einfuse.codegen.cpu.tiling import narrower as narrower
from einfuse.codegen.cpu.tiling import tile as tile
