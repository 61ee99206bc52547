"""From cascades to results: compile, cache, launch, autograd, dispatch by device, verification, benchmarks."""

from einfuse.runtime.attention import Attention as Attention
from einfuse.runtime.backends import BACKENDS as BACKENDS
from einfuse.runtime.backends import BackendName as BackendName
from einfuse.runtime.compile import SpecInfo as SpecInfo
from einfuse.runtime.compile import attention as attention
from einfuse.runtime.compile import compile as compile
from einfuse.runtime.compile import list_specs as list_specs
from einfuse.runtime.inside import PassReport as PassReport
from einfuse.runtime.packed import varlen as varlen
