"""Prints a fold: states, what is packed, one function for each different body, and the loops over its phases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from einfuse.codegen.cpu import diagonals, forms
from einfuse.codegen.cpu.alive import Mask, everywhere, limited, mask, noted
from einfuse.codegen.cpu.buffers import Assignment, assign, stores
from einfuse.codegen.cpu.forms import FORMS, Form, operands
from einfuse.codegen.cpu.functions import Ref, number
from einfuse.codegen.cpu.loops import TYPES, fill
from einfuse.codegen.cpu.pack import Dependence, Packing, shared
from einfuse.codegen.cpu.packed import PackPrinter
from einfuse.codegen.cpu.region import block_size, element_of, local_place, print_nodes
from einfuse.codegen.cpu.schedule import Nest, Node, Product, arrange, kept, node_reads, paired_by, settle
from einfuse.codegen.cpu.streamed import Streams
from einfuse.codegen.cpu.text import Extent, Place, Scope, Text
from einfuse.codegen.plan import Arg, Const, Coordinate, Dot, Fold, KernelPlan, Map, Op, Phase, Region, Store, Value
from einfuse.ir import Scalar


@dataclass(slots=True)
class _Body:
    """A different body of the fold: its nodes, buffers, and the packed values it reads (body name -> packed value)."""

    nodes: list[Node]
    updates: tuple[Value, ...]
    buffers: Assignment
    packed: dict[str, Value]
    full: bool
    coordinates: dict[str, Op]
    uses: dict[str, set[Form]]
    mask: Mask | None = None
    whole: _Body | None = None
    """The body of a block at all points of which the mask holds, where nothing tells that beforehand."""
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
        self.packs = PackPrinter(text, scope, plan, fold, self.size, dependence, tensors, self.packing)
        self.streams = Streams(text, scope, plan, fold, self.size, tensors, self.packing)

    def printed(self) -> None:
        text, fold = self.text, self.fold
        for s in fold.states:
            self.dependence.bind(s.value)
        bodies: dict[tuple[Region, tuple[Value, ...], bool], _Body] = {}
        for p in fold.phases:
            key = (p.body, p.updates, p.label == "full")
            if key not in bodies:
                bodies[key] = self.analysed(p)
        if not fold.tabulated and not any(p.label == "full" for p in fold.phases):
            for p in fold.phases:
                self.told_apart(p, bodies[p.body, p.updates, False])
        self.states()
        every = [x for body in bodies.values() for x in (body.whole, body) if x is not None]
        if self.packing.forms:
            self.packs.printed()
            self.streams.printed(self.product_operands(every))
        for body in every:
            self.hoist(body)
        for body in every:
            body.function = text.fresh(f"{'full' if body.full else 'masked'}_{fold.rank}")
            self.body(body)
        for n, p in enumerate(fold.phases):
            self.phase(n, p, bodies[p.body, p.updates, p.label == "full"])

    def product_operands(self, bodies: Iterable[_Body]) -> set[str]:
        """The packed values that nothing but products reads, as their right operands."""
        right: set[str] = set()
        other: set[str] = set()
        for body in bodies:
            for node in body.nodes:
                mine = {operands(node.op)[1].name} if isinstance(node, Product) and not _both(node.op) else set()
                right |= {body.packed[n].name for n in mine & body.packed.keys()}
                other |= {body.packed[n].name for n in (node_reads(node) - mine) & body.packed.keys()}
            other |= {body.packed[u.name].name for u in body.updates if u.name in body.packed}
        return right - other

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
        found = None if phase.label == "full" else self.mask(rest, updates)
        nest = self.along_diagonals(rest, region, all_ops)
        apart = {v.name for v in nest.kept} if nest else set()
        arranged = arrange([op for op in rest if isinstance(op, Store) or op.out.name not in apart], order)
        arranged = diagonals.placed(arranged, nest) if nest else arranged
        nodes, read = settle(
            noted(arranged, found.live) if found else arranged,
            {n: op for n, op in {**coordinates, **all_ops}.items() if n not in apart},
            {u.name for u in updates},
        )
        nodes = limited(nodes, found) if found else nodes
        packed = {n: self.packing.add(all_ops[n].out, free) for n in sorted(read & common)}
        uses = _uses(nodes, updates, self.scope.narrow)
        for name, value in packed.items():
            self.packing.want(value, uses[name])
        buffers = assign(nodes, self.fold.states, updates)
        mine: dict[str, Op] = {n: op for n, op in all_ops.items() if isinstance(op, Coordinate)}
        return _Body(nodes, updates, buffers, packed, phase.label == "full", mine, uses, found)

    def told_apart(self, phase: Phase, body: _Body) -> None:
        """Most blocks of a list lie behind all of its rows, which shows when their mask is looked at: these have a body without one."""
        if body.mask is not None and body.whole is None and not stores(body.nodes):
            region, updates = everywhere(phase.body, phase.updates, body.mask.live)
            body.whole = self.analysed(replace(phase, label="full", body=region, updates=updates))

    def along_diagonals(self, ops: Sequence[Op], region: Region, inside: Mapping[str, Op]) -> Nest | None:
        """What the operations read that is one along the diagonals of tile and fold."""
        tile = self.plan.tile
        if tile is None:
            return None
        pair = (tile.rank, self.fold.rank)
        known = diagonals.steps(region, pair, diagonals.steps(self.plan.outer, pair, {}))
        return diagonals.along(ops, inside, pair, known)

    def mask(self, ops: Sequence[Op], updates: tuple[Value, ...]) -> Mask | None:
        """The mask over tile and fold whose dead points the body may skip."""
        tile = self.plan.tile
        if tile is None:
            return None
        scalars = self.scope.scalars
        own = {op.out.name: op.value for op in ops if isinstance(op, Const)}

        def constant(v: Value) -> Scalar | None:
            return own[v.name] if v.name in own else scalars[v.name].literal if v.name in scalars else None

        return mask(ops, (tile.rank, self.fold.rank), updates, constant)

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

    # -------------------------------------------------------------------------------------------------------------- bodies

    def hoist(self, body: _Body) -> None:
        """Copies for products of what does not change in the loop are made before it."""
        carried = {s.value.name for s in self.fold.states}
        for node in body.nodes:
            if isinstance(node, Product):
                a, b, _, _ = operands(node.op)
                for v, form in zip((a, b), forms.wanted(node.op, self.scope.narrow), strict=True):
                    if v.name in self.scope.places and v.name not in carried:
                        forms.place(self.text, self.scope, v, form)

    def body(self, body: _Body) -> None:
        text, fold, rank = self.text, self.fold, self.fold.rank
        scope = self.scope.inner()
        lo, count, end = text.fresh(f"{rank}_lo"), text.fresh(f"{rank}_n"), text.fresh(f"{rank}_end")
        scope.extents[rank] = Extent(lo, count, fold.step, text.room(rank, self.size, fold.step), whole=body.full)
        scope.scalars[f"size {rank}.lo"] = Ref(lo, "int")
        scope.recipes |= body.coordinates
        with text.block(f"const auto {body.function} = [&](const long {lo}{'' if body.full else f', const long {end}'})", "};"):
            text.line(f"const long {count} = {fold.step if body.full else f'minimum({fold.step}L, {end} - {lo})'};")
            self.bring(body, scope, lo, count)
            self.places(body, scope)
            self.alive(body, scope, lo)
            print_nodes(text, scope, body.nodes, self.tensors)
            self.finish(body, scope)

    def bring(self, body: _Body, scope: Scope, lo: str, count: str) -> None:
        """The packed values of the block."""
        if not body.packed:
            return
        at = self.text.fresh(f"{self.fold.rank}_place")
        streamed = self.streams.when
        need = f"{self.packs.need}({lo}, {count})"
        self.text.line(f"const long {at} = {f'{streamed} ? 0 : ' if streamed else ''}{need};")
        if streamed:
            right = (operands(node.op)[1].name for node in body.nodes if isinstance(node, Product))
            order = [n for n in dict.fromkeys(right) if n in body.packed]
            scope.there |= zip(order, self.streams.operands([body.packed[n] for n in order], lo), strict=True)
        for name, value in body.packed.items():
            for form in FORMS:
                if (value.name, form) not in self.packs.pointers:
                    continue
                place = self.packs.place(scope, value, form, at)
                if form == "plain":
                    scope.places[name] = place
                else:
                    scope.forms[name, form] = place

    def places(self, body: _Body, scope: Scope) -> None:
        for node in body.nodes:
            if isinstance(node, Nest) and node.diagonal:
                scope.places |= {v.name: self.strip(scope, n, v) for n, v in enumerate(node.kept)}
            for v in kept(node):
                uses = body.uses.get(v.name, {"plain"})
                if "rows" in uses and paired_by(node, v):
                    count, row = forms.shape("rows", *(scope.extents[d] for d in v.dims))
                    pointer = self.pooled(
                        ("rows", v.dims, body.buffers.slot.get(v.name, v.name)), f"{v.name}_rows", "Pair", f"{count} * {row}"
                    )
                    scope.forms[v.name, "rows"] = Place(pointer, v.dims, (row, "1"))
                    if uses == {"rows"} and v.name not in body.buffers.alias:
                        continue
                if v.name in body.buffers.alias:
                    scope.places[v.name] = scope.places[body.buffers.alias[v.name]]
                elif v.dims:
                    key = (v.dims, v.dtype == "float", body.buffers.slot[v.name], self.fold.step)
                    pointer = self.pooled(key, f"block_{'_'.join(v.dims)}", element_of(v), block_size(scope, v.dims))
                    scope.places[v.name] = local_place(scope, v, pointer)

    def strip(self, scope: Scope, number: int, v: Value) -> Place:
        """The place of a value that is one along diagonals: its rows begin one before the other."""
        rows, columns = (scope.extents[d] for d in v.dims)
        most = f"padded({columns.most}) + padded({rows.most})"
        pointer = self.pooled(
            ("diagonals", v.dims, v.dtype == "float", number, self.fold.step), "diagonals", element_of(v), most
        )
        return Place(f"{pointer} + ({rows.count} - 1)", v.dims, ("-1", "1"), v.dtype)

    def alive(self, body: _Body, scope: Scope, lo: str) -> None:
        """Where what the body notes about its mask is held."""
        seen = next((node.seen for node in body.nodes if isinstance(node, Nest) and node.seen), None)
        if seen is None:
            return
        key = ("alive", seen.dims, self.fold.step)
        if key not in self.text.pool:
            self.text.pool[key] = self.text.unique(f"alive_{'_'.join(seen.dims)}")
            most = ", ".join(str(scope.extents[d].most) for d in seen.dims)
            self.text.buffers.append(f"Alive<{most}> {self.text.pool[key]};")
        scope.alive, scope.streamed = self.text.pool[key], self.streams.when
        scope.whole = "" if body.whole is None else f"{body.whole.function}({lo})"

    def pooled(self, key: tuple[object, ...], name: str, element: str, count: str) -> str:
        """The buffer of a key, shared by the bodies of all folds."""
        if key not in self.text.pool:
            self.text.pool[key] = self.text.buffer(name, element, count)
        return self.text.pool[key]

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

    def phase(self, n: int, phase: Phase, body: _Body) -> None:
        text, fold, scope = self.text, self.fold, self.scope
        rank = fold.rank
        lo = text.names.child().fresh(f"{rank}_lo")
        if not fold.tabulated:
            start, stop = scope.scalars[phase.lo.name].text, scope.scalars[phase.hi.name].text
            end = self.size if stores(body.nodes) else f"minimum({stop}, {self.size})"  # no point at or beyond stop is alive
            call = f"{body.function}({lo}{'' if body.full else f', {end}'});"
            text.line(f"for (long {lo} = {start}; {lo} < {stop}; {lo} += {fold.step}) {call}")
            return
        row = "0"
        for r in fold.table_ranks:
            block = next(b for b in self.plan.ambient if b.rank == r)
            extent = str(block.size) if isinstance(block.size, int) else scope.scalars[f"size {block.size}"].text
            row = (
                f"({row} * {extent} + {scope.scalars[f'coordinate {r}'].text})"
                if row != "0"
                else scope.scalars[f"coordinate {r}"].text
            )
        tiles = scope.scalars.get("tiles")
        if tiles is not None:
            row = f"{row} * {tiles.text} + {scope.scalars['tile'].text}"
        table = scope.scalars[f"table {rank}"].text
        n_, at = text.fresh("n"), text.fresh("row")
        text.line(f"const long {at} = ({row}) * 2 + {n};  // {phase.label} blocks of this tile")
        text.line(
            f"for (long {n_} = 0; {n_} < {table}_count[{at}]; ++{n_}) {body.function}"
            f"((long){table}_block[{at} * {table}_longest + {n_}] * {fold.step}{'' if body.full else f', {self.size}'});"
        )


def _both(op: Dot) -> bool:
    return op.a.name == op.b.name


def _uses(nodes: Sequence[Node], updates: Sequence[Value], narrow: bool) -> dict[str, set[Form]]:
    """The forms in which each value is read."""
    out: dict[str, set[Form]] = {u.name: {"plain"} for u in updates}
    for node in nodes:
        if isinstance(node, Product):
            a, b, _, _ = operands(node.op)
            for v, form in zip((a, b), forms.wanted(node.op, narrow), strict=True):
                out.setdefault(v.name, set()).add(form)
            for v in filter(None, (node.op.acc, node.op.where)):
                out.setdefault(v.name, set()).add("plain")
        else:
            for name in node_reads(node):
                out.setdefault(name, set()).add("plain")
    return out
