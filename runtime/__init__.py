"""From cascades to results: compile, cache, launch, autograd, dispatch by device, verification, benchmarks."""

from einfuse.runtime.attention import Attention as Attention
from einfuse.runtime.attention import PassReport as PassReport
from einfuse.runtime.backends import BACKENDS as BACKENDS
from einfuse.runtime.backends import BackendName as BackendName
from einfuse.runtime.bench import BenchRow as BenchRow
from einfuse.runtime.bench import BenchShape as BenchShape
from einfuse.runtime.bench import bench as bench
from einfuse.runtime.compile import SpecInfo as SpecInfo
from einfuse.runtime.compile import attention as attention
from einfuse.runtime.compile import compile as compile
from einfuse.runtime.compile import list_specs as list_specs
from einfuse.runtime.cross import CompiledKernel as CompiledKernel
from einfuse.runtime.cross import cross_compile as cross_compile
from einfuse.runtime.packed import varlen as varlen
from einfuse.runtime.verify import Certificate as Certificate
from einfuse.runtime.verify import Row as Row
from einfuse.runtime.verify import verify as verify
