"""The command explain: what the kernels of a spec cost at given sizes, and which resource bounds them."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass

import torch

import einfuse
from einfuse._cli import inputs, screen
from einfuse._cli.cascades import linear_form
from einfuse._cli.inside import described, graphs
from einfuse._cli.tilemap import mapped
from einfuse.codegen import KernelPlan
from einfuse.codegen.cost import DEVICES, Cost, cost, state_bytes
from einfuse.ir import EinfuseError
from einfuse.ir.passes.classify_score import Score
from einfuse.runtime import drawing
from einfuse.runtime.binding import evaluate
from einfuse.runtime.scan import ScanProgram
from einfuse.runtime.verify import Shape, example_sizes


@dataclass(frozen=True, slots=True)
class Explained:
    """One kernel: its cost and the bound on every device."""

    plan: KernelPlan
    cost: Cost

    def bound(self, device: str) -> tuple[str, float]:
        """The resource that needs longest, and its seconds."""
        times = self.cost.times(DEVICES[device])
        worst = max(times, key=lambda r: times[r])
        return worst, times[worst]


def explain(args: argparse.Namespace) -> int:
    attention = inputs.attention(args.spec, args)
    form = crossing(attention, args.shape, getattr(torch, args.dtype), args.backward, dict(args.size))
    live, kernels = explained(attention, args.shape, getattr(torch, args.dtype), args.backward, dict(args.size))
    walk = walked(attention, args.shape, kernels[0].plan)
    shape: tuple[int, int, int, int] = args.shape
    sizes = example_sizes(attention.cascade, Shape(*shape, (64, 64), 1)) | dict(args.size)
    choices = (
        [] if attention.selection is None else attention.selection.said(described(attention, sizes, getattr(torch, args.dtype)))
    )
    if args.json:
        screen.report({**_json(attention, live, kernels), "walk": walk, "choices": [*choices], "linear": asdict(form)})
        return 0
    console = screen.out()
    console.print(f"{attention.name}: " + "; ".join(f"{r.counted} over {r.rank}" for r in attention.passes()))
    for score in attention.scores():
        console.print(_described(score))
    console.print(f"{100 * live:.4g} % of the tiles live; {state_bytes(kernels[0].plan)} bytes of state a row")
    if walk:
        console.print(f"{walk} (the kernels below are those of tiles)")
    for line in choices:
        console.print(line, markup=False)
    shown = screen.table(
        "kernel", ">products", ">arithmetic", ">special", ">memory", *(f"on {d.name}" for d in DEVICES.values())
    )
    for k in kernels:
        work = k.cost.work
        cells = [f"{_short(work.products)}F", _short(work.arithmetic), _short(work.special), f"{_short(k.cost.bytes)}B"]
        bounds = [k.bound(d) for d in DEVICES]
        shown.add_row(k.plan.name, *cells, *(f"{1e6 * t:.3g} us, {r}" for r, t in bounds))
    console.print(shown)
    console.print(form.shown, markup=False)
    names = ("forward", "backward")
    for name, graph in zip(names, graphs(attention, sizes, getattr(torch, args.dtype), args.backward), strict=False):
        console.print(f"{name} on this CPU:", *drawing.lines(graph, "  "), sep="\n", markup=False, soft_wrap=True)
    console.print("Times are the least that the named resource allows at its peak rate, not measurements.")
    return 0


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where the linear form takes over, on the CPU of this machine; ``length`` is None where there is no such form."""

    shown: str
    rank: int | None = None
    length: int | None = None
    calibrated: bool = False


def crossing(
    attention: einfuse.Attention, shape: tuple[int, int, int, int], dtype: torch.dtype, backward: bool, given: dict[str, int]
) -> Crossing:
    """The linear form of a spec and its crossover length N* at these batch, heads and widths."""
    found = attention.forms.found
    if found is None:
        return Crossing(linear_form(None, attention.forms.obstacle))
    sizes = example_sizes(attention.cascade, Shape(*shape, (64, 64), 1)) | given
    if (reason := attention.forms.crowd(sizes)) is not None:
        return Crossing(f"none at this width: {reason}", found.rank(sizes))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    length = attention.forms.crossover(sizes, dtype, device, backward)
    measured = not attention.forms.unmeasured(sizes, dtype, device, backward)
    rates = "measured rates" if measured else "rates that stand in until two near forms are measured"
    text = (
        f"{linear_form(found, None)}; {found.rank(sizes)} features, faster from N* = {length} on this {device.type} ({rates})"
    )
    decoding = attention.forms.decoding(sizes, dtype)
    if decoding is not None:
        text += f"; a step of the scan moves fewer bytes than a query that reads {decoding} keys"
    return Crossing(text, found.rank(sizes), length, measured)


def _described(score: Score) -> str:
    """One line on a score: what it is made of, and what that means for a kernel."""
    products = [f"{p.kind} product {p.name}" + (" (matrix units)" if p.on_matrix_units else "") for p in score.products]
    degree = {None: "no polynomial in them", 0: "", 1: "affine in them"}.get(score.degree, f"of degree {score.degree} in them")
    position = {"none": "", "linear": "linear in positions", "offset": "depends on the offset", "free": "depends on positions"}
    tables = f"reads {', '.join(score.tables)} at computed places" if score.tables else ""
    said = [", ".join(products) or "no product", degree if products else "", position[score.position], tables]
    return f"score {score.name}: " + "; ".join(x for x in (*said, "bounded" if score.bounded else "") if x)


def explained(
    attention: einfuse.Attention,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    backward: bool,
    widths: dict[str, int],
) -> tuple[float, list[Explained]]:
    """The live share of the tiles, and every kernel. Raises EinfuseError for a spec without a loop over pairs."""
    if isinstance(attention.program, ScanProgram):
        raise EinfuseError(f"{attention.name} is a scan: its cost is linear in the length, and not counted here")
    sizes = example_sizes(attention.cascade, Shape(*shape, (64, 64), 1)) | widths
    plans = [plan for plan, _ in attention.emitted("triton", dtype, backward, sizes)]
    step = next((f for p in plans for f in p.folds), None)
    tile, live = plans[0].tile, 1.0
    if step is not None and tile is not None:
        live = mapped(attention.cascade, shape, (tile.block, step.step), lambda: attention).tiles.live_fraction
    out = []
    for plan in plans:
        shapes = {t.name: tuple(int(evaluate(a, sizes)) for a in t.axes) for t in attention.cascade.inputs if not t.param}
        shapes |= {t.name: _like(t.name, attention, shapes, sizes, t.axes) for t in plan.tensors if t.name not in shapes}
        ranks = {f.rank: live for f in plan.folds}
        out.append(Explained(plan, cost(plan, sizes, shapes, ranks)))
    return live, out


def walked(attention: einfuse.Attention, shape: tuple[int, int, int, int], plan: KernelPlan) -> str:
    """The lists that pairs are walked by instead of the tiles of the forward kernel, in words; empty where they are not."""
    step = next((f.step for f in plan.folds), 0)
    return (
        mapped(attention.cascade, shape, (plan.tile.block, step), lambda: attention).walk
        if step and plan.tile is not None
        else ""
    )


def _like(
    name: str, attention: einfuse.Attention, shapes: dict[str, tuple[int, ...]], sizes: dict[str, int], axes: int
) -> tuple[int, ...]:
    """The shape of an output, statistic or gradient: of the input it is the gradient of, else of the queries."""
    of = name.removeprefix("d_")
    if of in shapes and len(shapes[of]) == axes:
        return shapes[of]
    query = next((s for s in shapes.values() if len(s) >= axes), ())
    return query[:axes]


def _json(attention: einfuse.Attention, live: float, kernels: list[Explained]) -> dict[str, screen.Json]:
    rows: list[screen.Json] = []
    for k in kernels:
        bounds: dict[str, screen.Json] = {}
        for name in DEVICES:
            resource, seconds = k.bound(name)
            bounds[name] = {"resource": resource, "seconds": seconds}
        rows.append({"name": k.plan.name, **asdict(k.cost.work), "bytes": k.cost.bytes, "bounds": bounds})
    scores: list[screen.Json] = [asdict(s) for s in attention.scores()]
    return {
        "name": attention.name,
        "scores": scores,
        "live_fraction": live,
        "state_bytes": state_bytes(kernels[0].plan),
        "kernels": rows,
    }


def _short(n: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} P"
