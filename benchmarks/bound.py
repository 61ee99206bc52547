"""The error allowed to kernels (`runtime/bound.py`), measured: the same on every machine? No right kernel called wrong? Every fault found?

    equal [--specs NAME ...]                the bound under other instruction sets and BLAS: the largest difference
    alarms LOG [--variant avx2] [--backends torch cpu triton] [--seeds 0 20] [--minutes 9]
    faults LOG [--seeds 0 5] [--minutes 9]  planted faults (`planted.py`): how many are found
    summary LOG ...                         tables of both, and benchmarks/results/bound.json

`alarms` and `faults` write a line a spec, dtype and seed to LOG and pass over what it already has: stop and start them as you like. A variant
runs in a process of its own with other instruction sets for torch, MKL and OpenBLAS; `v3` also compiles CPU kernels for x86-64-v3 (AVX2).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).parent)]
VARIANTS = {
    "plain": {},
    "default": {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "OPENBLAS_CORETYPE": "Nehalem"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "OPENBLAS_CORETYPE": "Haswell"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512", "OPENBLAS_CORETYPE": "SkylakeX"},
}
VARIANTS["v3"] = {**VARIANTS["avx2"], "CXXFLAGS": "-O1 -march=x86-64-v3"}
DTYPES = ("float32", "bfloat16")
Record = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    return COMMANDS[args.command](args)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = made.add_subparsers(dest="command", required=True)
    equal, alarms, faults, summary = (commands.add_parser(name) for name in COMMANDS)
    for one in (equal, alarms, faults):
        one.add_argument("--specs", nargs="+", metavar="NAME", help="all of the library unless given")
    for one in (alarms, faults):
        one.add_argument("log", type=Path)
        one.add_argument("--seeds", nargs=2, type=int, default=(0, 20), metavar=("FIRST", "END"))
        one.add_argument("--minutes", type=float, default=9.0, help="begin nothing more after that")
    alarms.add_argument("--variant", choices=VARIANTS, default="plain")
    alarms.add_argument("--backends", nargs="+", choices=("torch", "cpu", "triton"), default=("torch", "cpu", "triton"))
    equal.add_argument("--print", action="store_true", help="the bounds of this process alone, as JSON")
    summary.add_argument("logs", nargs="+", type=Path)
    return made.parse_args(argv)


def shape_of(name: str) -> Any:
    """Small and odd; heads that are mixed are held whole."""
    from einfuse.runtime.verify import Shape

    return Shape(2, 2, 19, 27, (4, 8) if name == "talking_heads" else (12, 20), 2)


def specs(args: argparse.Namespace) -> list[str]:
    import einfuse

    return args.specs or [s.name for s in einfuse.list_specs()]


# -- the same everywhere? --------------------------------------------------------------------------------------------------------


def equal(args: argparse.Namespace) -> int:
    """The bounds in a process for every variant, side by side."""
    if args.print:
        print(json.dumps(bounds(specs(args))))
        return 0
    command = [sys.executable, __file__, "equal", "--print", *(["--specs", *args.specs] if args.specs else [])]
    found = {}
    for name in ("default", "avx2", "avx512"):
        done = subprocess.run(command, env=os.environ | VARIANTS[name], stdout=subprocess.PIPE, text=True, check=True)
        found[name] = json.loads(done.stdout)
    first, *others = found.values()
    off = {what: max(abs(o[what] - x) / x if x else abs(o[what]) for o in others) for what, x in first.items()}
    print(f"{len(off)} bounds under {', '.join(found)}")
    for what in sorted(off, key=lambda w: -off[w])[:5]:
        print(f"  {off[what]:.1e} {what}")
    return 0 if max(off.values()) <= 1e-6 else 1


def bounds(names: Sequence[str]) -> dict[str, float]:
    import einfuse
    from einfuse.runtime.bound import Trial
    from einfuse.runtime.verify import DTYPES as TYPES
    from einfuse.runtime.verify import example_inputs

    out = {}
    for name in names:
        cascade = einfuse.compile(name, form="quadratic").cascade
        for dtype in DTYPES:
            trial = Trial(cascade, example_inputs(cascade, TYPES[dtype], 0, shape_of(name)), TYPES[dtype])
            out |= {f"{name} {dtype} {what}": trial.compared(what, x).allowed for what, x in trial.truth.items()}
    return out


# -- false alarms ----------------------------------------------------------------------------------------------------------------


def alarms(args: argparse.Namespace) -> int:
    """Right kernels beside the oracle, in a process with the variant's instruction sets."""
    wanted = VARIANTS[args.variant]
    if any(os.environ.get(n) != x for n, x in wanted.items()):
        return subprocess.run([sys.executable, __file__, *sys.argv[1:]], env=os.environ | wanted, check=False).returncode
    import einfuse
    from einfuse.runtime.backends import interpret_triton

    interpret_triton()
    log = Log(args.log)
    for name in specs(args):
        for backend in args.backends:
            for dtype in DTYPES:
                for seed in range(*args.seeds):
                    key = {
                        "kind": "alarms",
                        "variant": args.variant,
                        "backend": backend,
                        "dtype": dtype,
                        "spec": name,
                        "seed": seed,
                    }
                    if log.has(key) or log.age > 60 * args.minutes:
                        continue
                    rows = einfuse.verify(
                        einfuse.compile(name), backends=[backend], dtypes=[dtype], seed=seed, shape=shape_of(name)
                    ).rows
                    worst = max(rows, key=lambda r: ratio(r.error, r.allowed))
                    found = {"comparisons": len(rows), "wrong": [r.what for r in rows if not r.ok]}
                    log.write({**key, **found, "worst": ratio(worst.error, worst.allowed), "what": worst.what})
    return 0


def ratio(error: float, allowed: float) -> float:
    return error / allowed if allowed else 0.0 if error == 0 else math.inf


class Log:
    """Lines of JSON; a line is known by what it is about."""

    ABOUT = ("kind", "variant", "backend", "dtype", "spec", "seed")

    def __init__(self, path: Path) -> None:
        self.path, self.begun = path, time.monotonic()
        self.known = {self.key(r) for r in records([path])} if path.exists() else set()

    @property
    def age(self) -> float:
        return time.monotonic() - self.begun

    def key(self, record: Record) -> tuple[Any, ...]:
        return tuple(record.get(n) for n in self.ABOUT)

    def has(self, record: Record) -> bool:
        return self.key(record) in self.known

    def write(self, record: Record) -> None:
        self.known.add(self.key(record))
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def records(paths: Sequence[Path]) -> Iterator[Record]:
    for path in paths:
        for line in path.read_text().splitlines():
            yield json.loads(line)


# -- planted faults --------------------------------------------------------------------------------------------------------------


def faults(args: argparse.Namespace) -> int:
    """Every fault of `planted.py` in every spec that can have it."""
    import planted

    import einfuse
    from einfuse.runtime.bound import Trial
    from einfuse.runtime.verify import DTYPES as TYPES
    from einfuse.runtime.verify import example_inputs

    log = Log(args.log)
    for name in specs(args):
        cascade = einfuse.compile(name, form="quadratic").cascade
        for dtype in DTYPES:
            for seed in range(*args.seeds):
                key = {"kind": "faults", "dtype": dtype, "spec": name, "seed": seed}
                if log.has(key) or log.age > 60 * args.minutes:
                    continue
                trial = Trial(cascade, example_inputs(cascade, TYPES[dtype], seed, shape_of(name)), TYPES[dtype], seed=seed)
                results = {fault: planted.planted(trial, fault, seed) for fault in planted.faults(dtype)}
                found = {fault: planted.caught(trial, x) for fault, x in results.items() if x is not None}
                log.write(
                    {**key, "found": [f for f, x in found.items() if x], "missed": [f for f, x in found.items() if not x]}
                )
    return 0


# -- tables ----------------------------------------------------------------------------------------------------------------------


def summary(args: argparse.Namespace) -> int:
    """Both tables, printed and written; 1 where a right kernel was called wrong or too few faults were found."""
    lines = list(records(args.logs))
    result = {
        "alarms": alarm_table(r for r in lines if r["kind"] == "alarms"),
        "faults": fault_table(r for r in lines if r["kind"] == "faults"),
    }
    for table in result.values():
        for row in table:
            print("  ".join(f"{name} {value}" for name, value in row.items()))
    (ROOT / "benchmarks" / "results" / "bound.json").write_text(json.dumps(result, indent=1) + "\n")
    good = not any(r["wrong"] for r in result["alarms"]) and all(r["found"] >= 0.99 * r["planted"] for r in result["faults"])
    return 0 if good else 1


def alarm_table(lines: Iterable[Record]) -> list[Record]:
    """Right kernels by variant, back end and dtype: comparisons, those called wrong, and the largest error in parts of what is allowed."""
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for r in lines:
        groups[r["variant"], r["backend"], r["dtype"]].append(r)
    out = []
    for (variant, backend, dtype), some in sorted(groups.items()):
        worst = max(some, key=lambda r: r["worst"])
        out.append(
            {
                "variant": variant,
                "backend": backend,
                "dtype": dtype,
                "specs": len({r["spec"] for r in some}),
                "seeds": len({r["seed"] for r in some}),
            }
            | {"comparisons": sum(r["comparisons"] for r in some), "wrong": sum(len(r["wrong"]) for r in some)}
            | {"largest": round(worst["worst"], 3), "of": f"{worst['spec']} {worst['what']}"}
        )
    return out


def fault_table(lines: Iterable[Record]) -> list[Record]:
    """Planted faults by kind and dtype, those found, and the specs where one was missed."""
    groups: dict[tuple[str, str], list[tuple[bool, str]]] = defaultdict(list)
    for r in lines:
        for caught in (True, False):
            for fault in r["found" if caught else "missed"]:
                groups[fault, r["dtype"]].append((caught, r["spec"]))
    out = []
    for (fault, dtype), some in sorted(groups.items()):
        missed = sorted({spec for caught, spec in some if not caught})
        out.append({"fault": fault, "dtype": dtype, "planted": len(some), "found": sum(c for c, _ in some), "missed": missed})
    return out


COMMANDS = {"equal": equal, "alarms": alarms, "faults": faults, "summary": summary}

if __name__ == "__main__":
    sys.exit(main())
