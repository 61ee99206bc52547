"""The rewrites that a back end makes of a plan before it prints it: a list of passes, each a plan to a plan that keeps the rules.

    CPU      places, keep, powers, prune
    Triton   slice, exp_differences, existing_loads, row_sums, lighten, prune, widen

A pass is registered in its back end's list; nothing else decides what is printed. `EINFUSE_DEBUG=plan` shows the plan after each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from einfuse.codegen.plan.nodes import KernelPlan
from einfuse.codegen.plan.text import show
from einfuse.codegen.plan.verify import verify
from einfuse.ir import debug


@dataclass(frozen=True, slots=True)
class PlanPass:
    """One rewrite. It gives the plan itself where it has nothing to do."""

    name: str
    run: Callable[[KernelPlan], KernelPlan]


def finished(plan: KernelPlan, passes: Sequence[PlanPass]) -> KernelPlan:
    """The plan as a printer takes it: after every pass, with the rules verified after each."""
    for p in passes:
        after = p.run(plan)
        if after != plan:
            verify(after)
            if debug.enabled("plan"):
                debug.show(f"plan {plan.name} after {p.name}", show(after))
        plan = after
    return plan
