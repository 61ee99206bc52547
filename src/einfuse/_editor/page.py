"""What the playground asks: each question a function from a text, and numbers that were chosen, to plain JSON. It knows nothing of a browser.

Each imports what it needs: the first faults do not wait for what draws and prints.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from einfuse import dsl
from einfuse._editor.document import Document
from einfuse._editor.faults import declared, faults, quick_faults
from einfuse._editor.fixes import fix
from einfuse._editor.names import offset
from einfuse.dsl.params import default_of
from einfuse.ir import Cascade, EinfuseError, Scan, SpecError
from einfuse.ir.passes.kernels import kernels
from einfuse.ir.passes.pipeline import PASSES
from einfuse.ir.text import show, show_expr
from einfuse.runtime import specs

FILE = "page.attn"
"""What messages call the text."""
Answer = dict[str, Any]
Params = Mapping[str, Any]


def answer(request: str) -> str:
    """The answer to one request, ``{"question": NAME, ...}``; ``{"error": ...}`` where the text, or what was asked of it, is refused."""
    asked = json.loads(request)
    name = asked.pop("question")
    try:
        found = QUESTIONS[name](**asked)
    except SpecError as error:
        where = {} if error.loc is None else {"line": error.loc.line, "column": error.loc.column}
        found = {"error": error.message, "hint": error.hint or "", **where}
    except EinfuseError as error:
        found = {"error": str(error), "hint": ""}
    return json.dumps(found, allow_nan=False)


def library() -> Answer:
    """The specs to start from: what each is called, its family, and its text."""
    found = specs.library()
    return {"specs": [{"name": n, "family": p.parent.name, "text": dsl.read_spec(p)} for n, p in found.items()]}


def check(text: str, fuse: bool = False) -> Answer:
    """The faults of a text with their places, and the changes that mend them; with ``fuse`` those too that only fusing finds."""
    found = (faults if fuse else quick_faults)(text, FILE, _search())
    return {"faults": [_fault(e, text) for e in found], "hints": [] if found else _hints(text)}


def _fault(error: SpecError, text: str) -> Answer:
    own = error.loc is not None and error.loc.file == FILE
    start = offset(text, error.loc.line, error.loc.column) if own and error.loc is not None else 0
    stop = min(start + error.loc.length, len(text)) if own and error.loc is not None else 0
    change = fix(error, text) if own else None
    return {
        "start": start,
        "stop": stop,
        "line": error.loc.line if own and error.loc is not None else 1,
        "column": error.loc.column if own and error.loc is not None else 1,
        "message": error.message if own else str(error),
        "hint": error.hint or "",
        "fix": None if change is None else asdict(change),
    }


def _hints(text: str) -> list[Answer]:
    """The ranks of statements that name none, each with the place behind its target."""
    from einfuse._editor.inside import ranks

    found = ranks(Document(text, FILE, _search()))
    return [{"at": offset(text, n.span.line, n.span.column) + n.span.length, "words": n.words} for n in found]


def about(text: str, name: str | None = None) -> Answer:
    """The attentions of a text, and the parameters of one of them with their defaults."""
    module = dsl.parse(text, FILE)
    dsl.signature(module)  # there is an attention
    node = next((a for a in module.attentions if a.name.text == name), module.attentions[-1])
    params = [
        {"name": p.name.text, "type": p.type.text, "default": default_of(p), "members": list(map(str, p.members))}
        for p in node.params
    ]
    return {
        "attentions": [a.name.text for a in module.attentions],
        "name": node.name.text,
        "doc": node.doc or module.doc,
        "params": params,
    }


def stages(text: str, name: str | None = None, params: Params | None = None) -> Answer:
    """The cascade after every pass, as `einfuse ir --after PASS` shows it; of several kernels all."""
    from einfuse.ir.passes import pipeline

    cascade = _cascade(text, name, params)
    found: dict[str, list[str]] = {}

    def observe(after: str, made: Cascade) -> None:
        found.setdefault(after, []).append(show(made).rstrip())

    for n, kernel in enumerate(kernels(cascade)):
        if n == 0:
            for p in PASSES[:2]:
                observe(p, pipeline.run(cascade, after=p))
        pipeline.run(kernel, observe=lambda p, made: None if p in PASSES[:2] else observe(p, made))
    return {"stages": [{"after": p, "text": "\n\n".join(found[p])} for p in PASSES if p in found]}


def fused(text: str, name: str | None = None, params: Params | None = None) -> Answer:
    """How often every kernel goes over its ranks, and how each read of a statistic was resolved, with its proof."""
    from einfuse.runtime import passes

    out = []
    for r in passes.reports(_cascade(text, name, params)):
        decisions = [
            {"statistic": d.statistic, "reader": d.reader, "how": d.how, "with": d.detail, "proof": d.proof}
            for d in r.decisions
        ]
        out.append({"rank": r.rank, "counted": r.counted, "before": r.before, "after": r.after, "decisions": decisions})
    return {"passes": out}


def tiles(
    text: str,
    name: str | None = None,
    params: Params | None = None,
    queries: int = 1024,
    keys: int | None = None,
    tile: int = 64,
) -> Answer:
    """The tiles of the mask: 0 empty, 1 partly live, 2 wholly live; none of an attention that has no mask."""
    from einfuse.runtime.picture import picture

    found = picture(_cascade(text, name, params), queries, (tile, tile), keys)
    if found is None:
        return {"kind": None}
    kind = found.tiles.kind.reshape(-1, *found.tiles.kind.shape[-2:])[0].tolist()
    return {
        "kind": kind,
        "rows": found.rows,
        "columns": found.columns,
        "size": list(found.size),
        "tile": list(found.tile),
        "mask": show_expr(found.mask),
        "live": found.live,
        "certain": found.certain,
    }


def source(text: str, backend: str, name: str | None = None, params: Params | None = None) -> Answer:
    """The forward kernels as a back end prints them; with their launches, too, where a compiler elsewhere can be shown them."""
    from einfuse.runtime import texts

    cascade = _cascade(text, name, params)
    found = {"text": texts.text(cascade, backend)}
    if backend == "triton" and not any(isinstance(k, Scan) for k in kernels(cascade)):
        found["launched"] = texts.launched(cascade)
    return found


def cost(
    text: str,
    name: str | None = None,
    params: Params | None = None,
    queries: int = 4096,
    keys: int | None = None,
    heads: int = 16,
) -> Answer:
    """What every forward kernel costs in 16-bit floats, and the resource that bounds it on known GPUs, at its peak rate."""
    from einfuse.codegen.cost import DEVICES
    from einfuse.runtime import texts
    from einfuse.runtime.sizes import Shape

    shape = Shape(1, heads, queries, keys or queries, (64, 64), 1)
    rows = []
    for found in texts.costs(_cascade(text, name, params), shape):
        if found.cost is None:
            rows.append({"kernel": found.name, "scan": True})
            continue
        bounds = []
        for device in DEVICES.values():
            times = found.cost.times(device)
            worst = max(times, key=lambda r: times[r])
            bounds.append({"device": device.name, "resource": worst, "seconds": times[worst]})
        work = asdict(found.cost.work)
        rows.append({"kernel": found.name, "scan": False, **work, "bytes": found.cost.bytes, "bounds": bounds})
    return {"kernels": rows}


def weights(text: str, name: str | None = None, params: Params | None = None, seed: int = 0) -> Answer:
    """What each of 16 queries takes of each of 16 keys, of drawn arguments: evaluated as written, point by point."""
    from einfuse.runtime import small

    found = small.weights(_cascade(text, name, params), seed=seed)
    return {"of": list(found.of), "values": found.values}


def formatted(text: str) -> Answer:
    """The canonical form, as `einfuse fmt` writes it."""
    return {"text": dsl.format_text(text, FILE)}


def _cascade(text: str, name: str | None, params: Params | None) -> Cascade:
    """An attention without its optional inputs, the last one unless named. Parameters that it has not are left out: the text changes first."""
    module = dsl.parse(text, FILE)
    node = next((a for a in module.attentions if a.name.text == name), module.attentions[-1] if module.attentions else None)
    known = set() if node is None else declared(node)
    given = {n: x for n, x in (params or {}).items() if n in known}
    return dsl.elaborate(module, None if node is None else node.name.text, given, search=_search())


@functools.cache
def _search() -> tuple[Any, ...]:
    """The folders of the library: its specs use definitions that stand beside them."""
    return tuple(sorted({p.parent for p in specs.library().values()}))


QUESTIONS: Mapping[str, Callable[..., Answer]] = {
    "library": library,
    "check": check,
    "about": about,
    "stages": stages,
    "fused": fused,
    "tiles": tiles,
    "source": source,
    "cost": cost,
    "weights": weights,
    "formatted": formatted,
}
