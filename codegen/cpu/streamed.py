"""Right operands of products that are read where the caller holds them: few rows, one tile, and rows whose elements lie together.

even      k[b, h, j, d]                      from k[b, h, lo] on, a stride apart
listed    k[page[b, j // P], j % P, h, d]    the places of a block's rows, computed before it is read, and those of the next
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from einfuse.codegen.cpu.access import offset, scalar_index, stride
from einfuse.codegen.cpu.functions import Ref
from einfuse.codegen.cpu.pack import Packing
from einfuse.codegen.cpu.region import block_size, element_of, local_place, print_nodes
from einfuse.codegen.cpu.schedule import arrange, kept, settle
from einfuse.codegen.cpu.text import Extent, Scope, Streamed, Text
from einfuse.codegen.plan import Arg, Coordinate, Fold, KernelPlan, Load, Op, Store, Value, reads

FEW = 16  # rows of a tile for which right operands of products are read in place


@dataclass(slots=True)
class Streams:
    """What of `Packing` a fold may read in place. ``when`` is the text of a truth value, empty where it never does."""

    text: Text
    scope: Scope
    plan: KernelPlan
    fold: Fold
    size: str
    tensors: Mapping[str, Arg]
    packing: Packing
    when: str = ""
    lists: dict[str, str] = field(default_factory=dict)  # packed value -> the places of its rows
    need: str = ""  # what makes these for a block

    def printed(self, products_only: set[str]) -> None:
        """When nothing is packed, and what lists the places of rows; ``products_only`` are the packed values that nothing else reads."""
        loads = {v.name: self.direct(v) for v in self.packing.forms.values() if v.name in products_only}
        found = {n: op for n, op in loads.items() if op is not None}
        tile = self.plan.tile
        if tile is None or not all(v.name in found for v in self.packing.forms.values()):
            return
        self.when = self.text.fresh(f"streamed_{self.fold.rank}")
        count = self.scope.extents[tile.rank].count
        unit = " && ".join(dict.fromkeys(f"{self.tensor(op)}_s{self.along(op, op.out.dims[1])} == 1" for op in found.values()))
        self.text.line(f"const bool {self.when} = !shared_tiles && {count} <= {FEW} && {unit};")
        listed = {n: op for n, op in found.items() if self.computed(op)}
        if listed:
            self.listing(listed)

    def direct(self, v: Value) -> Load | None:
        """The load that a packed value is, if it is nothing else: whole vectors of neighbours, in the type that products take."""
        op = self.own.get(v.name)
        if not isinstance(op, Load) or op.where is not None or len(v.dims) != 2 or self.scope.extents[v.dims[1]].most % 32:
            return None
        wanted = "bf16" if self.scope.narrow else self.plan.compute
        if self.tensors[op.tensor].storage != wanted:
            return None
        rank, inner = v.dims
        across = [n for n, i in enumerate(op.index) if inner in i.dims]
        rows = [i for i in op.index if rank in i.dims]
        if len(across) != 1 or not rows or any(i.dims != (rank,) for i in rows) or across[0] in op.clamp:
            return None
        return op if isinstance(self.recipes.get(op.index[across[0]].name), Coordinate) else None

    def computed(self, op: Load) -> list[Value]:
        """The indices of a direct load that change from row to row, unless it is one that counts them: then its rows are evenly apart."""
        rank = self.fold.rank
        rows = [(n, i) for n, i in enumerate(op.index) if i.dims == (rank,)]
        even = len(rows) == 1 and rows[0][0] not in op.clamp and isinstance(self.recipes.get(rows[0][1].name), Coordinate)
        return [] if even else [i for _, i in rows]

    @property
    def own(self) -> dict[str, Op]:
        return {op.out.name: op for op in self.packing.ops if not isinstance(op, Store)}

    @property
    def recipes(self) -> dict[str, Op]:
        return self.scope.recipes | self.own

    def tensor(self, op: Load) -> str:
        return self.scope.scalars[f"tensor {op.tensor}"].text

    def along(self, op: Load, rank: str) -> int:
        """The axis of a direct load that runs along a rank."""
        return next(n for n, i in enumerate(op.index) if rank in i.dims)

    def listing(self, loads: Mapping[str, Load]) -> None:
        """The function that lists the places of the rows of a block, and the one that has it done for a block and the next."""
        text, rank, step = self.text, self.fold.rank, self.fold.step
        own, wanted = self.own, {i.name for op in loads.values() for i in self.computed(op)}
        lo, count, at = text.fresh(f"{rank}_lo"), text.fresh(f"{rank}_n"), text.fresh(f"{rank}_place")
        make, state = text.fresh(f"list_{rank}"), text.fresh(f"{rank}_lists")
        for name in loads:
            self.lists[name] = text.buffer(f"{name}_at", "long", f"2 * {step}")
        with text.block(f"const auto {make} = [&](const long {lo}, const long {count}, const long {at})", "};"):
            scope = self.scope.inner()
            scope.extents[rank] = Extent(lo, count, step, text.room(rank, self.size, step))
            scope.scalars[f"size {rank}.lo"] = Ref(lo, "int")
            coordinates = {n: op for n, op in scope.recipes.items() if isinstance(op, Coordinate)}
            scope.recipes |= own
            nodes, _ = settle(arrange(self.before(wanted), self.plan.order), {**coordinates, **own}, wanted)
            for node in nodes:
                for v in kept(node):
                    scope.places[v.name] = local_place(
                        scope, v, text.buffer(f"{v.name}_row", element_of(v), block_size(scope, v.dims))
                    )
            print_nodes(text, scope, nodes, self.tensors)
            with text.block(f"for (long r = 0; r < {count}; ++r)"):
                for name, op in loads.items():
                    terms = [
                        (n, self.row(scope, op, n, f"({lo} + r)"))
                        for n, i in enumerate(op.index)
                        if op.out.dims[1] not in i.dims
                    ]
                    text.line(f"{self.lists[name]}[{at} + r] = {offset(self.tensor(op), terms).partition(' + ')[2]};")
        text.line(f"Lists {state};")
        self.need = f"{state}.need({{}}, {step}L, {self.size}, {make})"

    def before(self, wanted: set[str]) -> list[Op]:
        """The operations that compute these values."""
        own, needed = self.own, set[str]()
        left = list(wanted)
        while left:
            name = left.pop()
            if name in own and name not in needed:
                needed.add(name)
                left += [v.name for v in reads(own[name])]
        return [op for op in self.packing.ops if not isinstance(op, Store) and op.out.name in needed]

    def row(self, scope: Scope, op: Load, axis: int, here: str) -> str:
        """The index of a row along an axis."""
        i = op.index[axis]
        if not i.dims:
            text = scope.scalars[i.name].text
        elif isinstance(self.recipes.get(i.name), Coordinate):
            text = here
        else:
            text = f"(long)*({scope.places[i.name].pointer} + r)"
        return scalar_index(Ref(text, "int"), self.tensor(op), axis, op.clamp)

    def operands(self, order: list[Value], lo: str) -> list[Streamed]:
        """The operands of a block that begins at ``lo``, in the order they are read: while one is, the machine is asked for the next."""
        text, step = self.text, self.fold.step
        half = ""
        if self.need:
            half = text.fresh(f"{self.fold.rank}_listed")
            text.line(f"const long {half} = {self.when} ? {self.need.format(lo)} : 0;")
        rows: list[str] = []
        for v in order:
            op = self.direct(v)
            assert op is not None, "streamed folds read nothing but direct loads"
            name = text.fresh(f"{v.name}_there")
            if v.name in self.lists:
                place = f"listed({self.tensor(op)}, {self.lists[v.name]} + {half})"
            else:
                axis = self.along(op, self.fold.rank)
                scalars = [(n, self.row(self.scope, op, n, "")) for n, i in enumerate(op.index) if not i.dims]
                place = f"even({offset(self.tensor(op), [*scalars, (axis, lo)])}, {stride(self.tensor(op), axis)})"
            text.line(f"const auto {name} = {place};")
            rows.append(name)
        out: list[Streamed] = []
        for n, name in enumerate(rows):
            after = (n + 1) % len(rows)  # behind the last comes the first of the next block
            v, there, first = order[after], rows[after], 0 if after else step
            if first and v.name in self.lists:
                op = self.direct(v)
                assert op is not None, "streamed folds read nothing but direct loads"
                there, first = f"listed({self.tensor(op)}, {self.lists[v.name]} + {step} - {half})", 0
            out.append(Streamed(self.when, name, f"ahead({there}, {first}, {self.scope.extents[v.dims[1]].count})"))
        return out
