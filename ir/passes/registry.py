"""Every pass and transform of the compiler, once: `PIPELINE` in the order in which passes run, `TRANSFORMS` by name.

A *pass* maps a cascade to the next stage of the same cascade. A *transform* makes other cascades of one: its parts, its gradient, another
order of its rows. Both state the properties of `ir.verify` that they need and those that they establish. The command line
(`einfuse opt`), the table in docs/architecture.md and the tests read these two tuples, so a new pass is a file and one entry here.
"""

from __future__ import annotations

from einfuse.ir.errors import EinfuseError
from einfuse.ir.nodes import Flat
from einfuse.ir.passes import (
    batch,
    cache,
    choose,
    chunk_backward,
    differentiate,
    heads_as_rows,
    inverse,
    items,
    lift,
    look_up,
    own_lists,
    pack,
    quantise,
    reassociate,
    resume,
    shard,
    split,
    stages,
    tail,
    tangent,
    through,
    transition,
    walk,
    window,
)
from einfuse.ir.passes.sequence import PIPELINE, Pass, truth


def names(text: str) -> tuple[str, ...]:
    """``q,k`` -> (q, k)"""
    return tuple(text.split(","))


def groups(text: str) -> pack.Groups:
    """``Nq+Nk,Nm``: sizes with the same bounds are joined by ``+``."""
    return tuple(tuple(group.split("+")) for group in text.split(","))


def scales(text: str) -> dict[str, tuple[str, ...]]:
    """``k:token+head,v:``"""
    return {n: tuple(axes.split("+")) if axes else () for n, axes in (pair.split(":") for pair in text.split(","))}


def widths(text: str) -> dict[str, int]:
    """``D:8,E:16``"""
    return {name: int(size) for name, size in (pair.split(":") for pair in text.split(","))}


def _walk(cascade: Flat, rows: int = 16, columns: int = 16, tests: int = 0) -> walk.Walked | None:
    """The lists stand for every condition that all sums share."""
    found = walk.pair(cascade)
    return None if found is None else walk.run(found, found.conditions, rows, columns, tests)


def _through(
    cascade: Flat, table: str, tile: int = 16, rows: int = 16, slots: int = 4, heads: str = ""
) -> through.Parts | inverse.Blocks | own_lists.Own | None:
    """Whatever the sizes are: the last block may be short."""
    found = through.find(cascade, table, {})
    if found is None:
        return None
    if heads and found.blocked == found.columns:
        return own_lists.run(found, heads, slots, True, True) if heads in own_lists.shared(found) else None
    return inverse.run(found, True, True) if found.blocked == found.rows else through.parts(found, tile, rows, slots, True)


# ``flat`` stands where a signature takes any cascade, and refuses others in words of its own
TRANSFORMS: tuple[Pass, ...] = (
    Pass(
        "choose",
        choose.run,
        ("flat",),
        does="what is ranked for each choice of coordinates, and the rest, which reads the lists",
    ),
    Pass("stages", stages.run, does="kernels that run one after the other"),
    Pass("split", split.run, ("flat",), does="partial states over parts of the keys, their merge, and what finishes them"),
    Pass("tail", tail.run, ("flat", "canonical"), does="a kernel's sums, and what it does with them once they are complete"),
    Pass("differentiate", differentiate.run, ("canonical",), options={"wanted": names}, does="the backward of a cascade"),
    Pass(
        "chunk_backward",
        chunk_backward.run,
        options={"wanted": names},
        does="the backward of a scan in blocks",
    ),
    Pass("tangent", tangent.run, options={"along": names}, does="forward mode: outputs and their derivatives"),
    Pass(
        "batch",
        batch.run,
        options={"inputs": names},
        takes="any",
        does="one more ambient rank, along which some inputs have an axis",
    ),
    Pass(
        "reassociate",
        reassociate.run,
        ("flat",),
        options={"widths": widths, "points": truth},
        does="the linear form of weights that factor across queries and keys",
    ),
    Pass("window", window.run, ("flat",), options={"rank": str}, does="some rows of a rank at a time"),
    Pass(
        "walk",
        _walk,
        options={"rows": int, "columns": int, "tests": int},
        does="the order of rows and columns given by lists, for masks over images",
    ),
    Pass(
        "through",
        _through,
        options={"table": str, "tile": int, "rows": int, "slots": int, "heads": str},
        does="rows by the blocks that they list, in place of a table of those: parts and their merge, whole blocks, or "
        "heads with one list as a tile",
    ),
    Pass("look_up", look_up.run, does="products of rows with the entries of a table, which pairs look up"),
    Pass(
        "lift",
        lift.run,
        ("flat",),
        options={"rank": str},
        does="a rank that is held as an ambient one, after what needs all of its points",
    ),
    Pass("heads_as_rows", heads_as_rows.run, ("flat",), does="heads that share keys as the rows of one tile"),
    Pass(
        "cache",
        cache.run,
        ("flat",),
        options={"slots": truth, "keys": str},
        does="keys and values read from the pages of a cache, queries as the last rows",
    ),
    Pass(
        "items",
        items.run,
        ("flat",),
        options={"rows": int, "group": int, "width": int, "keys": str, "shared": bool},
        does="rows of several sequences as tiles that a list names, keys from the pages of a cache",
    ),
    Pass(
        "quantise",
        quantise.run,
        ("flat",),
        options={"inputs": scales, "floats": truth},
        does="inputs as integers or short floats with scales, which leave the sums that they are the same in",
    ),
    Pass("pack", pack.run, ("flat",), options={"groups": groups}, does="sequences of different lengths one after the other"),
    Pass(
        "shard",
        shard.run,
        options={"rank": str, "listed": truth},
        takes="any",
        does="some coordinates of a rank, those that one device holds",
    ),
    Pass("resume", resume.run, does="a scan from given states, with the last ones"),
    Pass("transition", transition.run, does="what a scan does to the states it starts from, for each of them"),
)


def find(name: str) -> Pass:
    """The pass or transform of that name. Raises EinfuseError."""
    for p in (*PIPELINE, *TRANSFORMS):
        if p.name == name:
            return p
    known = ", ".join(p.name for p in (*PIPELINE, *TRANSFORMS))
    raise EinfuseError(f"there is no pass {name!r}; the passes are {known}")


def table() -> str:
    """The pipeline and the transforms as the two tables of docs/architecture.md."""
    lines = ["| pass | does | why there | requires | ensures |", "|---|---|---|---|---|"]
    lines += [f"| `{p.name}` | {p.does} | {p.why} | {', '.join(p.requires)} | {', '.join(p.ensures)} |" for p in PIPELINE]
    lines += ["", "| transform | makes | requires |", "|---|---|---|"]
    lines += [f"| `{_signature(p)}` | {p.does} | {', '.join(p.requires)} |" for p in TRANSFORMS]
    return "\n".join(lines) + "\n"


def _signature(p: Pass) -> str:
    return f"{p.name}{{{' '.join(p.options)}}}" if p.options else p.name
