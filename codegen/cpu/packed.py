"""Prints the packing of a fold: buffers of packed values, the function that packs one block, and what a body sees of a block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from einfuse.codegen.cpu import forms
from einfuse.codegen.cpu.access import offset, scalar_index
from einfuse.codegen.cpu.forms import Form
from einfuse.codegen.cpu.functions import Ref
from einfuse.codegen.cpu.pack import Dependence, Packing
from einfuse.codegen.cpu.region import block_size, element_of, local_place, print_nodes
from einfuse.codegen.cpu.schedule import Nest, arrange, kept, node_reads, paired_by, settle
from einfuse.codegen.cpu.text import Extent, Place, Scope, Text
from einfuse.codegen.plan import Arg, Coordinate, Fold, KernelPlan, Load, Op, Store, Value


@dataclass(slots=True)
class PackPrinter:
    """Prints what `Packing` collected; ``size`` is the text of the folded rank's size."""

    text: Text
    scope: Scope
    plan: KernelPlan
    fold: Fold
    size: str
    dependence: Dependence
    tensors: Mapping[str, Arg]
    packing: Packing
    pointers: dict[tuple[str, Form], tuple[str, str]] = field(default_factory=dict)  # packed value, form -> pointer, row
    keep: str = ""
    need: str = ""

    def printed(self) -> None:
        """The function that packs one block, and the one that packs what is not yet packed for this ambient point."""
        text, rank, step = self.text, self.fold.rank, self.fold.step
        self.buffers()
        keys = self.keys()
        state = text.unique(f"{rank}_blocks")
        text.buffers.append(f"Packed<{len(keys)}> {state};")
        text.buffers.append(f"{state}.of = scratch.take<int32_t>({self.keep} ? ceil_div({self.size}, {step}) : 0);")
        text.buffers.append(
            f"if (scratch.ok) std::memset({state}.of, 0, 4 * ({self.keep} ? ceil_div({self.size}, {step}) : 0));"
        )
        text.line(f"{state}.at({', '.join(keys)});")
        pack = text.fresh(f"pack_{rank}")
        lo, count, at = text.fresh(f"{rank}_lo"), text.fresh(f"{rank}_n"), text.fresh(f"{rank}_place")
        with text.block(f"const auto {pack} = [&](const long {lo}, const long {count}, const long {at})", "};"):
            self.block(lo, count, at)
        self.need = text.fresh(f"need_{rank}")
        with text.block(f"const auto {self.need} = [&](const long from, const long n) -> long", "};"):
            text.line(f"if (!{self.keep}) {{ {pack}(from, n, 0); return 0; }}")
            if self.spare:
                text.line(f"if (from % 2) {{ {pack}(from, n, padded({self.size})); return padded({self.size}); }}")
            text.line(f"{state}.need(from, n, {step}L, {self.size}, {pack});")
            text.line("return from;")

    @property
    def recipes(self) -> dict[str, Op]:
        return self.scope.recipes | {op.out.name: op for op in self.packing.ops if not isinstance(op, Store)}

    @property
    def spare(self) -> bool:
        """Whether pairs of rows are packed: a block that starts between the rows of a pair is packed on its own, behind the others."""
        return any(form == "columns" for _, form in self.packing.forms)

    def buffers(self) -> None:
        text, rank, step = self.text, self.fold.rank, self.fold.step
        room = text.room(rank, self.size, step)
        self.keep, held = text.unique(f"keep_{rank}"), text.unique(f"{rank}_held")
        widths = [
            self.width(v) if form not in forms.PAIRED else f"{self.width(v)} / 2" for (_, form), v in self.packing.forms.items()
        ]
        bytes_ = f"({' + '.join(widths)}) * {self.size} * (long)sizeof(T)"
        text.buffers.append("// blocks stay packed where several tiles read them and they fit in 64 MiB")
        text.buffers.append(f"const bool {self.keep} = shared_tiles && {bytes_} <= 64L << 20;")
        most = f"padded({self.size}) + {step}" if self.spare else self.size
        text.buffers.append(f"const long {held} = {self.keep} ? {most} : {room};")
        for (name, form), v in self.packing.forms.items():
            kind, width = element_of(v) if form == "plain" else forms.element_of(form), self.width(v)
            if "turned" in form:
                row = text.unique(f"{name}_row")
                text.buffers.append(
                    f"const long {row} = (ceil_div({held}, W) | 1) * W;  // an odd number of vectors: no two rows collide"
                )
                count = f"pairs({width}) * {row}" if form in forms.PAIRED else f"{width} * {row}"
            else:
                row = "1" if len(v.dims) == 1 else f"{width} / 2" if form == "rows" else width
                count = f"{f'pairs({held})' if form in forms.PAIRED else f'padded({held})'} * {width}"
            self.pointers[name, form] = text.buffer(f"{name}_{'packed' if form == 'plain' else form}", kind, count), row

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

    def block(self, lo: str, count: str, at: str) -> None:
        """Packs the points from ``lo`` on to the place ``at`` of every buffer."""
        text, packing, rank = self.text, self.packing, self.fold.rank
        scope = self.scope.inner()
        extent = scope.extents[rank] = Extent(lo, count, self.fold.step, text.room(rank, self.size, self.fold.step))
        scope.scalars[f"size {rank}.lo"] = Ref(lo, "int")
        values = {v.name: v for v in packing.forms.values()}
        scope.recipes |= {op.out.name: op for op in packing.ops if not isinstance(op, Store)}
        own = {op.out.name: op for op in packing.ops if not isinstance(op, Store)}
        coordinates = {n: op for n, op in scope.recipes.items() if isinstance(op, Coordinate)}
        # what earlier regions computed lies in their buffers: repeating it could need what they did not keep
        nodes, _ = settle(arrange(packing.ops, self.plan.order), {**coordinates, **own}, set(values))
        for node in nodes:
            for v in kept(node):
                uses = packing.of(v.name)
                if uses and uses <= forms.PAIRED and paired_by(node, v) and not any(v.name in node_reads(n) for n in nodes):
                    scope.forms[v.name, "rows"] = (
                        self.place(scope, v, "rows", at) if "rows" in uses else forms.rows_of(text, scope, v)
                    )
                elif "plain" in uses:
                    scope.places[v.name] = self.place(scope, v, "plain", at)
                elif v.dims:
                    pointer = text.buffer(f"{v.name}_block", element_of(v), block_size(scope, v.dims))
                    scope.places[v.name] = local_place(scope, v, pointer)
        gathers = self.gathers()
        before = next((n for n, x in enumerate(nodes) if isinstance(x, Nest) and any(y in gathers for y in x.ops)), len(nodes))
        print_nodes(text, scope, nodes[:before], self.tensors)
        self.ask(gathers, scope, lo, count)
        print_nodes(text, scope, nodes[before:], self.tensors)
        for (_, form), v in packing.forms.items():
            if form != "plain" and not (form == "rows" and (v.name, form) in scope.forms):
                to = self.place(scope, v, form, at)
                forms.fill(text, scope, v, form, to.pointer, to.row, (extent, scope.extents[v.dims[1]]))
                scope.forms[v.name, form] = to

    def gathers(self) -> list[Load]:
        """The loads of whole rows whose places are computed: pages of a cache, chosen tokens."""
        rank, recipes = self.fold.rank, self.recipes
        loads = [op for op in self.packing.ops if isinstance(op, Load) and len(op.out.dims) == 2 and op.out.dims[0] == rank]
        return [x for x in loads if any(i.dims == (rank,) and not isinstance(recipes.get(i.name), Coordinate) for i in x.index)]

    def ask(self, gathers: list[Load], scope: Scope, lo: str, count: str) -> None:
        """Asks the machine for the rows that are gathered, all before the first is read: it cannot guess where the next one lies."""
        rows, r = [], self.text.fresh("row")
        for op in gathers:
            tensor = scope.scalars[f"tensor {op.tensor}"].text
            index = [self.row_index(scope, i, f"({lo} + {r})", r) for i in op.index]
            if None in index:
                continue
            terms = [(n, scalar_index(Ref(x, "int"), tensor, n, op.clamp)) for n, x in enumerate(index) if x]
            rows.append(f"ask({offset(tensor, terms)}, {scope.extents[op.out.dims[1]].count});")
        if rows:
            with self.text.block(f"for (long {r} = 0; {r} < {count}; ++{r})"):
                for line in rows:
                    self.text.line(line)

    def row_index(self, scope: Scope, i: Value, here: str, r: str) -> str | None:
        """An index of the row at ``here``, the ``r``-th of the block: a number of all rows, one held of each; "" along the row, None where
        it would be computed again."""
        if not i.dims:
            return scope.scalars[i.name].text if i.name in scope.scalars else None
        if isinstance(self.recipes.get(i.name), Coordinate):
            return here if i.dims == (self.fold.rank,) else ""
        return (
            f"(long)*({scope.places[i.name].pointer} + {r})" if i.dims == (self.fold.rank,) and i.name in scope.places else None
        )

    def place(self, scope: Scope, v: Value, form: Form, at: str) -> Place:
        """A packed block in a form, as seen from the block at ``at``. Prints its pointer."""
        pointer, row = self.pointers[v.name, form]
        name = self.text.fresh(f"{v.name}_block" if form == "plain" else f"{v.name}_{form}")
        kind = element_of(v) if form == "plain" else forms.element_of(form)
        if "turned" in form:
            self.text.line(f"{kind}* const {name} = {pointer} + {at};")
            return Place(name, v.dims[::-1], (row, "1"))
        here = f"{at} / 2" if form == "columns" else at
        self.text.line(f"{kind}* const {name} = {pointer} + {here} * {row};")
        if form in forms.PAIRED:
            return Place(name, v.dims, (row, "1"))
        assert len(v.dims) == 1 or v.dims[0] == self.fold.rank, "the folded rank comes before the features"
        return replace(local_place(scope, v, pointer), pointer=name)
