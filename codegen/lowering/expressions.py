"""`Expressions`: expressions of a cascade as values of block operations.

It knows what a name stands for: an input is loaded, a number passed, and a statement is the value it was defined as.
"""

from __future__ import annotations

from collections.abc import Mapping

from einfuse.codegen import plan as kp
from einfuse.codegen.lowering.blocks import Blocks
from einfuse.codegen.lowering.sizes import Sizes
from einfuse.codegen.plan import Value
from einfuse.ir import Cascade, DType, Expr, SpecError
from einfuse.ir import index as coordinate
from einfuse.ir.expr import indices, reads
from einfuse.ir.extents import within_axis


class Expressions:
    """``env`` and ``ranks`` tell the value of every statement so far and the ranks it is read at; operations are made in ``blocks``."""

    def __init__(self, cascade: Cascade, sizes: Sizes, blocks: Blocks, bare: bool = False) -> None:
        self.cascade, self.sizes, self.blocks, self.bare = cascade, sizes, blocks, bare
        self.inputs = {t.name: t for t in cascade.inputs}
        self.env: dict[str, Value] = {}
        self.ranks: dict[str, tuple[str, ...]] = {}
        self.loaded: set[str] = set()  # values that are plain loads: 0 in the padding
        self.params: dict[str, DType] = {}
        self.steps: dict[str, int] = {}  # of the folds in hand whose blocks begin at multiples of their step
        self.existing: tuple[str, Value | None] | None = (
            None  # the rank of the loop in hand, and which points exist there, if not all
        )

    # -- statements by name ------------------------------------------------------------------------------------------------------

    def define(self, target: str, ranks: tuple[str, ...], value: Value) -> None:
        self.env[target], self.ranks[target] = value, ranks

    def store(self, target: str, value: Value) -> None:
        """The value as the output of this name, which is defined."""
        place = self.cascade.place(target)
        index = (
            tuple(self.blocks.coordinate(r) for r in (*self.cascade.over, *self.ranks[target]))
            if place is None
            else tuple(self.value(e, env={}) for e in place.index)
        )
        self.blocks.scope.ops.append(kp.Store(target, index, value))

    # -- expressions -------------------------------------------------------------------------------------------------------------

    def value(
        self,
        e: Expr,
        name: str = "t",
        env: Mapping[str, Value] | None = None,
        new: Mapping[str, Value] | None = None,
    ) -> Value:
        """The value of ``e``, called ``name`` where it is one of a function. ``env`` overrides what statements stand for; ``new`` are the
        new values of statistics, in a carry."""
        env = self.env if env is None else env
        match e.op:
            case "const":
                assert isinstance(e.value, int | float), "a constant is a number"  # bool is an int
                return self.blocks.const(e.value)
            case "index":
                return self.blocks.coordinate(e.name)
            case "size":
                return self.size(e.name)
            case "new":
                assert new is not None, "a re-based value stands only in a carry"
                return new[e.name]
            case "load" if e.name in env:
                return self.statement(e, env[e.name])
            case "load":
                return self.load(e, env)
            case "//" | "%" if (width := self._whole_blocks(e)) is not None:
                return self._of_block(e.op, e.args[0].name, width)
        return self.blocks.map(e.op, *(self.value(a, env=env, new=new) for a in e.args), name=name)

    def _whole_blocks(self, e: Expr) -> int | None:
        """The divisor of a coordinate of a fold of which every block of the fold has one quotient; None for others."""
        rank, by = e.args
        if rank.op != "index" or rank.name not in self.steps or by.op != "const" or not isinstance(by.value, int):
            return None
        return by.value if by.value > 0 and by.value % self.steps[rank.name] == 0 else None

    def _of_block(self, op: str, rank: str, width: int) -> Value:
        """The quotient or the rest of the coordinates of a block that has one quotient."""
        at, by = self.blocks.emit(kp.Size(Value(f"{rank}_lo", (), "int"), f"{rank}.lo"), (), rank), self.blocks.const(width)
        quotient = self.blocks.map("//", at, by)
        if op == "//":
            return quotient
        return self.blocks.map("-", self.blocks.coordinate(rank), self.blocks.map("*", quotient, by))

    def statement(self, e: Expr, value: Value) -> Value:
        """The value of a statement where ``e`` reads it."""
        if e.args != tuple(map(coordinate, self.ranks[e.name])):
            raise SpecError(
                f"a kernel cannot read {e.name} at other coordinates than its own", e.loc, "shift the input instead"
            )
        return value

    def size(self, name: str) -> Value:
        """A size by name, or an end of what a program or an iteration has of a rank (``i.lo``, ``i.hi``)."""
        known = name if "." in name else self.sizes.named(name)
        if isinstance(known, int):
            return self.blocks.const(known)
        return self.blocks.emit(kp.Size(Value(name.replace(".", "_"), (), "int"), name), ())

    def _named(self, e: Expr, rank: str) -> bool:
        """Whether an index is inside its axis at every point of a loop that exists: what is ``made`` names places that do."""
        tables, ranks = reads(e), indices(e)
        alone = rank in ranks <= {rank, *self.cascade.over}
        return alone and bool(tables) and all(n in self.inputs and self.inputs[n].made for n in tables)

    def load(self, e: Expr, env: Mapping[str, Value]) -> Value:
        tensor = self.inputs[e.name]
        if tensor.param:
            self.params[tensor.name] = tensor.dtype
            return self.blocks.emit(kp.Param(Value(f"{e.name}_value", (), tensor.dtype), e.name), ())
        index = tuple(self.value(a, env=env) for a in e.args)
        axes = enumerate(zip(e.args, tensor.axes, strict=True))
        clamp = tuple(n for n, (a, axis) in axes if not within_axis(self.cascade, a, axis))
        dims = self.blocks.spanned(index)
        where = None
        rank, existing = self.existing or ("", None)
        inside = [n for n in clamp if self.bare and self._named(e.args[n], rank)]
        if inside and (existing is None or set(existing.dims) <= set(dims)):
            where, clamp = existing, tuple(n for n in clamp if n not in inside)
        named = f"{e.name}_tile" if dims else f"{e.name}_here"
        out = self.blocks.emit(
            kp.Load(Value(named, dims, tensor.dtype), e.name, index, where, clamp), index if where is None else (*index, where)
        )
        self.loaded.add(out.name)
        return out
