"""Tracing of Python functions: what both front ends, the decorators and `einfuse.flex`, do once. No torch here."""

from einfuse.dsl.trace.place import defined as defined
from einfuse.dsl.trace.place import here as here
from einfuse.dsl.trace.place import name as name
from einfuse.dsl.trace.pure import refuse_assignment as refuse_assignment
from einfuse.dsl.trace.pure import twice as twice
from einfuse.dsl.trace.traced import Traced as Traced
from einfuse.dsl.trace.traced import flat as flat
from einfuse.dsl.trace.tracer import Tracer as Tracer
