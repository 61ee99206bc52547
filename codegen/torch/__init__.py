"""Plans as plain torch: `emit` prints a module that only needs torch, `build` loads it."""

from einfuse.codegen.torch.build import TorchKernel as TorchKernel
from einfuse.codegen.torch.build import build as build
from einfuse.codegen.torch.emit import emit as emit
