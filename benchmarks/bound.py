"""The error allowed to kernels (`runtime/bound.py`), measured: the same on every machine? No right kernel called wrong? Every fault found?

    python benchmarks/bound.py equal LOG [--minutes 9]                 the bound under other instruction sets and BLAS: the largest difference
    python benchmarks/bound.py alarms LOG [--variant avx2] [--backends torch cpu triton loops] [--seeds 0 20] [--minutes 9]
    python benchmarks/bound.py faults LOG [--seeds 0 5] [--minutes 9]  planted faults (`planted.py`): how many are found
    python benchmarks/bound.py summary LOG ...                         tables of all three, and benchmarks/results/bound.json

The first three write a line for each thing that is done to LOG and pass over what it already has: stop and start them as you like. A variant
runs in a process of its own with other instruction sets for torch, MKL and OpenBLAS; `v3` also compiles CPU kernels for x86-64-v3 (AVX2).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import harness

VARIANTS = {
    "plain": {},
    "default": {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "OPENBLAS_CORETYPE": "Nehalem"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "OPENBLAS_CORETYPE": "Haswell"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512", "OPENBLAS_CORETYPE": "SkylakeX"},
}
VARIANTS["v3"] = {**VARIANTS["avx2"], "CXXFLAGS": "-O1 -march=x86-64-v3"}
EQUAL = ("default", "avx2", "avx512")
TOGETHER = 16
"""Specs whose bounds one process finds."""
BACKENDS = ("torch", "cpu", "triton", "loops")
DTYPES = ("float32", "bfloat16")
Record = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    return COMMANDS[args.command](args)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    made = harness.options(__doc__)
    commands = made.add_subparsers(dest="command", required=True)
    equal, alarms, faults, summary = (commands.add_parser(name) for name in COMMANDS)
    for one in (equal, alarms, faults):
        one.add_argument("--specs", nargs="+", metavar="NAME", help="all of the library unless given")
        one.add_argument("log", type=Path)
        one.add_argument("--minutes", type=float, default=9.0, help="begin nothing more after that")
    for one in (alarms, faults):
        one.add_argument("--seeds", nargs=2, type=int, default=(0, 20), metavar=("FIRST", "END"))
    alarms.add_argument("--variant", choices=VARIANTS, default="plain")
    alarms.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
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
    """The bounds of some specs at a time in a process for every variant, side by side."""
    if args.print:
        print(json.dumps(bounds(specs(args))))
        return 0
    log = Log(args.log)
    left = [name for name in specs(args) if not log.has({"kind": "equal", "spec": name})]
    while left and log.age < 60 * args.minutes:
        some, left = left[:TOGETHER], left[TOGETHER:]
        command = [sys.executable, __file__, "equal", str(args.log), "--print", "--specs", *some]
        runs = [
            subprocess.run(command, env=os.environ | VARIANTS[v], stdout=subprocess.PIPE, text=True, check=True) for v in EQUAL
        ]
        first, *others = (json.loads(run.stdout) for run in runs)
        for name in some:
            off = {what: max(apart(o[name][what], x) for o in others) for what, x in first[name].items()}
            worst = max(off, key=lambda what: off[what])
            log.write({"kind": "equal", "spec": name, "variants": EQUAL, "bounds": len(off), "off": off[worst], "what": worst})
    return 0


def apart(a: float, b: float) -> float:
    """The relative difference."""
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0


def bounds(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The bound of every result, by spec."""
    import einfuse
    from einfuse.runtime.bound import Trial
    from einfuse.runtime.verify import DTYPES as TYPES
    from einfuse.runtime.verify import example_inputs

    out: dict[str, dict[str, float]] = {}
    for name in names:
        cascade = einfuse.compile(name, form="quadratic").cascade
        for dtype in DTYPES:
            trial = Trial(cascade, example_inputs(cascade, TYPES[dtype], 0, shape_of(name)), TYPES[dtype])
            found = {f"{dtype} {what}": trial.compared(what, x).allowed for what, x in trial.truth.items()}
            out[name] = out.get(name, {}) | found
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
    for seed, name, dtype in itertools.product(range(*args.seeds), specs(args), DTYPES):
        about = {"kind": "alarms", "variant": args.variant, "dtype": dtype, "spec": name, "seed": seed}
        left = [b for b in args.backends if not log.has({**about, "backend": b})]
        if not left or log.age > 60 * args.minutes:
            continue
        found = einfuse.verify(einfuse.compile(name), backends=left, dtypes=[dtype], seed=seed, shape=shape_of(name))
        for backend in left:
            rows = [r for r in found.rows if r.backend == backend]
            worst = max(rows, key=lambda r: ratio(r.error, r.allowed))
            log.write(
                {**about, "backend": backend, "comparisons": len(rows), "wrong": [r.what for r in rows if not r.ok]}
                | {"worst": ratio(worst.error, worst.allowed), "what": worst.what}
            )
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
    """All tables, printed and written; 1 where bounds differ, a right kernel was called wrong or too few faults were found in fp32."""
    kinds: dict[str, list[Record]] = {"equal": [], "alarms": [], "faults": []}
    for r in records(args.logs):
        kinds[r["kind"]].append(r)
    tables = {"equal": equal_table, "alarms": alarm_table, "faults": fault_table}
    result = {kind: table(kinds[kind]) for kind, table in tables.items() if kinds[kind]}
    for rows in result.values():
        table = harness.Table(*rows[0])
        for row in rows:
            table.row(*map(str, row.values()))
    harness.write(harness.RESULTS / "bound.json", result)
    good = all(
        [r["off"] <= 1e-6 for r in result.get("equal", [])]
        + [r["wrong"] == 0 for r in result.get("alarms", [])]
        + [r["found"] >= 0.99 * r["planted"] for r in result.get("faults", []) if r["dtype"] == "float32"]
    )
    return 0 if good else 1


def equal_table(lines: Sequence[Record]) -> list[Record]:
    """How far bounds of one spec, seed and dtype are apart under other instruction sets, relatively, at most."""
    worst = max(lines, key=lambda r: r["off"])
    bounds = sum(r["bounds"] for r in lines)
    return [
        {
            "variants": worst["variants"],
            "specs": len(lines),
            "bounds": bounds,
            "off": worst["off"],
            "of": f"{worst['spec']} {worst['what']}",
        }
    ]


def alarm_table(lines: Sequence[Record]) -> list[Record]:
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


def fault_table(lines: Sequence[Record]) -> list[Record]:
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
