"""Prints a plan as a kernel: signature, the way from the program id to a point and a tile, and the loops of the folds.

Programs are numbered with the tile fastest, so that those which read the same keys and values run at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from einfuse.codegen.order import largest_last
from einfuse.codegen.plan import (
    FLOAT8,
    Block,
    Coordinate,
    Dot,
    Fold,
    KernelPlan,
    Load,
    Phase,
    Reduce,
    Store,
    operations,
    read_by,
    table_ranks,
)
from einfuse.codegen.targets import TARGETS
from einfuse.codegen.triton.body import Body, Ref, number
from einfuse.codegen.triton.descriptors import described
from einfuse.codegen.triton.layout import Layout
from einfuse.codegen.triton.memory import wide_stride, widened
from einfuse.codegen.triton.names import Names, identifier
from einfuse.codegen.triton.ops import print_region
from einfuse.codegen.triton.options import Options
from einfuse.codegen.triton.points import Points, points
from einfuse.codegen.triton.simplify import computed_with


@dataclass(frozen=True, slots=True)
class Argument:
    """A parameter of the kernel and the expression that the launch function passes for it (none: the one before is starred)."""

    name: str
    passed: str
    constexpr: bool = False
    specialised: bool = True


@dataclass(frozen=True, slots=True)
class Printed:
    """A printed kernel: what the template lays out."""

    name: str
    arguments: tuple[Argument, ...]
    lines: tuple[str, ...]
    helpers: frozenset[str]
    described: tuple[str, ...] = ()


class Kernel:
    """Prints one plan, as the passes of `simplify` leave it. `arguments` fills the printer's table of names; `text` then walks the steps."""

    def __init__(self, plan: KernelPlan, options: Options) -> None:
        self.plan, self.options = plan, options
        self.layout = Layout(self.plan)
        self.arguments: list[Argument] = []
        self.points = points(self.plan)
        multiplies = any(isinstance(op, Dot) and self.layout.multiplies(op) for op in operations(self.plan))
        wanted = options.descriptors and self.points is None and multiplies  # a copy into shared memory serves products alone
        self.described = described(self.plan, self.layout) if wanted else {}
        self.helpers: set[str] = set()
        self.name = identifier(plan.name) + ("_described" if self.described else "")
        names = Names()
        names.taken.add(self.name)
        # of 16-bit plans those of fp16 alone have products of fp32 blocks, of no more significant bits than tf32 has (`overflow`)
        amd = TARGETS[options.target].amd
        short = self.plan.narrow == "f16" and options.precision == "ieee" and not amd
        precision = "tf32" if short else options.precision
        packs = self.plan.narrow in ("bf16", "f16") and not amd
        self.body = Body(self.plan, self.layout, names, self.helpers, computed_with(self.plan), precision, packs)
        self.body.described = self.described

    def printed(self) -> Printed:
        self.signature()
        if self.points is not None:
            self.run(self.points)
        else:
            self.program()
            self.steps()
        lines = tuple(line for n, line in enumerate(self.body.lines) if line or (n and self.body.lines[n - 1]))
        return Printed(
            self.name, tuple(self.arguments), lines, frozenset(self.helpers), tuple(map(self.condition, self.described))
        )

    def condition(self, tensor: str) -> str:
        """When a tensor can come as a descriptor."""
        t = self.described[tensor]
        extents = ", ".join(_extent(self.layout.size(r)) for r in (t.rows, t.columns))
        return f'_describable(tensors["{tensor}"], {extents})'

    def steps(self) -> None:
        for n, step in enumerate(self.plan.steps):
            self.body.line()
            elsewhere = read_by(*self.plan.steps[:n], *self.plan.steps[n + 1 :])
            match step:
                case Fold():
                    self.fold(step, elsewhere)
                case tuple():
                    print_region(self.body, step, elsewhere)

    # --------------------------------------------------------------------------------------------------------- signature

    def argument(self, key: str, name: str, passed: str, constexpr: bool = False, specialised: bool = True) -> str:
        """A new parameter, known to the printer as ``key``."""
        text = self.body.names.fresh(name)
        self.arguments.append(Argument(text, passed, constexpr, specialised))
        if key:
            self.body.env[key] = Ref(text, (), "int", nonnegative=True)
        return text

    def signature(self) -> None:
        plan = self.plan
        tensors = tuple(dict.fromkeys(plan.tensors))  # a statement may be an output for several gradients
        for t in tensors:
            if t.name in self.described:
                known = self.described[t.name]
                shape = known.shape(*(self.layout.blocks[r] for r in (known.rows, known.columns)))
                passed = f'TensorDescriptor.from_tensor(tensors["{t.name}"], {shape})'
                self.argument(f"tensor {t.name}", f"{t.name}_desc", passed)
                continue
            view = ".view(torch.uint8)" if t.storage in ("bool", *FLOAT8) else ""
            self.argument(f"tensor {t.name}", f"{t.name}_ptr", f'tensors["{t.name}"]{view}')
        tabulated = table_ranks(plan)
        for rank in tabulated:
            for table in (f"{rank}_count", f"{rank}_block"):
                self.argument(f"tensor {table}", f"{table}_ptr", f'tensors["{table}"]')
        for t in (t for t in tensors if t.name not in self.described):
            for axis in range(t.axes):
                passed = "" if axis else f'*tensors["{t.name}"].stride()'
                self.argument(f"stride {t.name} {axis}", f"{t.name}_s{axis}", passed)
        for tensor, axis in self.clamped():
            self.argument(f"extent {tensor} {axis}", f"{tensor}_n{axis}", f'tensors["{tensor}"].shape[{axis}]')
        for rank in tabulated:
            self.argument(f"longest {rank}", f"{rank}_longest", f'tensors["{rank}_block"].shape[-1]')
        for name in plan.sizes:
            self.argument(f"size {name}", name, f'sizes["{name}"]')
        if self.points is not None:
            self.argument("each", "each", "each", specialised=False)
        self.parameters()
        self.comparisons()
        for rank, block in self.layout.blocks.items():
            self.argument(f"block {rank}", f"BLOCK_{rank.upper()}", str(block), constexpr=True)

    def comparisons(self) -> None:
        """What is known of sizes at launch: a kernel of its own for either case."""
        for one, other in dict.fromkeys(op.enough for op in operations(self.plan) if isinstance(op, Reduce) and op.instead):
            passed = f"{_extent(one)} >= {_extent(other)}"
            self.argument(f"enough {(one, other)}", f"{one}_COVERS_{other}", passed, constexpr=True)

    def parameters(self) -> None:
        """Numbers. In fp64 a float comes in a tensor of one element, because a kernel's own float arguments are fp32."""
        device = f'tensors["{self.plan.tensors[0].name}"].device' if self.plan.tensors else '"cpu"'
        for name, dtype in self.plan.params:
            kind = {"float": "float", "int": "int", "bool": "int"}[dtype]
            passed = f'{kind}(params["{name}"])'
            if dtype == "float" and self.plan.compute == "f64":
                passed = f"torch.tensor([{passed}], dtype=torch.float64, device={device})"
                text = self.argument("", f"{name}_ptr", passed)
                self.body.env[f"param {name}"] = Ref(f"tl.load({text})", (), dtype)
                continue
            text = self.argument("", name, passed, specialised=dtype == "float")
            self.body.env[f"param {name}"] = Ref(f"({text} != 0)" if dtype == "bool" else text, (), dtype)

    def clamped(self) -> list[tuple[str, int]]:
        loads = [op for op in operations(self.plan) if isinstance(op, Load)]
        return list(dict.fromkeys((op.tensor, axis) for op in loads for axis in op.clamp))

    # ----------------------------------------------------------------------------------------------------------- program

    def program(self) -> None:
        """From the program id to the ambient coordinates and the tile."""
        body, plan = self.body, self.plan
        rest = body.assign("program", "tl.program_id(0)")
        if plan.tile:
            rest = self.tile(rest)
        self.coordinates(body, plan.ambient, rest)
        self.features()

    def run(self, points: Points) -> None:
        """A program that walks a run of points: what they share, then a loop."""
        body = self.body
        total = body.assign("points", " * ".join(body.extent(b.size) for b in points.run))
        runs, each = body.assign("runs", f"tl.cdiv({total}, each)"), body.env["each"].text
        program = body.assign("program", "tl.program_id(0)")
        start = body.assign("first", f"{program} % {runs} * {each}")
        if points.fixed:
            self.coordinates(body, points.fixed, body.assign("rest", f"{program} // {runs}"))
        self.features()
        body.line()
        once, every = points.split(self.plan.outer)
        print_region(body, once, read_by(every))
        point = body.names.fresh("point")
        body.line()
        body.line(f"for {point} in tl.range({start}, tl.minimum({start} + {each}, {total})):")
        inner = body.nested()
        self.coordinates(inner, points.run, point)
        print_region(inner, every)

    def coordinates(self, body: Body, blocks: tuple[Block, ...], rest: str) -> None:
        """The coordinates of ambient ranks from the number of their point, the last rank fastest."""
        for n, block in reversed(list(enumerate(blocks))):
            text = rest if n == 0 else f"{rest} % {self.body.extent(block.size)}"
            at = body.assign(block.rank, text)
            body.env[f"coordinate {block.rank}"] = Ref(at, (), "int", nonnegative=True)
            if n:
                rest = body.assign("rest", f"{rest} // {self.body.extent(block.size)}")

    def features(self) -> None:
        """The coordinates of every block."""
        body = self.body
        for rank in self.layout.blocks:
            if rank in self.layout.folds:
                self.local(rank, f"{rank}_at")
            elif self.layout.is_feature(rank):
                at = self.local(rank, rank)
                body.env[f"coordinate {rank}"] = Ref(at, (rank,), "int", nonnegative=True, rank=rank)
                body.upper[rank] = self.body.extent(self.layout.size(rank)) if self.layout.padded(rank) else None

    def local(self, rank: str, name: str) -> str:
        text = self.body.assign(name, f"tl.arange(0, {self.body.width(rank)})")
        self.body.env[f"local {rank}"] = Ref(text, (rank,), "int")
        return text

    def tile(self, program: str) -> str:
        """The program's tile; a block wider than the tile reaches into the next one, where nothing is read or written."""
        body, tile = self.body, self.plan.tile
        assert tile is not None, "only a plan with a tile has tile coordinates"
        rank, size, wide = tile.rank, self.body.extent(tile.size), self.body.width(tile.rank)
        held = wide if tile.block == self.layout.blocks[rank] else str(tile.block)
        tiles = body.assign("tiles", f"tl.cdiv({size}, {held})")
        body.env["grid tiles"] = Ref(tiles, (), "int")
        at = f"{program} % {tiles}" if self.plan.ambient else program
        descending = largest_last(self.plan) if self.options.descending is None else self.options.descending
        at = body.assign("tile", f"{tiles} - 1 - {at}" if descending else at)
        body.env["grid tile"] = Ref(at, (), "int")
        rest = body.assign("point", f"{program} // {tiles}") if self.plan.ambient else program
        start = body.assign(f"{rank}_lo", f"{at} * {held}")
        end = body.assign(f"{rank}_hi", f"tl.minimum({start} + {held}, {size})")
        local = self.local(rank, f"{rank}_at")
        coordinates = body.assign(rank, f"{start} + {local}")
        body.env[f"coordinate {rank}"] = Ref(coordinates, (rank,), "int", nonnegative=True, rank=rank)
        body.env[f"end {rank}"] = Ref(end, (), "int", nonnegative=True)
        body.starts[rank], body.upper[rank] = start, end
        return rest

    # --------------------------------------------------------------------------------------------------------------- folds

    def fold(self, fold: Fold, elsewhere: set[str]) -> None:
        body = self.body
        print_region(body, fold.bounds, elsewhere | read_by(replace(fold, bounds=())))
        for state in fold.states:
            v = state.value
            init = number(bool(state.init) if v.dtype == "bool" else state.init, v.dtype)
            text = body.assign(v.name, f"tl.full({body.shape(v.dims)}, {init}, {body.type(v.dtype)})")
            body.env[v.name] = Ref(text, v.dims, v.dtype)
        self.widen(fold)
        row = self.table_row(fold) if fold.tabulated else None
        for n, phase in enumerate(fold.phases):
            if row is None:
                self.counted(fold, phase)
            else:
                self.listed(fold, phase, f"({row} * 2 + {n})")

    def widen(self, fold: Fold) -> None:
        """Print the 64-bit forms of the loops' scalar indices once, before the loops."""
        for phase in fold.phases:
            for load in (op for op in phase.body if isinstance(op, Load) and op.tensor not in self.described):
                for value in load.index:
                    ref = self.body.env.get(value.name)
                    if ref is not None and not ref.dims:
                        widened(self.body, ref)

    def table_row(self, fold: Fold) -> str:
        """The program's row of the block tables: its point over the ranks of the table, and its tile."""
        env, row = self.body.env, "0"
        for block in self.plan.ambient:
            if block.rank in fold.table_ranks:
                at = f"tl.cast({env[f'coordinate {block.rank}'].text}, tl.int64)"
                row = at if row == "0" else f"({row} * {self.body.extent(block.size)} + {at})"
        if self.plan.tile:
            row = f"{row} * {env['grid tiles'].text} + {env['grid tile'].text}"
        return self.body.assign("row", row)

    def counted(self, fold: Fold, phase: Phase) -> None:
        """A loop from ``lo`` to ``hi``."""
        body = self.body
        lo, hi = body.ref(phase.lo).text, body.ref(phase.hi).text
        if lo == hi:
            return
        upper = None if phase.label == "full" or fold.even else self.body.extent(fold.size)
        start = body.names.fresh(f"{fold.rank}_lo")
        body.line()
        walked = self.walk(fold, phase, lo)
        body.line(f"for {start} in tl.range({lo}, {hi}, {body.width(fold.rank)}):  # {phase.label}")
        inner = body.inner(fold.rank, start, upper)
        inner.walked |= walked
        self.iteration(fold, phase, inner, start)
        for (tensor, axis), offset in walked.items():
            inner.line(f"{offset} += {inner.width(fold.rank)} * {wide_stride(inner, tensor, axis)}")
        body.names.taken.discard(start)

    def walk(self, fold: Fold, phase: Phase, lo: str) -> dict[tuple[str, int], str]:
        """Print how far into each tensor the first block begins, in 64 bits, for the axes that the loop walks along; gives their names.

        The loop carries these: where they are computed from its 32-bit index, LLVM widens that, and the assembler waits for every wgmma.
        """
        body, rank = self.body, fold.rank
        coordinates = {op.out.name for op in phase.body if isinstance(op, Coordinate) and op.rank == rank}
        touched = [
            (op.tensor, op.index) for op in phase.body if isinstance(op, Load | Store) and op.tensor not in self.described
        ]
        axes = dict.fromkeys((t, axis) for t, index in touched for axis, v in enumerate(index) if v.name in coordinates)
        return {(t, axis): body.assign(f"{t}_{rank}", f"{lo} * {wide_stride(body, t, axis)}") for t, axis in axes}

    def listed(self, fold: Fold, phase: Phase, row: str) -> None:
        """A loop over the live blocks of the tile."""
        body, rank = self.body, fold.rank
        count, block = (body.env[f"tensor {rank}_{t}"].text for t in ("count", "block"))
        upper = None if phase.label == "full" or fold.even else self.body.extent(fold.size)
        step = body.names.fresh("n")
        body.line()
        body.line(f"for {step} in tl.range(0, tl.load({count} + {row})):  # {phase.label}")
        inner = body.inner(rank, "", upper)
        place = f"{block} + {row} * {body.env[f'longest {rank}'].text} + {step}"
        start = inner.assign(f"{rank}_lo", f"tl.load({place}) * {body.width(rank)}")
        inner.starts[rank] = start
        self.iteration(fold, phase, inner, start)
        body.names.taken.discard(step)

    def iteration(self, fold: Fold, phase: Phase, inner: Body, start: str) -> None:
        """One block of a phase, and the states' values at its end."""
        rank = fold.rank
        at = inner.assign(rank, f"{start} + {inner.env[f'local {rank}'].text}")
        inner.env[f"coordinate {rank}"] = Ref(at, (rank,), "int", nonnegative=True, rank=rank)
        print_region(inner, phase.body, {u.name for u in phase.updates})
        targets = [inner.ref(s.value).text for s in fold.states]
        updates = [
            inner.block(inner.ref(u), s.value.dims, s.value.dtype) for u, s in zip(phase.updates, fold.states, strict=True)
        ]
        for n, text in enumerate(updates):
            if text in targets[:n]:  # another state's old value, overwritten above
                updates[n] = inner.names.fresh(f"old_{text}")
                inner.line(f"{updates[n]} = {text}")
        for target, text in zip(targets, updates, strict=True):
            if target != text:
                inner.line(f"{target} = {text}")


def _extent(size: int | str) -> str:
    return str(size) if isinstance(size, int) else f'sizes["{size}"]'
