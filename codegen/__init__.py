"""From cascades to kernels: `lower` makes a `KernelPlan`, a back end (one folder each) makes text and a callable of it."""

from einfuse.codegen.both import both as both
from einfuse.codegen.held import hold as hold
from einfuse.codegen.lowering.lower import lower as lower
from einfuse.codegen.plan import KernelPlan as KernelPlan
from einfuse.codegen.plan import Storage as Storage
