"""Two kernels that walk the same pairs, one by rows and one by columns, as one kernel by columns.

    rows      tile i: fold j { s = q . k ; x = f(s) ; dq += x k }                 dq stored once a tile
    columns   tile j: fold i { s = q . k ; x = f(s) ; dk += x q }
    merged    tile j: fold i { s = q . k ; x = f(s) ; dk += x q ; dq[i] += x k }  dq read and written at every block

What both compute is computed once (of the seven products of a softmax's gradient, five are left). The tiles of one ambient point
add to the same rows, so they run in order on one thread: nothing is atomic, and the result does not depend on the threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from einfuse.codegen.cpu.places import by_place
from einfuse.codegen.plan import (
    Arg,
    Const,
    Coordinate,
    Dot,
    KernelPlan,
    Load,
    Map,
    Op,
    Phase,
    Reduce,
    Size,
    Store,
    Value,
    computed,
    operations,
    outside,
    reads,
    renamed,
    with_out,
)
from einfuse.ir.rewrite import fresh


def merge(rows: KernelPlan, columns: KernelPlan) -> KernelPlan | None:
    """The plan of both, or None where ``rows`` does more than sum products over its fold, or ``columns`` reads what ``rows`` writes.

    Both must walk the same live pairs, which only the caller, who has their masks, can tell. The outputs of ``rows`` are added to: they
    must hold zeros, in accumulation precision.
    """
    if not _fit(rows, columns):
        return None
    merger = _Merger(by_place(rows), columns)
    return merger.merged() if merger.sums() else None


def sequential(plan: KernelPlan) -> bool:
    """Whether the tiles of an ambient point must run in order: one reads what another wrote. So must those of points that take turns."""
    if any(b.turns for b in plan.ambient):
        return True
    written = {op.tensor for op in operations(plan) if isinstance(op, Store)} & {t.name for t in plan.tensors}
    return any(isinstance(op, Load) and op.tensor in written for op in operations(plan))


def _fit(rows: KernelPlan, columns: KernelPlan) -> bool:
    """One fold each, which visits some tile, over the other's tile, of the same ambient points and features; nothing of one is read by the
    other.
    """
    mine, theirs = (p.folds for p in (rows, columns))
    if len(mine) != 1 or len(theirs) != 1 or rows.tile is None or columns.tile is None:
        return False
    if not mine[0].phases or not theirs[0].phases:
        return False
    same = (rows.ambient, rows.compute, rows.narrow) == (columns.ambient, columns.compute, columns.narrow)
    crossed = mine[0].rank == columns.tile.rank and theirs[0].rank == rows.tile.rank
    outs = {t.name for t in rows.tensors if t.out}
    apart = not outs & {t.name for t in columns.tensors} and all(
        t.name not in {x.name for x in rows.tensors} for t in columns.tensors if t.out
    )
    wide = all(t.storage == rows.compute for t in rows.tensors if t.out)
    until = rows.steps.index(mine[0])
    early = [*outside(rows.steps[:until]), *(op for p in mine[0].phases for op in p.body)]
    return same and crossed and apart and wide and not any(isinstance(op, Store) for op in early)


@dataclass(slots=True)
class _Target:
    """A region that grows: its operations by what they compute, and the names they gave."""

    ops: list[Op] = field(default_factory=list)
    known: dict[Op, Value] = field(default_factory=dict)

    def learn(self, op: Op) -> None:
        self.ops.append(op)
        if not isinstance(op, Store):
            self.known.setdefault(_key(op), op.out)


class _Merger:
    def __init__(self, rows: KernelPlan, columns: KernelPlan) -> None:
        self.rows, self.columns = rows, columns
        (self.mine,), (self.theirs,) = rows.folds, columns.folds
        at = rows.steps.index(self.mine)
        self.before = outside(rows.steps[:at])
        self.after = outside(rows.steps[at + 1 :])
        self.features = tuple(dict.fromkeys((*columns.features, *rows.features)))
        self.order = (*columns.order, *(f.rank for f in rows.features if f.rank not in columns.order))
        self.taken = {op.out.name for op in operations(columns) if not isinstance(op, Store)}
        self.taken |= {s.value.name for s in self.theirs.states}
        self.conditions = _conditions(rows)

    # -- may it be done ----------------------------------------------------------------------------------------------------------

    def sums(self) -> bool:
        """Every state of the rows is a sum of products over the fold, and is stored as it is."""
        states = {s.value.name: s for s in self.mine.states}
        stores = [op for op in self.after if isinstance(op, Store)]
        plain = all(op.value.name in states for op in stores) and all(isinstance(op, Store | Coordinate) for op in self.after)
        once = sorted(op.value.name for op in stores) == sorted(states) and all(s.init == 0 for s in states.values())
        return plain and once and all(self._phase_sums(p) for p in self.mine.phases)

    def _phase_sums(self, phase: Phase) -> bool:
        made = {op.out.name: op for op in phase.body if not isinstance(op, Store)}
        read: list[str] = [v.name for op in phase.body for v in reads(op)]
        added: set[str] = set()
        for state, update in zip(self.mine.states, phase.updates, strict=True):
            share = self._share(made, state.value, update)
            if share is None or read.count(state.value.name) != 1 or update.name in read:
                return False
            if share.out != update and read.count(share.out.name) != 1:
                return False
            added |= {share.out.name, update.name}
        return all(self._local(op) or (not isinstance(op, Store) and op.out.name in added) for op in phase.body)

    def _share(self, made: Mapping[str, Op], state: Value, update: Value) -> Dot | Reduce | None:
        """What a block adds to a state: a product, or the sum of a block over the fold; None where the state is anything else."""
        op = made.get(update.name)
        if isinstance(op, Map) and op.fn == "+" and state in op.args:
            op = made.get(op.args[1 - op.args.index(state)].name)
            plain = (
                isinstance(op, Reduce) and op.at is None
            )  # sums by place have one order, whether or not there are threads to merge for
            return op if isinstance(op, Reduce) and plain and op.reducer.sums and op.rank == self.mine.rank else None
        return op if isinstance(op, Dot) and op.acc == state and op.rank == self.mine.rank else None

    def _local(self, op: Op) -> bool:
        """Whether an operation of the rows says the same with the roles of tile and fold exchanged."""
        if isinstance(op, Store) or (isinstance(op, Size) and "." in op.name):
            return False
        if isinstance(op, Reduce) and op.out.dtype == "bool" and op.rank == self.rows.order[0]:
            return op.out.name in self.conditions  # which points exist for any row: any of those at hand will do
        return not (isinstance(op, Reduce | Dot) and op.rank in (self.rows.order[0], self.mine.rank))

    # -- the merged plan ---------------------------------------------------------------------------------------------------------

    def merged(self) -> KernelPlan:
        columns, rows = self.columns, self.rows
        at = columns.steps.index(self.theirs)
        prologue = _Target()
        for op in outside(columns.steps[:at]):
            prologue.learn(op)
        phases = tuple(self._phase(p, prologue) for p in self.theirs.phases)
        fold = replace(self.theirs, phases=phases)
        outs = {t.name for t in rows.tensors if t.out}
        held = {t.name for t in columns.tensors}
        tensors = (*columns.tensors, *(t for t in rows.tensors if t.name not in held))
        assert all(isinstance(t, Arg) for t in tensors), "arguments are tensors"
        assert outs <= {t.name for t in tensors}, "the rows' outputs are arguments of the whole"
        return replace(
            columns,
            name=f"{columns.name}_and_{rows.name}",
            equations=f"{columns.equations.rstrip()}\n{rows.equations.rstrip()}",
            features=self.features,
            tensors=tensors,
            params=tuple(dict.fromkeys((*columns.params, *rows.params))),
            sizes=tuple(dict.fromkeys((*columns.sizes, *rows.sizes))),
            steps=(tuple(prologue.ops), fold, *columns.steps[at + 1 :]),
        )

    def _phase(self, phase: Phase, prologue: _Target) -> Phase:
        """The body of the columns, then what of the rows' body it does not have."""
        source = next((p for p in self.mine.phases if p.label == phase.label), self.mine.phases[0])
        target = _Target()
        for op in phase.body:
            target.learn(op)
        new: dict[str, Value] = {}
        made = {op.out.name: op for op in source.body if not isinstance(op, Store)}
        inside = self._inside((*self.before, *source.body))
        updates = {u.name: s.value for u, s in zip(source.updates, self.mine.states, strict=True)}
        shares = {n: self._share(made, state, made[n].out) for n, state in updates.items()}
        aside = {share.out.name for share in shares.values() if share is not None}
        for op in (*self.before, *source.body):
            assert not isinstance(op, Store), "the rows store after their fold"
            share = shares.get(op.out.name)
            if share is not None:
                self._add(share, updates[op.out.name], new, target, prologue)
            elif op.out.name not in aside:
                theirs = self._pairs_inside(op, inside, new, target, prologue)
                new[op.out.name] = self._place(renamed(op, {**new, **theirs}), target, prologue)
        return replace(phase, body=tuple(target.ops))

    def _pairs_inside(
        self, op: Op, inside: set[str], new: Mapping[str, Value], target: _Target, prologue: _Target
    ) -> dict[str, Value]:
        """Other operands of ``op``. A plan tells which points of a block are below the size of the rank that it folds, and need not for its
        tile (`plan.nodes`): pairs of the rows are below the size of the keys, and pairs here have to be below that of the rows.
        """
        if isinstance(op, Map) and op.fn == "and" and {self.mine.rank, self.theirs.rank} <= set(op.out.dims):
            return {v.name: self._below(target, prologue) for v in op.args if v.name in inside}
        if isinstance(op, Reduce) and op.rank == self.theirs.rank:
            pairs, below = new[op.arg.name], self._below(target, prologue)
            if not any(isinstance(o, Map) and o.out == pairs and below in o.args for o in target.ops):
                return {op.arg.name: self._place(Map(replace(pairs, name="live"), "and", (pairs, below)), target, prologue)}
        return {}

    def _below(self, target: _Target, prologue: _Target) -> Value:
        """Whether a coordinate of the rank that is folded exists."""
        rank, size = self.theirs.rank, self.theirs.size
        limit = Const(Value("c", (), "int"), size) if isinstance(size, int) else Size(Value(size, (), "int"), size)
        at = self._place(Coordinate(Value(f"{rank}_at", (rank,), "int"), rank), target, prologue)
        last = self._place(limit, target, prologue)
        return self._place(Map(Value("inside", (rank,), "bool"), "<", (at, last)), target, prologue)

    def _inside(self, ops: Iterable[Op]) -> set[str]:
        """The conditions of the rows that say no more than that, of the rank which they fold."""
        made = {op.out.name: op for op in ops if not isinstance(op, Store)}

        def says(op: Op) -> bool:
            if not isinstance(op, Map) or op.fn != "<":
                return False
            at, limit = (made.get(v.name) for v in op.args)
            size = limit.name if isinstance(limit, Size) else limit.value if isinstance(limit, Const) else None
            return isinstance(at, Coordinate) and at.rank == self.mine.rank and size == self.mine.size

        return {n for n, op in made.items() if says(op)}

    def _place(self, op: Op, target: _Target, prologue: _Target) -> Value:
        """The value of an operation: one that is known, or a new one where it belongs."""
        assert not isinstance(op, Store), "stores give no value"
        out = replace(op.out, dims=tuple(r for r in self.order if r in op.out.dims))
        op = with_out(op, out)
        for known in (prologue.known, target.known):
            for key in _keys(op):
                if key in known:
                    return known[key]
        region = self._region(op, target, prologue)
        name = fresh(out.name, self.taken)
        region.learn(with_out(op, replace(out, name=name)))
        return replace(out, name=name)

    def _region(self, op: Op, target: _Target, prologue: _Target) -> _Target:
        """Before the fold goes what depends on nothing inside it."""
        inside = {o.out.name for o in target.ops if not isinstance(o, Store)}
        assert not isinstance(op, Store), "stores give no value"
        return target if self.theirs.rank in op.out.dims or any(v.name in inside for v in reads(op)) else prologue

    def _add(self, share: Dot | Reduce, state: Value, new: Mapping[str, Value], target: _Target, prologue: _Target) -> None:
        """``tensor[index] += share``."""
        store = next(s for s in self.after if isinstance(s, Store) and s.value == state)
        names = dict(new)
        for o in self.after:
            if isinstance(o, Coordinate):
                names[o.out.name] = self._place(o, target, prologue)
        index = tuple(names[v.name] for v in store.index)
        held = self._place(Load(Value(f"{state.name}_held", state.dims, "float"), store.tensor, index), target, prologue)
        if isinstance(share, Dot):
            a, b = new[share.a.name], new[share.b.name]
            where = new[share.where.name] if share.where else None
            total = self._place(Dot(share.out, a, b, share.rank, held, share.narrow, where), target, prologue)
        else:
            block = self._place(renamed(share, new), target, prologue)
            total = self._place(Map(replace(state, name=f"{state.name}_new"), "+", (held, block)), target, prologue)
        target.learn(Store(store.tensor, index, total))


def _conditions(plan: KernelPlan) -> set[str]:
    """The values that say which points of a product exist, and nothing else."""
    every = tuple(operations(plan))
    found = {op.where.name for op in every if isinstance(op, Dot) and op.where}
    return found - {v.name for op in every for v in reads(op) if not (isinstance(op, Dot) and v is op.where)}


def _keys(op: Op) -> list[Op]:
    """What an operation computes: the value of a statement does for one that is not named as well."""
    return [_key(op), *([_key(replace(op, named=True))] if isinstance(op, Map) and not op.named else [])]


def _key(op: Op) -> Op:
    """What an operation computes, whatever the name of its value."""
    op = computed(op)
    if isinstance(op, Dot) and op.b.name < op.a.name and op.where is None:
        op = replace(op, a=op.b, b=op.a)
    return op
