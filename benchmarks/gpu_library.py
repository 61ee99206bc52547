"""Every spec of the library as a GPU's compiler sees it: which kernels wait for their matrix products, and which spill registers.

    python benchmarks/gpu_library.py                                        # sm_90, bf16, width 64, forward
    python benchmarks/gpu_library.py --training --specs causal gla          # the kernels of a training step
    python benchmarks/gpu_library.py --target gfx942 --width 128

No GPU is needed, and nothing is timed. Each call (1 sequence, 4 heads on 2, 512 tokens) is recorded up to its launches, and those very
kernels are compiled at the tiles that they would be tried at first. Of one that spills a smaller one is built on the device, within the
call: so it is here, down to the kernels that the call takes in the end, and both are reported. Results go to
benchmarks/results/gpu_library.json as they come: what is there is not compiled again, unless with ``--again``. A few seconds a kernel, some
hours for all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src")]

if TYPE_CHECKING:
    from einfuse.codegen.targets import Target
    from einfuse.runtime.cross import CompiledKernel
    from einfuse.runtime.graph import Recorded
    from einfuse.runtime.static import KernelReport

RESULTS = Path(__file__).parent / "results" / "gpu_library.json"
TOGETHER = 8
"""Specs whose kernels one process compiles: its imports take as long as a kernel."""
KEPT = ("name", "tiling", "registers", "spills", "shared", "matrix", "serialised")

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    import einfuse
    from einfuse.codegen.targets import TARGETS

    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--target", default="sm_90", choices=TARGETS)
    made.add_argument("--width", type=int, default=64, metavar="D")
    made.add_argument("--training", action="store_true", help="the kernels of a training step, in place of the forward alone")
    made.add_argument("--specs", nargs="*", default=[s.name for s in einfuse.list_specs()], metavar="SPEC")
    made.add_argument("--again", action="store_true", help="compile also what is in the results")
    args = made.parse_args(argv)
    kind = f"{args.target} {args.width} {'training' if args.training else 'forward'}"
    known: dict[str, Row] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    left = iter([s for s in args.specs if args.again or not known.get(f"{s} {kind}", {}).keys() & {"error", "instead"}])
    while names := list(islice(left, TOGETHER)):
        for name, row in looked(names, args).items():
            known[f"{name} {kind}"] = row
            print("\n".join(lines(name, row)), flush=True)
        text = ",\n".join(f" {json.dumps(k)}: {json.dumps(r)}" for k, r in sorted(known.items()))
        RESULTS.write_text(f"{{\n{text}\n}}\n")
    print(summary(known[f"{s} {kind}"] for s in args.specs))
    return 0


def looked(names: Sequence[str], args: argparse.Namespace) -> dict[str, Row]:
    """The kernels of these specs, or why there are none."""
    from einfuse.ir import EinfuseError
    from einfuse.runtime.static import reports

    rows: dict[str, Row] = {}
    found: dict[str, list[Recorded]] = {}
    for name in names:
        try:
            found[name] = launches(name, args)
        except Exception as error:  # one spec that cannot be looked at is a row like others
            rows[name] = failed(error)
    try:
        made = iter(reports([x for xs in found.values() for x in xs], args.target))
        for name, launched in found.items():
            first = [report(next(made)) for _ in launched]
            rows[name] = {"kernels": first, "instead": instead(launched, first, args.target)}
    except EinfuseError as error:
        if len(names) == 1:
            return {names[0]: failed(error)}
        return {n: r for name in names for n, r in looked([name], args).items()}
    return {name: rows[name] for name in names}


def launches(name: str, args: argparse.Namespace) -> list[Recorded]:
    """The launches of a call of a spec."""
    import torch

    import einfuse
    from einfuse.runtime.static import recorded
    from einfuse.runtime.verify import Shape, example_inputs

    attention = einfuse.compile(name)
    shape = Shape(batch=1, heads=4, queries=512, keys=512, widths=(args.width, args.width), group=2)
    return recorded(attention, example_inputs(attention.cascade, torch.bfloat16, 0, shape), args.training, args.target)


def report(kernel: KernelReport | CompiledKernel) -> Row:
    return {k: getattr(kernel, k) for k in KEPT}


def instead(launched: Sequence[Recorded], first: Sequence[Row], target: Target) -> list[Row]:
    """The kernels that a call takes in the end in place of those that spill."""
    from einfuse.runtime.cross import settled
    from einfuse.runtime.inside import Candidate

    spill = [Candidate.taken(x) for x, row in zip(launched, first, strict=True) if row["spills"]]
    return [report(k) for k in settled([(s, target) for c in spill for s in c.smaller() or [c]])]


def failed(error: Exception) -> Row:
    return {"error": f"{type(error).__name__}: {error}"[-300:]}


def lines(name: str, row: Row) -> Iterator[str]:
    """What is said of a spec."""
    if "error" in row:
        yield f"{name}: {row['error']}"
    for where, kernels in (("", row.get("kernels", ())), ("instead ", row.get("instead", ()))):
        for k in kernels:
            wrong = [what for what, there in (("serialised", k["serialised"]), (f"{k['spills']} spills", k["spills"])) if there]
            yield f"{name}: {where}{k['name']} {k['registers']} registers, {k['matrix'] or 'no matrix units'} {', '.join(wrong)}".rstrip()


def summary(found: Iterator[Row]) -> str:
    """Counts over all of them: at the tiles tried first, and of the kernels that calls take in the end."""
    rows = list(found)
    first = [k for r in rows for k in r.get("kernels", ())]
    last = [k for k in first if not k["spills"]] + [k for r in rows for k in r.get("instead", ())]
    said = [f"{len(rows)} specs, {sum('error' in r for r in rows)} of them not looked at"]
    for what, kernels in (("first", first), ("in the end", last)):
        spill, wait = sum(k["spills"] > 0 for k in kernels), sum(k["serialised"] for k in kernels)
        said.append(f"{what} {len(kernels)} kernels, {wait} serialised, {spill} spill")
    return "; ".join(said)


if __name__ == "__main__":
    raise SystemExit(main())
