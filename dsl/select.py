"""Selection: ``topk[w -> n](g)`` and ``argmax[w](g)`` make lists of coordinates, ``x in list`` asks whether one holds a number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from einfuse.dsl import ast
from einfuse.dsl.emit import load_held, mask_of
from einfuse.dsl.names import Held, Source
from einfuse.dsl.values import Value, coordinate, join
from einfuse.ir import Einsum, Expr

if TYPE_CHECKING:
    from einfuse.dsl.evaluate import Evaluator

LISTS = "a list is a statement or an input of ints whose last index runs through its entries"


def chosen(at: Evaluator, e: ast.Call, over: tuple[str, ...]) -> Value:
    """The coordinates of the largest values, best first, equal ones in order; of several ranks their row-major number."""
    name = e.name.text
    slot = _slot(at, e, over)
    if len(e.args) != 1:
        raise at.fault(f"`{name}` ranks one operand, found {len(e.args)}", e)
    body = at.value(e.args[0])
    if body.dtype == "bool":
        raise at.fault(
            f"`{name}` ranks numbers, found a condition", e.args[0], "rank a number, and write the condition behind `where`"
        )
    where = at.condition(e.where) if e.where is not None else None
    whole = join((body, where)) if where is not None else body
    for r, node in zip(over, e.ranks or (), strict=True):
        if r not in whole.ranks:
            raise at.fault(f"the rank `{r}` does not occur in what is ranked along it", node)
    if slot in whole.ranks:
        raise at.fault(
            f"what `{name}` ranks depends on the slot `{slot}` that it makes",
            e.slot or e,
            "the slot is a rank of its own: one that only readers of the list have",
        )
    at.reduced |= set(over)
    ranks = (*at.emitter.sorted(whole.ranks - set(over) - at.ambient), *((slot,) if slot is not None else ()))
    statement = Einsum(f"{at.target}_{name}", ranks, name, over, body.expr, mask_of(where, body), at.place(e))
    return load_held(at.emitter.unnamed(statement, body)).at(at.place(e))


def _slot(at: Evaluator, e: ast.Call, over: tuple[str, ...]) -> str | None:
    """The rank of the slots. Raises SpecError where there is none and must be, or the other way round."""
    if e.name.text == "argmax":
        if e.slot is not None:
            raise at.fault(
                "`argmax` gives one coordinate and makes no slots",
                e.slot,
                f"write argmax[{', '.join(over)}](x), or topk for several",
            )
        return None
    if e.slot is None:
        raise at.fault(
            "`topk` needs a rank for the slots of its list",
            e,
            f"write topk[{', '.join(over)} -> n](x), with a line rank n: feature = 16",
        )
    slot = at.rank(e.slot)
    if slot in over or slot in at.ambient:
        raise at.fault(
            f"the slot `{slot}` is a rank that {'is ranked along' if slot in over else 'is ambient'}",
            e.slot,
            "declare one for the slots: rank n: feature = 16",
        )
    return slot


def member(at: Evaluator, e: ast.Member) -> Value:
    """``element in list[prefix]``."""
    element = at.value(e.element)
    if element.dtype != "int":
        found = "a condition" if element.dtype == "bool" else "a float"
        raise at.fault(
            f"`in` looks for an integer, found {found}", e.element, "write floor(x) for the whole number below a float"
        )
    name = e.list if isinstance(e.list, ast.Name) else e.list.name
    binding = at.scope.get(name.text)
    if not isinstance(binding, Held | Source):
        what = f"`{name}` is not known here" if binding is None else f"`{name}` is no list"
        raise at.fault(f"{what}: {LISTS}", name, "an input is declared before the first statement")
    if isinstance(binding, Source):
        at.must_be_given(binding, name)
    if binding.dtype != "int":
        found = "conditions" if binding.dtype == "bool" else "floats"
        raise at.fault(f"`{name}` holds {found}: {LISTS}", name, "an input is declared before the first statement")
    prefix = _prefix(at, e, name, binding)
    if isinstance(binding, Held) and binding.inline is not None:
        binding = _stored(at, name, binding, binding.inline)
    whole = join((element, *prefix))
    plain = whole.plain and isinstance(binding, Source)
    expr = Expr("in", (element.expr, *(p.expr for p in prefix)), binding.name)
    return Value(expr, "bool", whole.ranks, whole.space, plain, whole.lost).at(at.place(e))


def _prefix(at: Evaluator, e: ast.Member, name: ast.Name, binding: Held | Source) -> tuple[Value, ...]:
    """The indices of the list without the last one: as written, or the coordinates at which its name alone is read."""
    shape = binding.ranks if isinstance(binding, Held) else binding.axes
    form = f"it is {name}[{', '.join(shape)}]: write `x in {name}" + (f"[{', '.join(shape[:-1])}]`" if shape[1:] else "`")
    if not shape:
        raise at.fault(f"`{name}` is a single number and no list", name, f"write x == {name}")
    if isinstance(e.list, ast.Read):
        if len(e.list.args) != len(shape) - 1:
            raise at.fault(
                f"`in` takes every index of a list but the last: {len(shape) - 1}, found {len(e.list.args)}", e.list, form
            )
        return tuple(map(at.index, e.list.args))
    if isinstance(binding, Held):
        return tuple(map(coordinate, shape[:-1]))
    known = tuple(x for x in binding.access[:-1] if x is not None)
    if len(known) < len(shape) - 1:
        raise at.fault(f"an axis of `{name}` has no coordinate of its own", name, form)
    return known


def _stored(at: Evaluator, name: ast.Name, binding: Held, inline: Value) -> Held:
    """An integer statement that is filled in where it is read, as a statement all the same: its entries have to stand somewhere."""
    statement = Einsum(name.text, binding.ranks, None, (), inline.expr, mask_of(None, inline), at.place(name))
    return at.emitter.unnamed(statement, inline)
