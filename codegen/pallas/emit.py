"""`emit`: a plan as a Pallas kernel of JAX. A point of its grid is a program of the plan, a fold a ``fori_loop`` whose carry is the states.

Every value is an array with one axis for each rank of `KernelPlan.order` (of size 1 where it does not vary), so that operands broadcast
by rank. Blocks are whole: points beyond the size of a rank load 0, count as the identity in what mixes points, and are not stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from einfuse.codegen.pallas.functions import KINDS, REDUCTIONS, form
from einfuse.codegen.pallas.helpers import HELPERS, IMPORTS
from einfuse.codegen.plan import (
    Block,
    Const,
    Coordinate,
    Dot,
    Fold,
    KernelPlan,
    Load,
    Map,
    Op,
    Param,
    Phase,
    Reduce,
    Region,
    Size,
    Store,
    Value,
    reads,
    table_ranks,
)
from einfuse.codegen.torch.functions import random
from einfuse.codegen.torch.printer import Printer, number
from einfuse.ir import EinfuseError

_STORED = {"f64": "jnp.float64", "f32": "jnp.float32", "bf16": "jnp.bfloat16", "f16": "jnp.float16"}
_RESERVED = (
    "functools jax jnp torch pl program grid kernel called given blocks product put take hashed stirred NAMES WRITTEN "
    "params sizes refs states real narrow along once"
)


def emit(plan: KernelPlan) -> str:
    """The module's text; ``kernel(tensors, params, sizes)`` runs it. Raises EinfuseError for a plan whose programs hand on rows."""
    if plan.kept or any(b.turns for b in plan.ambient):
        ranks = ", ".join([b.rank for b in plan.ambient if b.turns] or [k.tile for k in plan.kept])
        raise EinfuseError(
            f"{plan.name}: the points of {ranks} run one after the other and keep rows, for which the back end pallas has no kernels; "
            "use cpu"
        )
    return _Printer(set(_RESERVED.split()), plan=plan).printed()


@dataclass(slots=True)
class _Printer(Printer):
    plan: KernelPlan = field(kw_only=True)
    local: dict[str, str] = field(default_factory=dict)  # coordinates, ends of blocks, and which points of a rank exist
    widths: dict[str, int] = field(default_factory=dict)  # of blocks
    refs: dict[str, str] = field(default_factory=dict)
    spans: dict[str, set[str]] = field(default_factory=dict)  # the ranks along which a value has all of its points

    def printed(self) -> str:
        plan = self.plan
        hidden = [f"{r}_{x}" for r in table_ranks(plan) for x in ("count", "block")]
        written = [t.name for t in plan.tensors if t.out]
        names = [t.name for t in plan.tensors if not t.out] + hidden + written
        grid = [self.extent(b.size) for b in plan.ambient]
        if plan.tile:
            grid.append(f"-(-{self.extent(plan.tile.size)} // {plan.tile.block})")
        self.refs = {n: self.fresh(f"{n}_ref") for n in names}
        given = [self.refs[n] for n in names if n not in written] + ["_"] * len(written) + [self.refs[n] for n in written]
        self.line(f"real, narrow = {_STORED[plan.compute]}, {_STORED[plan.narrow]}")
        self.line(f"{', '.join(given)}, = refs")
        axes = len(plan.order)
        self.line(f"once = lambda x, kind: jnp.full({(1,) * axes}, x, kind)")
        self.line(
            f"along = lambda axis, n: jax.lax.broadcasted_iota(jnp.int64, [n if a == axis else 1 for a in range({axes})], axis)"
        )
        self.begin()
        plan.walk(self.region, self.fold)
        title = [f"# {plan.name}", "#", *(f"#   {x}".rstrip() for x in plan.equations.strip().splitlines())]
        tables = [
            f"NAMES, WRITTEN = {names!r}, {written!r}",
            "",
            "",
            "def grid(sizes):",
            f"    return ({''.join(f'{g}, ' for g in grid) or '1,'})",
        ]
        head = [*title, IMPORTS.rstrip(), *random(self.lines), HELPERS, "", *tables, "", ""]
        return "\n".join([*head, "def program(params, sizes, *refs):", *self.lines]) + "\n"

    def extent(self, size: int | str) -> str:
        return str(size) if isinstance(size, int) else f"sizes[{size!r}]"

    def begin(self) -> None:
        """The coordinates of the program, and of the features, which are held whole."""
        plan = self.plan
        for n, b in enumerate(plan.ambient):
            at = self.fresh(f"{b.rank}_at")
            self.line(f"{at} = once(pl.program_id({n}), jnp.int64)")
            self.local[f"coordinate {b.rank}"] = at
        if plan.tile:
            lo = self.fresh(f"{plan.tile.rank}_lo")
            self.line(f"{lo} = once(pl.program_id({len(plan.ambient)}), jnp.int64) * {plan.tile.block}")
            self.block(plan.tile, lo)
        for f in plan.features:
            self.block(f, "0", always=f.size == f.block)

    def block(self, b: Block, lo: str, always: bool = False) -> None:
        """Defines the coordinates of a block that starts at ``lo``; ``always``: all of them exist."""
        rank, size = b.rank, self.extent(b.size)
        at = self.fresh(f"{rank}_block")
        self.line(f"{at} = {lo} + along({self.axis(rank)}, {b.block})")
        self.widths[rank] = b.block
        self.local |= {f"{rank}.lo": lo, f"{rank}.hi": f"jnp.minimum({lo} + {b.block}, {size})", f"coordinate {rank}": at}
        self.local.pop(f"exists {rank}", None)
        if not always:
            exists = self.fresh(f"{rank}_exists")
            self.line(f"{exists} = {at} < {size}")
            self.local[f"exists {rank}"] = exists

    # ------------------------------------------------------------------------------------------------------------- operations

    def region(self, region: Region) -> None:
        for op in region:
            self.operation(op)

    def operation(self, op: Op) -> None:
        if isinstance(op, Store):
            dims = {r for v in (*op.index, op.value) for r in v.dims}
            index = ", ".join(map(self.ref, op.index))
            self.line(f"put({self.refs[op.tensor]}, [{index}], {self.ref(op.value)}, {self.alive(dims)})")
            return
        text = self.expression(op)
        whole = isinstance(op, Coordinate | Reduce | Dot)
        self.spans[op.out.name] = set(op.out.dims) if whole else set().union(*(self.spans[v.name] for v in reads(op)))
        self.line(f"{self.define(op.out)} = {text}")

    def expression(self, op: Op) -> str:
        match op:
            case Const(out=out, value=value):
                return f"once({number(value)}, {KINDS[out.dtype]})"
            case Coordinate(rank=rank):
                return self.local[f"coordinate {rank}"]
            case Size(name=name):
                return f"once({self.local.get(name, f'sizes[{name!r}]')}, jnp.int64)"
            case Param(out=out, name=name):
                return f"once(params[{name!r}], {KINDS[out.dtype]})"
            case Load(out=out, tensor=tensor, index=index, where=where, clamp=clamp):
                dims = set().union(*(self.spans[v.name] for v in reads(op)))
                alive = self.alive(dims, self.ref(where) if where else "")
                more = f", {clamp}" if clamp else ""
                return (
                    f"take({self.refs[tensor]}, [{', '.join(map(self.ref, index))}], {alive}{more}).astype({KINDS[out.dtype]})"
                )
            case Map(out=out, fn=fn, args=args):
                return form(fn, [(self.ref(a), a.dtype) for a in args], out.dtype)
            case Reduce(out=out, reducer=reducer, arg=arg, rank=rank):
                block = self.existing(arg, rank, number(reducer.start(arg.dtype)))
                text = f"jnp.{REDUCTIONS[reducer.combine]}({block}, {self.axis(rank)}, keepdims=True)"
                return text if arg.dtype == out.dtype == "float" else f"{text}.astype({KINDS[out.dtype]})"
            case Dot():
                return self.dot(op)
        raise AssertionError(f"{type(op).__name__} is not an operation of a plan")

    def dot(self, op: Dot) -> str:
        x, y = op.out.dims
        a, b = self.existing(op.a, op.rank, "0"), self.existing(op.b, op.rank, "0")
        b = f"jnp.where({self.ref(op.where)}, {b}, 0)" if op.where else b
        a, b = (a, b) if x in op.a.dims else (b, a)
        narrow = "narrow" if op.narrow and self.plan.compute != "f64" else "real"
        text = f"product({a}, {b}, {self.axis(x)}, {self.axis(y)}, {self.axis(op.rank)}, {narrow}, real)"
        return text if op.acc is None else f"{self.ref(op.acc)} + {text}"

    def axis(self, rank: str) -> int:
        return self.plan.order.index(rank)

    def existing(self, v: Value, rank: str, otherwise: str) -> str:
        """The value with all of its points; those beyond the size of a rank, but of a folded one, where the plan does so, are ``otherwise``."""
        exists = self.local.get(f"exists {rank}", "")
        folded = any(f.rank == rank for f in self.plan.folds)
        return f"jnp.where({exists}, {self.whole(v)}, {otherwise})" if exists and not folded else self.whole(v)

    def alive(self, dims: set[str], where: str = "") -> str:
        """Which points of these ranks exist, and fulfil ``where``."""
        exists = [self.local.get(f"exists {r}", "") for r in self.plan.order if r in dims]
        return " & ".join(p for p in (*exists, where) if p) or "True"

    def shape(self, v: Value) -> str:
        return f"[{', '.join(str(self.widths[r]) if r in v.dims else '1' for r in self.plan.order)}]"

    def whole(self, v: Value, ranks: tuple[str, ...] = ()) -> str:
        """The value with all points of these ranks, its own unless given."""
        like = replace(v, dims=ranks or v.dims)
        return self.ref(v) if self.spans[v.name] == set(like.dims) else f"jnp.broadcast_to({self.ref(v)}, {self.shape(like)})"

    # ------------------------------------------------------------------------------------------------------------------ folds

    def fold(self, fold: Fold) -> None:
        self.region(fold.bounds)
        self.widths[fold.rank] = fold.step
        for s in fold.states:
            self.spans[s.value.name] = set(s.value.dims)
            self.line(f"{self.define(s.value)} = jnp.full({self.shape(s.value)}, {number(s.init)}, {KINDS[s.value.dtype]})")
        for n, p in enumerate(fold.phases):
            self.phase(fold, n, p)

    def phase(self, fold: Fold, n: int, phase: Phase) -> None:
        """A loop over the live blocks of a phase, as a function of their number and of the states."""
        rank = fold.rank
        names, taken, local = dict(self.names), set(self.taken), dict(self.local)
        states = [names[s.value.name] for s in fold.states]
        carry = f"({''.join(f'{s}, ' for s in states)})"
        body, turn, lo = self.fresh(f"{phase.label}_{rank}"), self.fresh("turn"), self.fresh(f"{rank}_lo")
        row = self.table_row(fold) if fold.tabulated else ""
        if fold.tabulated:
            start = f"{self.refs[f'{rank}_block']}[{row}, {n}, {turn}].astype(jnp.int64) * {fold.step}"
            count = f"{self.refs[f'{rank}_count']}[{row}, {n}].astype(jnp.int64)"
        else:
            start = f"{self.ref(phase.lo)} + {turn} * {fold.step}"
            count = f"blocks({self.ref(phase.lo)}, {self.ref(phase.hi)}, {fold.step})"
        self.line(f"def {body}({turn}, states):")
        self.indent += 1
        if states:
            self.line(f"{carry} = states")
        self.line(f"{lo} = {start}")
        self.block(Block(rank, fold.size, fold.step), lo, always=phase.label == "full")
        self.region(phase.body)
        moved = [f"{self.whole(u, s.value.dims)}, " for s, u in zip(fold.states, phase.updates, strict=True)]
        self.line(f"return ({''.join(moved)})")
        self.indent -= 1
        self.names, self.taken, self.local = names, taken | {body}, local
        loop = f"jax.lax.fori_loop(jnp.int64(0), {count}, {body}, {carry})"
        self.line(f"{carry} = {loop}" if states else loop)

    def table_row(self, fold: Fold) -> str:
        row = "0"
        for r in fold.table_ranks:
            size = next(b.size for b in self.plan.ambient if b.rank == r)
            row = f"({row} * {self.extent(size)} + {self.local[f'coordinate {r}']}.reshape(()))"
        tile = self.plan.tile
        if tile is None:
            return row
        lo = self.local[f"{tile.rank}.lo"]
        return f"{row} * -(-{self.extent(tile.size)} // {tile.block}) + {lo}.reshape(()) // {tile.block}"
