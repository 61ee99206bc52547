"""Sums of products that are taken once a row, and cancel with what a matrix product gives: both back ends add them up in its order.

    t = x * y ; r = sum[e] t            x[i, e], y[i, e], r[i], i the tile's rank, e a feature, outside of loops

What is subtracted from r in a loop is a matrix product. Where a row has one live key, or one that outweighs the others, both are the same
sum: added up alike, their difference is exactly 0, as the gradient is.
"""

from __future__ import annotations

from einfuse.codegen.plan import KernelPlan, Map, Reduce, Value


def row_products(plan: KernelPlan) -> dict[str, tuple[Value, Value]]:
    """The two blocks of every such sum, by the name of the sum. x * x is none: nothing is subtracted from it."""
    found: dict[str, tuple[Value, Value]] = {}
    if plan.tile is None:
        return found
    rows, features = (plan.tile.rank,), {f.rank for f in plan.features}
    for region in plan.regions:
        made = {op.out.name: op.args for op in region if isinstance(op, Map) and op.fn == "*"}
        for op in region:
            if (
                isinstance(op, Reduce)
                and op.reducer.sums
                and op.out.dims == rows
                and op.rank in features
                and op.arg.name in made
            ):
                a, b = made[op.arg.name]
                if a.dims == b.dims == op.arg.dims and a.dtype == b.dtype == "float" and a != b:
                    found[op.out.name] = (a, b)
    return found
