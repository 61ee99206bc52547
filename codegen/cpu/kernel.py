"""Prints a plan as one C++ function: arguments, the queue of work, and per item the steps of the plan."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from einfuse.codegen.cost import row_work
from einfuse.codegen.cpu import forms
from einfuse.codegen.cpu.access import ELEMENTS
from einfuse.codegen.cpu.asking import ask
from einfuse.codegen.cpu.buffers import assign
from einfuse.codegen.cpu.folds import FoldPrinter
from einfuse.codegen.cpu.functions import Ref
from einfuse.codegen.cpu.merged import sequential
from einfuse.codegen.cpu.names import identifier
from einfuse.codegen.cpu.pack import Dependence
from einfuse.codegen.cpu.region import block_size, element_of, local_place, print_nodes
from einfuse.codegen.cpu.repeats import Repeats
from einfuse.codegen.cpu.schedule import Node, arrange, kept, paired_by, settle
from einfuse.codegen.cpu.text import Extent, Scope, Text
from einfuse.codegen.order import largest_last
from einfuse.codegen.plan import Coordinate, Fold, Kept, KernelPlan, Region, Store, operations, read_by, table_ranks
from einfuse.codegen.rows import row_products
from einfuse.codegen.steady import steady

THREAD = 4e6  # operations that are worth a thread: waking one takes as long as a tenth of them


class KernelPrinter:
    """Prints one plan, as the passes of `source` leave it. The order of arguments is that of `arguments`."""

    def __init__(self, plan: KernelPlan) -> None:
        self.plan = plan
        self.text, self.scope = Text(), Scope(narrow=paired(plan), row_products=frozenset(row_products(plan)))
        self.tensors = plan.named
        self.dependence = Dependence(self.plan)
        self.tables = table_ranks(self.plan)
        self.steady = steady(self.plan)
        self.repeats: Repeats | None = None
        self.only_paired = forms.only_paired(plan) if self.scope.narrow else frozenset[str]()

    def printed(self) -> list[str]:
        text = self.text
        self.arguments()
        body = Text(text.names, indent=3, threadwide=text.threadwide)
        self.text = body
        self.item()
        lines = text.lines
        for line in self.start():
            lines.append(f"  {line}")
        lines += ["#pragma omp parallel num_threads(n_threads)", "  {", "    Scratch scratch;"]
        lines += [f"    {b}" for b in body.buffers]
        if sequential(self.plan):
            lines += ["    long run, past;  // its tiles run in order: each adds to what those before it wrote"]
            lines += ["    while (scratch.ok && queue.next(run, past)) for (; run < past; ++run)"]
            lines += ["    for (long item = run * run_items; item < (run + 1) * run_items; ++item) {"]
        else:
            lines += ["    long item, last;", "    while (scratch.ok && queue.next(item, last)) for (; item < last; ++item) {"]
        lines += body.lines
        lines += ["    }", "  }", "  return queue.finished() ? 0 : 1;"]
        return lines

    # ---------------------------------------------------------------------------------------------------------- arguments

    def arguments(self) -> None:
        text, scope, plan = self.text, self.scope, self.plan
        text.indent = 1
        axis = 0
        for n, t in enumerate(plan.tensors):
            name = self.fresh_tensor(t.name, t.axes)
            scope.scalars[f"tensor {t.name}"] = Ref(name, "int")
            const = "" if t.out else "const "
            element = f"{const}{ELEMENTS[t.storage]}*"
            text.line(f"{element} const {name} = ({element})ptrs[{n}];")
            if t.axes:
                text.line(f"const long {', '.join(f'{name}_s{a} = strides[{axis + a}]' for a in range(t.axes))};")
            axis += t.axes
        for n, rank in enumerate(self.tables):
            name = text.names.fresh(f"{rank}_table")
            scope.scalars[f"table {rank}"] = Ref(name, "int")
            at = len(plan.tensors) + 2 * n
            text.line(f"const int32_t* const {name}_count = (const int32_t*)ptrs[{at}];")
            text.line(f"const int32_t* const {name}_block = (const int32_t*)ptrs[{at + 1}];")
        at = 0
        for name in plan.sizes:
            local = text.names.fresh(name)
            text.line(f"const long {local} = sizes[{at}];")
            scope.scalars[f"size {name}"] = Ref(local, "int")
            at += 1
        for t in plan.tensors:
            name = scope.scalars[f"tensor {t.name}"].text
            clamped = clamped_axes(plan, t.name)
            if clamped:
                text.line(f"const long {', '.join(f'{name}_n{a} = sizes[{at + a}]' for a in clamped)};")
            at += t.axes
        for rank in self.tables:
            text.line(f"const long {scope.scalars[f'table {rank}'].text}_longest = sizes[{at}];")
            at += 1
        for n, (name, dtype) in enumerate(plan.params):
            kind = {"float": "T", "int": "long", "bool": "bool"}[dtype]
            local = text.names.fresh(name)
            text.line(f"const {kind} {local} = ({kind})params[{n}];")
            scope.scalars[f"param {name}"] = Ref(local, dtype)

    def fresh_tensor(self, name: str, axes: int) -> str:
        """A name whose strides' and extents' names are free too."""
        taken = self.text.names.taken
        base = identifier(name)
        while base in taken or any(f"{base}_{k}{a}" in taken for k in "sn" for a in range(axes)):
            base += "_"
        taken |= {base, *(f"{base}_{k}{a}" for k in "sn" for a in range(axes))}
        return base

    def extent(self, size: int | str) -> str:
        return str(size) if isinstance(size, int) else self.scope.scalars[f"size {size}"].text

    def start(self) -> list[str]:
        """How many items there are, and how many threads share them."""
        plan = self.plan
        tile = plan.tile
        extents = [self.extent(b.size) for b in plan.ambient]
        points = " * ".join(extents) or "1"
        turn = next((n for n, b in enumerate(plan.ambient) if b.turns), len(extents))
        lines = [f"const long tiles = {f'ceil_div({self.extent(tile.size)}, {tile.block})' if tile else '1'};"]
        lines.append(f"const long points = {points};")
        lines.append("if (points <= 0 || tiles <= 0) return 0;")
        if sequential(plan):
            lines.append(f"const long run_items = {' * '.join(['tiles', *extents[turn:]])};")
        lines.append(f"const bool shared_tiles = {'true' if extents[turn:] else 'tiles > 1'};")
        whole = "points * tiles / run_items" if sequential(plan) else "points * tiles"
        lines.append(f"const double work = points * {self.work()};  // operations at most: no mask is looked at")
        lines.append(f"const long most_threads = (long)minimum((T)1e6, (T)(1 + work / {THREAD:.0e}));")
        lines.append(f"const long n_threads = maximum(1L, minimum(minimum((long)threads, most_threads), {whole}));")
        together = "1" if sequential(plan) else "points" if self.steady else "tiles"
        lines.append(f"Queue queue({whole}, {together}, n_threads);")
        return lines

    def work(self) -> str:
        """The operations of one ambient point, as text."""
        rows = self.extent(self.plan.tile.size) if self.plan.tile else "1"
        terms = []
        for fold, work in row_work(self.plan):
            operations = work.products + 2 * work.arithmetic + 16 * work.special
            if operations:
                terms.append(f"{operations:.0f}." + (f" * {self.extent(fold.size)}" if fold else ""))
        return f"(double){rows} * ({' + '.join(terms) or '1.'})"

    # --------------------------------------------------------------------------------------------------------------- items

    def item(self) -> None:
        text, scope, plan = self.text, self.scope, self.plan
        rest = "item"
        if plan.tile:
            rank, size = plan.tile.rank, self.extent(plan.tile.size)
            lo, hi, count = (text.names.fresh(f"{rank}_{k}") for k in ("lo", "hi", "n"))
            tile = text.names.fresh("tile_at")
            at = "tiles - 1 - item % tiles" if largest_last(plan) and not sequential(plan) else "item % tiles"
            text.line(f"const long {tile} = {at}, {lo} = {tile} * {plan.tile.block};")
            text.line(f"const long {hi} = minimum({lo} + {plan.tile.block}, {size}), {count} = {hi} - {lo};")
            scope.extents[rank] = Extent(lo, count, plan.tile.block, text.room(rank, size, plan.tile.block))
            scope.scalars |= {f"size {rank}.lo": Ref(lo, "int"), f"size {rank}.hi": Ref(hi, "int")}
            scope.scalars |= {"tile": Ref(tile, "int"), "tiles": Ref("tiles", "int")}
            rest = "(item / tiles)"
        ambient = {b.rank: b.size for b in plan.ambient}
        order = self.steady.order if self.steady else tuple(ambient)
        for n, rank in reversed(list(enumerate(order))):
            at = text.names.fresh(rank)
            text.line(f"const long {at} = {rest if n == 0 else f'{rest} % {self.extent(ambient[rank])}'};")
            rest = f"({rest} / {self.extent(ambient[rank])})"
            scope.scalars[f"coordinate {rank}"] = Ref(at, "int")
        for f in plan.features:
            whole = isinstance(f.size, int) and f.size == f.block
            scope.extents[f.rank] = Extent("0", self.extent(f.size), f.block, str(f.block), whole, counted=not whole)
        for k in plan.kept:
            self.rows(k)
        known = len(text.lines)
        self.repeats = Repeats(text, scope, self.steady) if self.steady else None
        for n, step in enumerate(plan.steps):
            text.line()
            match step:
                case Fold():
                    if n == 1:
                        ask(text, scope, plan)
                    text.line(f"// fold over {step.rank} in blocks of {step.step}")
                    self.region(step.bounds, read_by(step) | self.read_after(n))
                    FoldPrinter(text, scope, plan, step, self.dependence, self.tensors).printed()
                case tuple():
                    self.region(step, self.read_after(n))
        text.lines[known:known] = [f"{'  ' * text.indent}{line}" for line in (self.repeats.lines if self.repeats else ())]

    def rows(self, kept: Kept) -> None:
        """A tensor that is a buffer of the thread: rows of the tile, each with all coordinates of a folded rank."""
        text, scope = self.text, self.scope
        size, tile = self.extent(kept.size), scope.extents[kept.tile]
        buffer = text.buffer(kept.tensor, "T", f"{tile.room} * padded({size})", f"rows of {kept.tile} that several loops read")
        name = self.fresh_tensor(f"{buffer}_rows", 2)
        text.line(f"const long {name}_s0 = padded({size}), {name}_s1 = 1;")
        text.line(
            f"T* const {name} = (T*)((intptr_t){buffer} - {tile.start} * {name}_s0 * (long)sizeof(T));  // from row 0 of all"
        )
        scope.scalars[f"tensor {kept.tensor}"] = Ref(name, "int")

    def read_after(self, n: int) -> set[str]:
        return read_by(*self.plan.steps[n + 1 :])

    def region(self, region: Region, wanted: set[str]) -> None:
        """Straight-line code of an item; values that later steps read stay in buffers of their own."""
        text, scope = self.text, self.scope
        self.dependence.learn(region)
        coordinates = {n: op for n, op in scope.recipes.items() if isinstance(op, Coordinate)}
        own = {op.out.name: op for op in region if not isinstance(op, Store)}
        scope.recipes |= own
        same = self.steady
        arranged = arrange(region, self.plan.order, same.of) if same else arrange(region, self.plan.order)
        nodes, _ = settle(arranged, {**coordinates, **own}, wanted)
        conditions = [self.repeats.condition(n) if self.repeats else None for n in nodes]
        self.places(nodes, conditions)
        for node, when in zip(nodes, conditions, strict=True):
            with text.block(f"if ({when})") if when else nullcontext():
                print_nodes(text, scope, [node], self.tensors)

    def places(self, nodes: Sequence[Node], conditions: Sequence[str | None]) -> None:
        """A buffer for every value that is kept: its own where it outlasts the item or is read by a later step, else a shared one."""
        text, scope = self.text, self.scope
        slots = assign(nodes, (), ()).slot if self.repeats else {}
        for node, when in zip(nodes, conditions, strict=True):
            for v in kept(node):
                if v.name in self.only_paired and paired_by(node, v):
                    scope.forms[v.name, "rows"] = forms.rows_of(text, scope, v)
                    continue
                count, key = block_size(scope, v.dims), (v.dims, v.dtype == "float", slots.get(v.name))
                if when is not None or v.name not in slots:
                    pointer = text.buffer(v.name, element_of(v), count)
                else:
                    pointer = text.pool.get(key) or text.buffer(f"block_{'_'.join(v.dims)}", element_of(v), count)
                    text.pool[key] = pointer
                scope.places[v.name] = local_place(scope, v, pointer)


def paired(plan: KernelPlan) -> bool:
    """Whether products of the plan may take bf16 operands."""
    return plan.compute == "f32" and plan.narrow == "bf16"


def clamped_axes(plan: KernelPlan, tensor: str) -> tuple[int, ...]:
    axes: set[int] = set()
    for op in operations(plan):
        if getattr(op, "tensor", None) == tensor:
            axes |= set(getattr(op, "clamp", ()))
    return tuple(sorted(axes))
