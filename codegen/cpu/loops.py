"""Prints a loop nest: operations at the level of their innermost rank, numbers outside, vectors in the last loop."""

from __future__ import annotations

from collections.abc import Mapping

from einfuse.codegen.cpu import access
from einfuse.codegen.cpu.functions import REDUCTIONS, Ref, applied, literal, number, spread
from einfuse.codegen.cpu.schedule import Nest
from einfuse.codegen.cpu.text import Place, Scope, Text
from einfuse.codegen.plan import Arg, Const, Coordinate, Load, Map, Op, Reduce, Store, Value

TYPES = {"float": ("T", "V"), "int": ("long", "VI"), "bool": ("bool", "VI")}


FEW = 8  # rows for which sums over lanes are not worth a buffer


class NestPrinter:
    """Prints one nest. ``self.before[level]`` and ``self.after[level]`` are the lines around the next inner loop; the last level's
    ``before`` is the body of the vectorised loop."""

    def __init__(self, text: Text, scope: Scope, nest: Nest, tensors: Mapping[str, Arg]) -> None:
        self.text, self.scope, self.nest, self.tensors = text, scope, nest, tensors
        self.names = text.names.child()
        self.names.taken |= text.threadwide
        self.at = {r: self.names.fresh(f"{r}_") for r in nest.dims}
        if nest.diagonal:
            self.at[nest.diagonal] = f"({scope.extents[nest.diagonal].count} - 1)"
        self.before: list[list[str]] = [[] for _ in nest.dims]
        self.after: list[list[str]] = [[] for _ in nest.dims]
        self.outside: list[str] = []
        self.done: list[str] = []
        self.refs: dict[str, Ref] = {}
        self.factors: dict[str, list[Ref]] = {}  # of the products named here
        self.kept = {v.name for v in nest.kept}

    def printed(self) -> None:
        writes: list[str] = []
        for op in self.nest.ops:
            if isinstance(op, Store):
                self.before[-1] += access.store(self, op)
            elif isinstance(op, Reduce):
                self.reduce(op)
            elif isinstance(op, Load) and access.lies(self, op):
                self.before[-2].append(access.copied(self, op))
            elif not isinstance(op, Coordinate) and op.out.name not in self.refs:
                ref = self.evaluate(op)
                if op.out.name in self.kept:
                    writes += self.written(op.out, ref)
        self.before[-1] += writes
        self.notes()
        self.emit()

    def notes(self) -> None:
        """Where the mask of the body is alive; zeros where it is not."""
        nest, scope = self.nest, self.scope
        m, n = (scope.extents[r].count for r in nest.dims[-2:]) if len(nest.dims) > 1 else ("", "")
        if nest.seen is not None:
            x, y = (self.at[r] for r in nest.dims)
            self.outside.append(f"{scope.alive}.clear();")
            self.before[-1].append(f"{scope.alive}.see({x}, {y}, {spread(self.ref(nest.seen))});")
            if scope.whole:
                dead, most = self.outer_name("dead"), scope.extents[nest.dims[-1]].most
                self.outside.append(f"VI {dead}{{}};")
                self.before[-1].append(f"{dead} |= ~{spread(self.ref(nest.seen))};")
                self.done.insert(0, f"if ({n} == {most} && !some({dead})) return {scope.whole};")
            self.done.append(f"{scope.alive}.find({m}, {n}, {scope.streamed or 'false'});")
        for v in nest.cleared:
            place = scope.places[v.name]
            self.done.append(f"clear_outside({place.pointer}, {place.row}, {m}, {n}, {scope.alive});")

    def emit(self) -> None:
        text, nest = self.text, self.nest
        for line in self.outside:
            text.line(line)
        loops = nest.dims if self.before[-1] else nest.dims[:-1]  # rows that are copied whole need no inner loop
        for level, rank in enumerate(loops):
            at, count = self.at[rank], self.scope.extents[rank].count
            last = level == len(nest.dims) - 1
            start, step = "0", f"{at} += W" if last else f"++{at}"
            if nest.limited and last:
                ends = self.names.fresh("ends")
                text.line(f"const Ends {ends} = {self.scope.alive}.rows[{self.at[nest.dims[0]]} / ROWS];")
                start, count = f"{ends}.first", f"{ends}.last"
            text.line(f"for (long {at} = {start}; {at} < {count}; {step}) {{")
            text.indent += 1
            for line in self.before[level]:
                text.line(line)
        for level in reversed(range(len(loops))):
            for line in self.after[level]:
                text.line(line)
            text.indent -= 1
            text.line("}")
        for line in self.done:
            text.line(line)

    def written(self, v: Value, ref: Ref) -> list[str]:
        """The value goes to its buffer, and to the copy of paired halves that a product reads."""
        scope, rank = self.scope, self.nest.dims[-1]
        out = [f"store({self.element(scope.places[v.name])}, {spread(ref)});"] if v.name in scope.places else []
        halves = scope.forms.get((v.name, "rows"))
        if halves is not None:
            extent = scope.extents[rank]
            count = "W" if extent.whole and extent.most % 16 == 0 else f"{extent.count} - {self.at[rank]}"
            row = f"{halves.pointer} + {self.at[v.dims[0]]} * ({halves.row}) + {self.at[rank]} / 2"
            out.append(f"store_halves({row}, {spread(ref)}, {count});")
        return out

    # ------------------------------------------------------------------------------------------------------------- values

    def level(self, dims: tuple[str, ...]) -> int:
        return max((self.nest.dims.index(d) for d in dims if d != self.nest.diagonal), default=0)

    def is_vector(self, dims: tuple[str, ...]) -> bool:
        return self.nest.dims[-1] in dims

    def element(self, place: Place) -> str:
        """The address of the current point (or of the current lanes) in a buffer."""
        parts = [self.at[d] if s == "1" else f"{self.at[d]} * {s}" for d, s in zip(place.dims, place.steps, strict=True)]
        return " + ".join([place.pointer, *parts])

    def ref(self, v: Value) -> Ref:
        """The value at the current point: computed here, or read from its buffer."""
        found = self.refs.get(v.name) or self.scope.scalars.get(v.name)
        if found is not None:
            return found
        recipe = self.scope.recipes.get(v.name)
        if isinstance(recipe, Coordinate | Const):
            return self.evaluate(recipe)
        place = self.scope.places[v.name]
        vector = self.is_vector(v.dims)
        text = f"load({self.element(place)})" if vector else f"*({self.element(place)})"
        if v.dtype == "bool" and not vector:
            text = f"({text} != 0)"
        return self.define(v, Ref(text, v.dtype, vector))

    def define(self, v: Value, ref: Ref) -> Ref:
        """Gives the text a name at the level of the value's ranks."""
        name = self.names.fresh(v.name)
        kind = TYPES[v.dtype][1 if ref.vector else 0]
        self.before[self.level(v.dims)].append(f"const {kind} {name} = {ref.text};")
        self.refs[v.name] = Ref(name, v.dtype, ref.vector)
        return self.refs[v.name]

    def evaluate(self, op: Op) -> Ref:
        match op:
            case Const(out=out, value=value):
                return literal(value, out.dtype)
            case Coordinate(out=out, rank=rank):
                return self.coordinate(out, rank)
            case Load(out=out):
                return self.define(out, access.load(self, op))
            case Map(out=out, fn=fn, args=args, named=named):
                refs = [self.ref(a) for a in args]
                ref = self.contracted(fn, args, refs) or applied(fn, refs, out.dtype)
                if fn == "*" and ref.vector and all(r.dtype == "float" for r in refs):
                    if named:
                        ref = Ref(f"as_rounded({ref.text})", ref.dtype, True)
                    else:
                        self.factors[out.name] = refs
                if self.is_vector(out.dims) and not ref.vector:
                    ref = Ref(spread(ref), ref.dtype, True)
                return self.define(out, ref)
        raise AssertionError(f"{type(op).__name__} has no place in a loop nest")

    def contracted(self, fn: str, args: tuple[Value, ...], refs: list[Ref]) -> Ref | None:
        """A product and the sum that reads it, rounded once; but a product that is a statement is rounded for all who read it.

        Left to the compiler, that would depend on what else reads the product: a backward would compute scores that differ from
        its forward's, and weights that do not add up to the statistics it reads. And a score minus the largest one is 0 there.
        """
        n = next((n for n, a in enumerate(args) if a.name in self.factors), None)
        if fn not in ("+", "-") or n is None or refs[1 - n].dtype != "float" or args[0] == args[1]:
            return None  # x - x is 0
        (a, b), c = map(spread, self.factors[args[n].name]), spread(refs[1 - n])
        if fn == "-":
            a, c = (a, f"-{c}") if n == 0 else (f"-{a}", c)
        return Ref(f"multiply_add({a}, {b}, {c})", "float", True)

    def coordinate(self, out: Value, rank: str) -> Ref:
        start = self.scope.extents[rank].start
        here = self.at[rank] if start == "0" else f"{start} + {self.at[rank]}"
        vector = self.is_vector((rank,))
        return self.define(out, Ref(f"lanes({here})" if vector else here, "int", vector))

    # --------------------------------------------------------------------------------------------------------- reductions

    def reduce(self, op: Reduce) -> None:
        if op.out.name not in self.kept:
            return
        if op.arg == self.nest.seen and op.rank == self.nest.dims[0]:  # what is noted of the mask says it
            extents = ", ".join(self.scope.extents[r].count for r in self.nest.dims)
            self.done.append(f"{self.scope.alive}.shade({self.scope.places[op.out.name].pointer}, {extents});")
            return
        identity = number(op.reducer.start(op.out.dtype), op.out.dtype)
        if op.at is not None:
            self.add_at(op, op.at, identity)
        elif op.rank == self.nest.dims[-1]:
            self.reduce_lanes(op, identity)
        else:
            self.reduce_memory(op, identity)

    def outer_name(self, name: str) -> str:
        """A name that is free inside the nest and around it."""
        text = self.names.fresh(name)
        self.text.names.taken.add(text)
        return text

    def reduce_lanes(self, op: Reduce, identity: str) -> None:
        """Along the vectorised rank: an accumulator of lanes, folded when the row ends.

        What `codegen.rows` names is added up in the order of a matrix product.
        """
        acc = self.outer_name(f"{op.out.name}_lanes")
        kind = TYPES[op.out.dtype][1]
        outer = self.before[-2] if len(self.nest.dims) > 1 else self.outside
        end = self.after[-2] if len(self.nest.dims) > 1 else self.done
        value, extent, at = self.ref(op.arg), self.scope.extents[op.rank], self.at[op.rank]
        factors, reduction = self.factors.get(op.arg.name), REDUCTIONS[op.reducer.step(op.out.dtype)]
        if factors is not None and op.out.name in self.scope.row_products and not extent.counted:
            a, b = map(spread, factors)
            outer.append(f"T {acc} = 0;")
            self.before[-1].append(f"{acc} = in_order<{extent.most}>({acc}, {a}, {b}, {at});")
            total = acc
        else:
            outer.append(f"{kind} {acc} = spread({identity});")
            known = f"below({{}}, {at}, {extent.count}, {{}})" if extent.counted else f"within<{extent.most}>({{}}, {at}, {{}})"
            if factors is not None and op.reducer.sums:
                a, b = map(spread, factors)
                step = known.format(f"multiply_add({a}, {b}, {acc})", acc)
            else:
                step = reduction.text.format(acc, known.format(spread(value), f"spread({identity})"))
            self.before[-1].append(f"{acc} = {step};")
            total = f"{reduction.lanes}({acc})"
        if not op.out.dims:
            name = self.outer_name(op.out.name)
            end.append(f"const {TYPES[op.out.dtype][0]} {name} = {total};")
            self.scope.scalars[op.out.name] = Ref(name, op.out.dtype)
            return
        place = self.scope.places[op.out.name]
        rows = self.scope.extents[op.out.dims[0]]
        if total == acc or op.out.dtype != "float" or len(self.nest.dims) != 2 or rows.most < FEW:
            end.append(f"*({self.element(place)}) = {'-(I)' if op.out.dtype == 'bool' else ''}{total};")
            return
        key = ("lanes", op.out.dims, rows.most, sum("fold_rows" in x for x in self.done))
        if key not in self.text.pool:
            self.text.pool[key] = self.text.buffer(f"lanes_{op.out.dims[0]}", "T", f"padded({rows.most}) * W")
        lanes = self.text.pool[key]
        end.append(f"store({lanes} + {self.at[op.out.dims[0]]} * W, {acc});")
        step = reduction.text.format("x", "y")
        self.done.append(f"fold_rows({place.pointer}, {lanes}, {rows.count}, [](V x, V y) {{ return {step}; }});")

    def reduce_memory(self, op: Reduce, identity: str) -> None:
        """Along an outer rank: the result is accumulated in its buffer."""
        place = self.scope.places[op.out.name]
        depth = len(self.nest.dims)
        self.outside += fill(self.text, self.scope, place, identity, op.out)
        here = self.element(place)
        value, reduction = spread(self.ref(op.arg)), REDUCTIONS[op.reducer.step(op.out.dtype)]
        assert depth > 1, "a reduction along the only rank is along the vectorised one"
        self.before[-1].append(f"store({here}, {reduction.text.format(f'load({here})', value)});")

    def add_at(self, op: Reduce, places: Value, identity: str) -> None:
        """Each number is added at its place of a row: of one row for all lanes, or of one for each."""
        place = self.scope.places[op.out.name]
        *rows, entries = op.out.dims
        row = " + ".join([place.pointer, *(f"{self.at[d]} * {s}" for d, s in zip(rows, place.steps, strict=False))])
        x, at, rank = spread(self.ref(op.arg)), spread(self.ref(places)), self.nest.dims[-1]
        left = f"{self.scope.extents[rank].count} - {self.at[rank]}"
        step = f", {place.steps[rows.index(rank)]}" if rank in rows else ""
        self.outside += fill(self.text, self.scope, place, identity, op.out)
        self.before[-1].append(f"add_at({row}{step}, {self.scope.extents[entries].count}, {at}, {x}, {left});")


def fill(text: Text, scope: Scope, place: Place, value: str, v: Value) -> list[str]:
    """Lines that set every element of a buffer."""
    names = text.names.child()
    at = [names.fresh(f"{d}_") for d in place.dims]
    head = ""
    for n, (d, x) in enumerate(zip(place.dims, at, strict=True)):
        step = f"{x} += W" if n == len(at) - 1 else f"++{x}"
        head += f"for (long {x} = 0; {x} < {scope.extents[d].count}; {step}) "
    parts = [x if s == "1" else f"{x} * {s}" for x, s in zip(at, place.steps, strict=True)]
    return [f"{head}store({' + '.join([place.pointer, *parts])}, spread({value}));"]
