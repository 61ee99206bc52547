"""Prints a fold: states, what is packed, one function for each different body, and the loops over its phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from einfuse.codegen.cpu.buffers import Assignment, assign
from einfuse.codegen.cpu.functions import Ref, number
from einfuse.codegen.cpu.loops import TYPES, fill
from einfuse.codegen.cpu.pack import Dependence, Packing, shared
from einfuse.codegen.cpu.region import block_size, element_of, local_place, operands, print_nodes
from einfuse.codegen.cpu.schedule import Nest, Node, Product, arrange, settle
from einfuse.codegen.cpu.text import Extent, Place, Scope, Text
from einfuse.codegen.plan import Arg, Coordinate, Dot, Fold, KernelPlan, Map, Op, Phase, Region, Store, Value


@dataclass(slots=True)
class _Body:
    """A different body of the fold: its nodes, buffers, and the packed values it reads (body name -> packed value)."""

    nodes: list[Node]
    updates: tuple[Value, ...]
    buffers: Assignment
    packed: dict[str, Value]
    full: bool
    coordinates: dict[str, Op]
    function: str = ""


class FoldPrinter:
    """Prints one fold into ``text``; afterwards the states' final values are in ``scope``."""

    def __init__(
        self, text: Text, scope: Scope, plan: KernelPlan, fold: Fold, dependence: Dependence, tensors: Mapping[str, Arg]
    ) -> None:
        self.text, self.scope, self.plan, self.fold = text, scope, plan, fold
        self.dependence, self.tensors = dependence, tensors
        self.packing = Packing(fold.rank)
        self.size = str(fold.size) if isinstance(fold.size, int) else scope.scalars[f"size {fold.size}"].text
        self.pointers: dict[tuple[str, bool], tuple[str, str]] = {}  # packed value, transposed -> pointer, row
        self.keep = ""

    def printed(self) -> None:
        text, fold = self.text, self.fold
        for s in fold.states:
            self.dependence.bind(s.value)
        bodies: dict[tuple[Region, tuple[Value, ...], bool], _Body] = {}
        for p in fold.phases:
            key = (p.body, p.updates, p.label == "full")
            if key not in bodies:
                bodies[key] = self.analysed(p)
        self.states()
        if self.packing.plain or self.packing.turned:
            self.pack()
        for body in bodies.values():
            body.function = text.fresh(f"{'full' if body.full else 'masked'}_{fold.rank}")
            self.body(body)
        for n, p in enumerate(fold.phases):
            self.phase(n, p, bodies[p.body, p.updates, p.label == "full"].function)

    # ----------------------------------------------------------------------------------------------------------- analysis

    def analysed(self, phase: Phase) -> _Body:
        rank, order = self.fold.rank, self.plan.order
        region, updates = self.normal(phase)
        self.dependence.learn(region, rank)
        facts = self.dependence.facts
        all_ops = {op.out.name: op for op in region if not isinstance(op, Store)}
        free = {n: op for n, op in all_ops.items() if facts[n].free}
        common = {n for n, op in free.items() if shared(op, facts, rank)}
        rest = [op for op in region if isinstance(op, Store) or op.out.name not in common]
        coordinates = {n: op for n, op in self.scope.recipes.items() if isinstance(op, Coordinate)}
        nodes, read = settle(arrange(rest, order), {**coordinates, **all_ops}, {u.name for u in updates})
        packed = {n: self.packing.add(all_ops[n].out, free) for n in sorted(read & common)}  # type: ignore[union-attr]
        turned, plain = _uses(nodes, rank)
        for name, value in packed.items():
            if name in turned:
                self.packing.turned[value.name] = value
            if name in plain or name not in turned:
                self.packing.plain[value.name] = value
        buffers = assign(nodes, self.fold.states, updates)
        mine = {n: op for n, op in all_ops.items() if isinstance(op, Coordinate)}
        return _Body(nodes, updates, buffers, packed, phase.label == "full", mine)

    def normal(self, phase: Phase) -> tuple[Region, tuple[Value, ...]]:
        """The body with every update a value of its own, shaped like the state; products accumulate onto blocks of their shape."""
        region: list[Op] = []
        for op in phase.body:
            if isinstance(op, Dot) and op.acc is not None and op.acc.dims != op.out.dims:
                acc = Value(f"{op.out.name}.from", op.out.dims, "float")
                region.append(Map(acc, "copy", (op.acc,)))
                op = replace(op, acc=acc)
            region.append(op)
        defined = {op.out.name for op in region if not isinstance(op, Store)}
        updates = []
        for s, u in zip(self.fold.states, phase.updates, strict=True):
            if u.name != s.value.name and (u.name not in defined or u.dims != s.value.dims or u in updates):
                new = Value(f"{s.value.name}.next", s.value.dims, s.value.dtype)
                region.append(Map(new, "copy", (u,)))
                u = new
            updates.append(u)
        return tuple(region), tuple(updates)

    # ------------------------------------------------------------------------------------------------------------- states

    def states(self) -> None:
        text, scope = self.text, self.scope
        for s in self.fold.states:
            v, start = s.value, number(s.init, s.value.dtype)
            if not v.dims:
                name = text.fresh(v.name)
                text.line(f"{TYPES[v.dtype][0]} {name} = {start};")
                scope.scalars[v.name] = Ref(name, v.dtype)
                continue
            name = text.buffer(v.name, element_of(v), block_size(scope, v.dims))
            scope.places[v.name] = local_place(scope, v, name)
            for line in fill(text, scope, scope.places[v.name], start, v):
                text.line(line)

    # ------------------------------------------------------------------------------------------------------------ packing

    def pack(self) -> None:
        """The function that packs one block, and the one that packs what is not yet packed for this ambient point."""
        text, fold, packing = self.text, self.fold, self.packing
        rank = fold.rank
        self.keep = text.unique(f"keep_{rank}")
        widths = [self.width(v) for v in (*packing.plain.values(), *packing.turned.values())]
        text.buffers.append("// blocks stay packed where several tiles read them and they fit in 64 MiB")
        text.buffers.append(
            f"const bool {self.keep} = shared_tiles && ({' + '.join(widths)}) * {self.size} * (long)sizeof(T) <= 64L << 20;"
        )
        held = text.unique(f"{rank}_held")
        text.buffers.append(f"const long {held} = {self.keep} ? {self.size} : {fold.step};")
        for v in packing.plain.values():
            row = "1" if len(v.dims) == 1 else self.width(v)
            pointer = text.buffer(f"{v.name}_packed", element_of(v), f"padded({held}) * {self.width(v)}")
            self.pointers[v.name, False] = pointer, row
        for v in packing.turned.values():
            row = text.unique(f"{v.name}_row")
            text.buffers.append(f"const long {row} = (ceil_div({held}, W) | 1) * W;  // an odd number of vectors: no two rows collide")
            self.pointers[v.name, True] = text.buffer(f"{v.name}_turned", element_of(v), f"{self.width(v)} * {row}"), row
        keys = self.keys()
        state = text.unique(f"{rank}_blocks")
        text.buffers.append(f"Packed<{len(keys)}> {state};")
        text.buffers.append(f"{state}.of = scratch.take<int32_t>({self.keep} ? ceil_div({self.size}, {fold.step}) : 0);")
        text.buffers.append(f"if (scratch.ok) std::memset({state}.of, 0, 4 * ({self.keep} ? ceil_div({self.size}, {fold.step}) : 0));")
        text.line(f"{state}.at({', '.join(keys)});")
        pack = text.fresh(f"pack_{rank}")
        lo, count = text.fresh(f"{rank}_lo"), text.fresh(f"{rank}_n")
        with text.block(f"const auto {pack} = [&](const long {lo}, const long {count})", "};"):
            self.pack_block(lo, count)
        self.need = text.fresh(f"need_{rank}")
        with text.block(f"const auto {self.need} = [&](const long from, const long n)", "};"):
            text.line(f"if ({self.keep}) {state}.need(from, n, {fold.step}L, {self.size}, {pack});")
            text.line(f"else {pack}(from, n);")

    def width(self, v: Value) -> str:
        """Elements a coordinate of the folded rank takes."""
        inner = [d for d in v.dims if d != self.fold.rank]
        return block_size(self.scope, tuple(inner)) if inner else "1"

    def keys(self) -> list[str]:
        """The ambient numbers that what is packed depends on."""
        out: list[str] = []
        facts = self.dependence.facts
        for v in self.packing.outer.values():
            ambient = facts[v.name].ambient
            if ambient and not v.dims:
                out.append(self.scope.scalars[v.name].text)
            elif ambient:
                out += [self.scope.scalars[f"coordinate {r}"].text for r in sorted(ambient)]
        return list(dict.fromkeys(out))

    def pack_block(self, lo: str, count: str) -> None:
        text, packing, rank = self.text, self.packing, self.fold.rank
        scope = self.scope.inner()
        scope.extents[rank] = Extent(lo, count, self.fold.step)
        scope.scalars[f"size {rank}.lo"] = Ref(lo, "int")
        wanted = {**packing.plain, **packing.turned}
        recipes = {op.out.name: op for op in packing.ops if not isinstance(op, Store)}
        scope.recipes |= recipes
        nodes, _ = settle(arrange(packing.ops, self.plan.order), scope.recipes, set(wanted))
        for node in nodes:
            for v in kept(node):
                if v.name in packing.plain:
                    scope.places[v.name] = self.packed_place(scope, v, lo)
                elif v.dims:
                    pointer = text.buffer(f"{v.name}_block", element_of(v), block_size(scope, v.dims))
                    scope.places[v.name] = local_place(scope, v, pointer)
        print_nodes(text, scope, nodes, self.tensors)
        for name in packing.turned:
            pointer, row = self.pointers[name, True]
            source = scope.places[name]
            at = f"{pointer} + ({self.keep} ? {lo} : 0)"
            inner = next(scope.extents[d].count for d in source.dims if d != rank)
            text.line(f"transpose({at}, {row}, {source.pointer}, {source.row}, {count}, {inner});")

    def packed_place(self, scope: Scope, v: Value, lo: str) -> Place:
        """A packed block, as seen from the block that starts at ``lo``."""
        pointer, row = self.pointers[v.name, False]
        local = local_place(scope, v, pointer)
        name = self.text.fresh(v.name)
        self.text.line(f"{element_of(v)}* const {name} = {pointer} + ({self.keep} ? {lo} : 0) * {row};")
        assert len(v.dims) == 1 or v.dims[0] == self.fold.rank, "the folded rank comes before the features"
        return replace(local, pointer=name)

    # -------------------------------------------------------------------------------------------------------------- bodies

    def body(self, body: _Body) -> None:
        text, fold, rank = self.text, self.fold, self.fold.rank
        scope = self.scope.inner()
        lo, count = text.fresh(f"{rank}_lo"), text.fresh(f"{rank}_n")
        scope.extents[rank] = Extent(lo, count, fold.step)
        scope.scalars[f"size {rank}.lo"] = Ref(lo, "int")
        scope.recipes |= body.coordinates
        with text.block(f"const auto {body.function} = [&](const long {lo})", "};"):
            most = f"{fold.step}" if body.full else f"minimum({fold.step}L, {self.size} - {lo})"
            text.line(f"const long {count} = {most};")
            self.bring(body, scope, lo, count)
            self.places(body, scope)
            print_nodes(text, scope, body.nodes, self.tensors)
            self.finish(body, scope)

    def bring(self, body: _Body, scope: Scope, lo: str, count: str) -> None:
        """The packed values of the block."""
        if body.packed:
            self.text.line(f"{self.need}({lo}, {count});")
        for name, value in body.packed.items():
            own = replace(value, name=name)
            if (value.name, True) in self.pointers:
                pointer, row = self.pointers[value.name, True]
                local = self.text.fresh(f"{name}_t")
                self.text.line(f"const T* const {local} = {pointer} + ({self.keep} ? {lo} : 0);")
                scope.turned[name] = Place(local, own.dims[::-1], (row, "1"))
            if (value.name, False) in self.pointers:
                scope.places[name] = self.packed_place(scope, value, lo)

    def places(self, body: _Body, scope: Scope) -> None:
        text = self.text
        for node in body.nodes:
            for v in kept(node):
                if v.name in body.buffers.alias:
                    scope.places[v.name] = scope.places[body.buffers.alias[v.name]]
                elif v.dims:
                    key = (v.dims, v.dtype == "float", body.buffers.slot[v.name], self.fold.step)
                    if key not in text.pool:
                        text.pool[key] = text.buffer(f"block_{'_'.join(v.dims)}", element_of(v), block_size(scope, v.dims))
                    scope.places[v.name] = local_place(scope, v, text.pool[key])

    def finish(self, body: _Body, scope: Scope) -> None:
        """The states take their next values."""
        text = self.text
        for s, u in zip(self.fold.states, body.updates, strict=True):
            if u.name == s.value.name or body.buffers.alias.get(u.name) == s.value.name:
                continue
            if not u.dims:
                text.line(f"{scope.scalars[s.value.name].text} = {scope.scalars[u.name].text};")
                continue
            to, source = scope.places[s.value.name], scope.places[u.name]
            names = text.names.child()
            at = [names.fresh(f"{d}_") for d in u.dims]
            head = ""
            for n, (d, x) in enumerate(zip(u.dims, at, strict=True)):
                step = f"{x} += W" if n == len(at) - 1 else f"++{x}"
                head += f"for (long {x} = 0; {x} < {scope.extents[d].count}; {step}) "
            place = " + ".join(x if k == "1" else f"{x} * {k}" for x, k in zip(at, to.steps, strict=True))
            text.line(f"{head}store({to.pointer} + {place}, load({source.pointer} + {place}));")

    # -------------------------------------------------------------------------------------------------------------- phases

    def phase(self, n: int, phase: Phase, function: str) -> None:
        text, fold, scope = self.text, self.fold, self.scope
        rank = fold.rank
        lo = text.names.child().fresh(f"{rank}_lo")
        if not fold.tabulated:
            start, stop = scope.scalars[phase.lo.name].text, scope.scalars[phase.hi.name].text
            text.line(f"for (long {lo} = {start}; {lo} < {stop}; {lo} += {fold.step}) {function}({lo});")
            return
        row = "0"
        for r in fold.table_ranks:
            block = next(b for b in self.plan.ambient if b.rank == r)
            extent = str(block.size) if isinstance(block.size, int) else scope.scalars[f"size {block.size}"].text
            row = f"({row} * {extent} + {scope.scalars[f'coordinate {r}'].text})" if row != "0" else scope.scalars[f"coordinate {r}"].text
        tiles = scope.scalars.get("tiles")
        if tiles is not None:
            row = f"{row} * {tiles.text} + {scope.scalars['tile'].text}"
        table = scope.scalars[f"table {rank}"].text
        n_, at = text.fresh("n"), text.fresh("row")
        text.line(f"const long {at} = ({row}) * 2 + {n};  // {phase.label} blocks of this tile")
        text.line(
            f"for (long {n_} = 0; {n_} < {table}_count[{at}]; ++{n_}) "
            f"{function}((long){table}_block[{at} * {table}_longest + {n_}] * {fold.step});"
        )


def kept(node: Node) -> tuple[Value, ...]:
    """The values a node writes to buffers."""
    if isinstance(node, Nest):
        return tuple(v for v in node.kept if v.dims)
    return (node.op.out,) if isinstance(node, Product) else ()


def _uses(nodes: Sequence[Node], rank: str) -> tuple[set[str], set[str]]:
    """The values that products want transposed, and those that anything wants as they are."""
    turned: set[str] = set()
    plain: set[str] = set()
    for node in nodes:
        if isinstance(node, Product):
            a, b, _, y = operands(node.op)
            plain.add(a.name)
            (plain if b.dims == (node.op.rank, y) else turned).add(b.name)
            if node.op.acc is not None:
                plain.add(node.op.acc.name)
        elif isinstance(node, Nest):
            computed = {op.out.name for op in node.ops if not isinstance(op, Store)}
            from einfuse.codegen.cpu.schedule import node_reads

            plain |= node_reads(node) - computed
    return turned, plain
