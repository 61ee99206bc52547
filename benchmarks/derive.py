"""How long the derivation of every library spec takes, cold: `python benchmarks/derive.py [--all] [SPEC ...]`.

A spec is derived in a process of its own that has imported everything and derived nothing (a fork): canonicalising and fusing its
forward cascades, stage by stage; in brackets its backward as well. Prints the ten slowest (``--all``: every one), in CPU seconds, and
fails where a forward derivation is over the limit.
"""

from __future__ import annotations

import os
import sys
import time

import harness

import einfuse
from einfuse.ir.nodes import Flat
from einfuse.ir.passes import canonicalise, differentiate, pipeline

LIMIT = 0.3


def derive(name: str) -> tuple[float, float]:
    """CPU seconds of the forward derivation and of the backward one, in this process."""
    attention = einfuse.compile(name)
    stages = [a.cascade for a in attention.stages or (attention,) if isinstance(a.cascade, Flat)]
    start = time.process_time()
    for c in stages:
        pipeline.run(c, after="online_fuse")
    forward = time.process_time() - start
    start = time.process_time()
    for c in stages:
        wanted = [t.name for t in c.inputs if t.dtype == "float" and not t.param]
        for part, _ in differentiate.run(canonicalise.run(c), wanted).cascades:
            pipeline.run(part, after="online_fuse")
    return forward, time.process_time() - start


def forked(name: str) -> tuple[float, float]:
    """`derive` in a child that shares nothing it computes with this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        forward, backward = derive(name)
        os.write(writer, f"{forward} {backward}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError(f"the derivation of {name} failed")
    forward, backward = map(float, text.split())
    return forward, backward


def main() -> int:
    parser = harness.options(__doc__, json=True)
    parser.add_argument("specs", nargs="*")
    parser.add_argument("--all", action="store_true", help="every spec, not the ten slowest")
    args = harness.parsed(parser)
    names = args.specs or [s.name for s in einfuse.list_specs()]
    import sympy  # noqa: F401  # a process imports it once, whatever it derives

    found = sorted(((*forked(n), n) for n in names), reverse=True)
    table = harness.Table("spec:28", "forward, s:.3f", "backward, s:.3f")
    for forward, backward, name in found if args.all else found[:10]:
        table.row(name, forward, backward)
    harness.write(args.json, {"rows": table.rows})
    slow = [n for forward, _, n in found if forward > LIMIT]
    print(f"{len(found)} specs, {len(slow)} over {LIMIT} s" + (f": {', '.join(slow)}" if slow else ""))
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
