"""What a sharded call sends and who does how much, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from einfuse.distributed import ahead, columns, programs
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
                mark = (
                    "taken"
                    if e == exchange
                    else "not asked for"
                    if sharded.exchange
                    else _lost(c, axis, e, exchange, here, inputs)
                )
                out.append(f"  {e}: {mark}; at most {count.most:,} bytes from one device{_backward(count)}")
                out += [*_links(count), *_work(c, axis, e, here, inputs, size)] if e == exchange else []
                out += _clock(c, axis, here, inputs) if e == exchange == "ahead" else []
    return "\n".join(out) + "\n"


def _lost(c: Cascade, axis: Axis, exchange: programs.Exchange, taken: programs.Exchange, here: Here, inputs: Values) -> str:
    """Why an exchange was not taken."""
    if {exchange, taken} == {"columns", "ahead"}:
        times = ahead.planned(c, axis, here, inputs)[1]
        one, other = times.at_once, times.pieces[times.best]
        return f"later, {_ms(one)} for {_ms(other)}" if exchange == "columns" else f"no sooner, {_ms(other)} for {_ms(one)}"
    return "the bytes of columns" if exchange == "ahead" else "no fewer bytes"


def _clock(c: Cascade, axis: Axis, here: Here, inputs: Values) -> list[str]:
    times = ahead.planned(c, axis, here, inputs)[1]
    came = f"{_ms(times.arrival)} at {here.rates.link:,.0f} bytes a second"
    done = f"{_ms(times.pieces[times.best])} in {_pieces(times.best)}, {_ms(times.at_once)} at once"
    return [f"    columns take {came}; a forward {done}"]


def _backward(count: Count) -> str:
    return f", {count.busiest[1]:,} of them backward" if any(map(any, count.backward)) else ""


def _pieces(count: int) -> str:
    return "one piece" if count == 1 else f"{count} pieces"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _work(c: Cascade, axis: Axis, exchange: programs.Exchange, here: Here, inputs: Values, size: int) -> list[str]:
    """The pairs that every device visits, by tiles: those of the rows that it has, or of the columns where these stay."""
    found = columns.pairs(c, axis, here, inputs, exchange != "rows") if exchange in ("columns", "ahead", "rows") else ()
    each = len(found) // size
    work = [sum(found[d * each : (d + 1) * each]) for d in range(size if found else 0)]
    mean = max(sum(work), 1) / size
    return [f"    device {d} visits {n:,} pairs, {n / mean:.2f} of the mean" for d, n in enumerate(work)]


def _links(count: Count) -> list[str]:
    rows = enumerate(zip(count.forward, count.backward, strict=True))
    links = [(s, d, f[d], b[d]) for s, (f, b) in rows for d in range(len(f)) if f[d] or b[d]]
    return [f"    {s} -> {d}: {f:,} bytes forward, {b:,} backward" for s, d, f, b in links] or ["    nothing is sent"]
