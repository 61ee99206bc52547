"""What a sharded call sends, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from einfuse.distributed import programs
from einfuse.distributed.dry import Count
from einfuse.distributed.here import Here, Values
from einfuse.ir import Cascade

if TYPE_CHECKING:
    from einfuse.distributed.sharded import Sharded


def explained(sharded: Sharded, c: Cascade, here: Here, inputs: Values) -> str:
    """See `Sharded.explain`."""
    taken = sharded.chosen(c, here, inputs)
    out = []
    for n, (axis, exchange) in enumerate(taken):
        size = sharded.transports[axis.name].size
        out.append(f"{c.name} over `{axis.name}`, {size} devices, {' and '.join(axis.ranks)} along it: {exchange}")
        for e in programs.EXCHANGES:
            reason = programs.obstacle(c, axis, e)
            if reason is not None:
                out.append(f"  {e}: not possible: {reason.message}")
            elif axis.ranks[0] in c.over and e != exchange:
                continue
            else:
                count = sharded.bytes(c, here, inputs, n, e)
                mark = "taken" if e == exchange else "no fewer bytes" if sharded.exchange is None else "not asked for"
                out.append(f"  {e}: {mark}; at most {count.most:,} bytes from one device")
                out += _links(count) if e == exchange else []
    return "\n".join(out) + "\n"


def _links(count: Count) -> list[str]:
    rows = enumerate(zip(count.forward, count.backward, strict=True))
    links = [(s, d, f[d], b[d]) for s, (f, b) in rows for d in range(len(f)) if f[d] or b[d]]
    return [f"    {s} -> {d}: {f:,} bytes forward, {b:,} backward" for s, d, f, b in links] or ["    nothing is sent"]
