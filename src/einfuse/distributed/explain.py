"""What a sharded call sends and who does how much, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from einfuse.distributed import columns, programs
from einfuse.distributed.dry import Count
from einfuse.distributed.here import Axis, Here, Values
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
                out += [*_links(count), *_work(c, axis, e, here, inputs, size)] if e == exchange else []
    return "\n".join(out) + "\n"


def _work(c: Cascade, axis: Axis, exchange: programs.Exchange, here: Here, inputs: Values, size: int) -> list[str]:
    """The pairs that every device visits, by tiles: those of the rows that it has, or of the columns where these stay."""
    found = columns.pairs(c, axis, here, inputs, exchange == "columns") if exchange in ("columns", "rows") else ()
    each = len(found) // size
    work = [sum(found[d * each : (d + 1) * each]) for d in range(size if found else 0)]
    mean = max(sum(work), 1) / size
    return [f"    device {d} visits {n:,} pairs, {n / mean:.2f} of the mean" for d, n in enumerate(work)]


def _links(count: Count) -> list[str]:
    rows = enumerate(zip(count.forward, count.backward, strict=True))
    links = [(s, d, f[d], b[d]) for s, (f, b) in rows for d in range(len(f)) if f[d] or b[d]]
    return [f"    {s} -> {d}: {f:,} bytes forward, {b:,} backward" for s, d, f, b in links] or ["    nothing is sent"]
