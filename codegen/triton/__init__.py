"""Plans as Triton: `emit` prints a module, `build` loads it, `measure` compiles it for a GPU that need not be there."""

from einfuse.codegen.triton.build import TritonKernel as TritonKernel
from einfuse.codegen.triton.build import build as build
from einfuse.codegen.triton.emit import emit as emit
from einfuse.codegen.triton.options import Options as Options
from einfuse.codegen.triton.options import block_sizes as block_sizes
from einfuse.codegen.triton.options import holds as holds
from einfuse.codegen.triton.options import launch_options as launch_options
from einfuse.codegen.triton.options import tilings as tilings
from einfuse.codegen.triton.statistics import Statistics as Statistics
from einfuse.codegen.triton.statistics import measure as measure
