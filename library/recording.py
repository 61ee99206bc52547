"""What was run of every spec in every mode: library/modes.json, one line a spec, which docs/modes.md reads.

    python -m einfuse.library.recording             every spec whose line is missing, or is of another text; goes on where it stopped
    python -m einfuse.library.recording NAME ...    these, again

A cell is `yes`, with what was run where there are several ways, or the reason why not in a few words. Everything is compared with the
interpreter of the cascade as written: float16 on both back ends as `einfuse verify` does, devices as threads that exchange messages, the rest
in float64 by the back end torch, which runs the kernels' own tiles.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

import einfuse
from einfuse.distributed.here import Axis, axes_of, sequence
from einfuse.distributed.programs import EXCHANGES, obstacle
from einfuse.ir import Scalar, Scan, SpecError
from einfuse.ir import expr as ex
from einfuse.ir.text import show
from einfuse.library import verified
from einfuse.runtime.backends import interpret_triton
from einfuse.runtime.verify import Shape, example_inputs, example_sizes

TESTS = Path(__file__).resolve().parents[1] / "tests"
RECORD = Path(__file__).resolve().parent / "modes.json"
SMALL = Shape(2, 2, 9, 9, (4, 6), 2)
NARROW = Shape(1, 2, 9, 13, (8, 12), 2)
Outputs = tuple[torch.Tensor, ...]
Line = dict[str, Any]
"""``content``: the hash of the text; ``cascade``: that of what it is compiled to; then a cell for every check."""


class Call:
    """An attention in tiles, in float64, with arguments; ``leaves`` are the float tensors among them."""

    def __init__(self, name: str, shape: Shape = SMALL, seed: int = 0) -> None:
        self.attention = einfuse.compile(name, backend="torch")
        self.cascade = self.attention.cascade
        self.given = example_inputs(self.cascade, torch.float64, seed, shape)
        tensors = {n: x for n, x in self.given.items() if isinstance(x, torch.Tensor)}
        self.leaves = {n: x.clone().requires_grad_() for n, x in tensors.items() if x.is_floating_point()}

    @property
    def arguments(self) -> dict[str, torch.Tensor | Scalar]:
        return {**self.given, **self.leaves}

    def outputs(self, run: Callable[..., Any], arguments: Mapping[str, Any] | None = None) -> Outputs:
        """All outputs that are numbers with a fraction."""
        out = run(**(self.arguments if arguments is None else arguments))
        return tuple(x for x in (out if isinstance(out, tuple) else (out,)) if x.is_floating_point())


def forward_mode(name: str) -> str:
    """`jvp` beside the derivative of the derivative along a covector, which is what the interpreter can do."""
    call = Call(name)
    if not call.leaves:
        return "no float input"
    generator = torch.Generator().manual_seed(1)
    tangents = {n: torch.randn(x.shape, generator=generator, dtype=x.dtype) for n, x in call.leaves.items()}
    _, found = call.attention.jvp(**call.given, tangents=tangents)
    truth = call.outputs(call.attention.reference)
    covectors = [torch.zeros_like(o, requires_grad=True) for o in truth]
    gradients = _gradients(sum((o * u).sum() for o, u in zip(truth, covectors, strict=True)), list(call.leaves.values()))
    along = sum((g * tangents[n]).sum() for n, g in zip(call.leaves, gradients, strict=True))
    expected = _gradients(along, covectors)
    return _same([t for t in (found if isinstance(found, tuple) else (found,)) if t.is_floating_point()], expected)


def twice_backward(name: str) -> str:
    """The gradient of the sum of squares of all gradients."""
    results = []
    call = Call(name)
    if not call.leaves:
        return "no float input"
    for run in (call.attention, call.attention.reference):
        generator = torch.Generator().manual_seed(1)
        outs = call.outputs(run)
        loss = sum((o * torch.randn(o.shape, generator=generator, dtype=o.dtype)).sum() for o in outs)
        first = _gradients(loss, list(call.leaves.values()))
        results.append(_gradients(sum(g.square().sum() for g in first), list(call.leaves.values())))
    mine, truth = results
    return _same(mine, truth)


def stepwise(name: str) -> str:
    """`step` for three parts of the points of a scan, or of the keys of one pass, beside a call for all."""
    call = Call(name)
    scan = call.cascade.fold if isinstance(call.cascade, Scan) else None
    rank = call.attention.split.rank if scan is None else scan.rank
    size = call.cascade.rank(rank).size
    along = {t.name: n for t in call.cascade.inputs for n, a in enumerate(t.axes) if a == ex.size(size)}
    if not along or (scan is None and [r.size for r in call.cascade.ranks].count(size) > 1):
        return "no: its queries and keys are the same tokens" if along else "no: no input lies along its keys"
    whole = call.outputs(call.attention.reference)
    total = max(call.given[n].shape[a] for n, a in along.items())  # type: ignore[union-attr]  # what has axes is a tensor
    state, outs = None, []
    for start, end in ((0, 4), (4, 5), (5, total)):
        part = {
            n: x.narrow(along[n], start, end - start) if n in along and isinstance(x, torch.Tensor) else x
            for n, x in call.given.items()
        }
        out, state = call.attention.step(state, **part)
        outs.append(out if isinstance(out, tuple) else (out,))
    if scan is None:
        return _same(outs[-1], whole, "yes: keys that keep coming")
    axes = [axes_of(call.cascade, n) for n in call.cascade.outs]
    parts = zip(axes, zip(*outs, strict=True), strict=True)
    joined = [torch.cat(each, a.index(rank)) if rank in a else each[-1] for a, each in parts]  # last states stay as they are
    return _same(joined, whole, "yes: states")


def linear_form(name: str) -> str:
    """The form in time linear in the tokens, beside the cascade of all pairs."""
    call = Call(name)
    if isinstance(call.cascade, Scan):
        return "yes: a scan itself"
    found = call.attention.forms.found
    if found is None:
        return "no: its weights do not factor"
    linear = call.attention.with_form("linear")
    return _same(call.outputs(linear), call.outputs(call.attention.reference), f"yes: rank {found.show()}")


def exported(name: str) -> str:
    """A program of torch.export, on other values than it was traced with."""
    first, second = Call(name), Call(name, seed=1)
    names = [n for n, x in first.given.items() if isinstance(x, torch.Tensor)]
    numbers = {n: x for n, x in first.given.items() if not isinstance(x, torch.Tensor)}

    class Module(nn.Module):
        def forward(self, *tensors: torch.Tensor) -> Any:
            return first.attention(**dict(zip(names, tensors, strict=True)), **numbers)

    program = torch.export.export(Module(), tuple(first.given[n] for n in names))
    run = program.module()
    return _same(
        second.outputs(lambda **given: run(*(given[n] for n in names)), second.given),
        second.outputs(second.attention.reference),
    )


def devices(name: str) -> str:
    """Every exchange that the spec may take, by two devices that share its tokens: outputs and gradients beside one device."""
    sys.path.append(str(TESTS / "distributed"))
    simulated = importlib.import_module("devices")
    attention = einfuse.compile(name)
    c, found = attention.cascade, []
    shape = Shape(1, 4, 6, 6, (4, 6), 2)
    given, sizes = example_inputs(c, torch.float64, 0, shape), example_sizes(c, shape)
    for exchange in EXCHANGES:
        ranks = sequence(c)
        ranks = tuple(r for r in ranks if c.rank(r).kind == "key") or ranks if exchange == "states" else ranks
        if not ranks or obstacle(c, Axis("sequence", ranks), exchange) is not None:
            continue
        rows = {str(c.rank(r).size): simulated.parts(sizes[str(c.rank(r).size)], [4]) for r in ranks}
        apart = simulated.whole_and_parts(attention, (Axis("sequence", ranks),), exchange, given, rows)
        if apart > 1e-9:
            return f"no: {exchange} is {apart:.1g} apart"
        found.append(exchange)
    return f"yes: {', '.join(found)}" if found else "no: by batches and heads alone"


def half(name: str) -> str:
    """float16 on both back ends, values and gradients."""
    rows = einfuse.verify(einfuse.compile(name), dtypes=("float16",), shape=NARROW, brief=True).rows
    wrong = [r for r in rows if not r.ok]
    where = ", ".join(dict.fromkeys(r.backend for r in wrong))
    if wrong and all(r.error == math.inf for r in wrong):
        return f"no: values beyond its range ({where})"
    return f"no: {len(wrong)} of {len(rows)} are wrong ({where})" if wrong else "yes"


CHECKS: Mapping[str, Callable[[str], str]] = {
    "forward mode": forward_mode,
    "backward twice": twice_backward,
    "step": stepwise,
    "linear form": linear_form,
    "export": exported,
    "devices": devices,
    "float16": half,
}


def cell(check: Callable[[str], str], name: str) -> str:
    """What a check found; the reason where the library refuses."""
    try:
        return check(name)
    except (einfuse.EinfuseError, SpecError, ValueError, NotImplementedError) as error:
        message = error.message if isinstance(error, SpecError) else str(error).splitlines()[0]
        return "no: " + re.sub(r"^\w+(?: cannot [\w ]+)?: ", "", message)
    except GuardOnDataDependentSymNode:
        return "no: a size depends on what is chosen"
    except Exception as error:  # a fault, for whoever reads the record; the other cells are still run
        return f"raised {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def digest(name: str) -> str:
    """A hash of the cascade that a spec is compiled to."""
    return hashlib.sha256(show(einfuse.compile(name).cascade).encode()).hexdigest()[:16]


def _gradients(total: Any, of: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    if not (isinstance(total, torch.Tensor) and total.requires_grad):
        return [torch.zeros_like(x) for x in of]
    found = torch.autograd.grad(total, of, create_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, of, strict=True)]


def _same(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], yes: str = "yes") -> str:
    """``yes`` where all are equal but for rounding, beside the largest of each; else how far apart they are."""
    worst = 0.0
    for f, e in zip(found, expected, strict=True):
        e = e.to(f.dtype)
        assert f.shape == e.shape, f"{tuple(f.shape)} for {tuple(e.shape)}"
        size = 1 + e.detach()[e.isfinite()].abs().amax().item() if e.isfinite().any() else 1.0
        apart = torch.where((f == e) | (f.isnan() & e.isnan()), 0.0, (f - e).abs() / size).detach()
        worst = max(worst, apart.nan_to_num(nan=1e9).max().item() if apart.numel() else 0.0)
    return yes if worst < 1e-6 else f"no: {worst:.1g} apart"


def read() -> dict[str, Line]:
    """What is on record."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}


def write(found: Mapping[str, Line]) -> None:
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
    RECORD.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is not on record as it stands, check by check, and writes after every cell."""
    interpret_triton()
    torch.set_num_threads(1)
    again = set(sys.argv[1:] if argv is None else argv)
    paths, known = verified.texts(), read()
    if again - paths.keys():
        print(f"the library has no spec {min(again - paths.keys())}", file=sys.stderr)
        return 2
    lines = {n: {"content": verified.content(path)} for n, path in paths.items() if not again or n in again}
    kept = {n: known[n] for n in paths if n in known and n not in again and known[n]["content"] == verified.content(paths[n])}
    known = lines | kept
    for check in CHECKS:
        for name in (n for n in lines if check not in known[n]):
            known[name] |= {"cascade": digest(name), check: cell(CHECKS[check], name)}
            write(known)
            print(f"{name}, {check}: {known[name][check]}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
