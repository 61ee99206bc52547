"""The folder of kept kernels and plans: what it holds, whether that is whole, and how to be rid of it."""

from __future__ import annotations

import argparse
from collections import defaultdict

from einfuse import _files as files
from einfuse._cli import screen
from einfuse.ir import EinfuseError
from einfuse.runtime import cache as kept


def cache(args: argparse.Namespace) -> int:
    return {"info": info, "verify": verify, "clear": clear}[args.action](args.json)


def info(json: bool) -> int:
    """Entries and bytes of every kind. 1 where the folder is not used."""
    found, refused, bound = kept.entries(kept.place() / kept.LAYOUT), kept.refusal(), kept.bound()
    kinds: dict[str, list[int]] = defaultdict(list)
    for x in found:
        kinds[x.kind].append(x.size)
    if json:
        table: screen.Json = {kind: {"entries": len(sizes), "bytes": sum(sizes)} for kind, sizes in sorted(kinds.items())}
        total = sum(x.size for x in found)
        where = str(kept.place())
        screen.report(
            {"folder": where, "refused": refused, "entries": len(found), "bytes": total, "most": bound, "kinds": table}
        )
        return 1 if refused else 0
    shown = screen.table("kind", ">entries", ">MiB")
    for kind, sizes in sorted(kinds.items()):
        shown.add_row(kind, str(len(sizes)), mebibytes(sum(sizes)))
    shown.add_row("all", str(len(found)), f"{mebibytes(sum(x.size for x in found))} of {mebibytes(bound)}")
    console = screen.out()
    console.print(files.shown(kept.place()), soft_wrap=True)
    console.print(shown)
    if refused:
        console.print(f"not used: {refused}", soft_wrap=True)
    return 1 if refused else 0


def verify(json: bool) -> int:
    """Reads every entry. 1 where one is damaged: it is made again when it is next needed."""
    whole = [(x, x.intact) for x in kept.entries(kept.place() / kept.LAYOUT) if x.path.suffix != files.PART]
    damaged = [files.shown(x.path) for x, right in whole if right is False]
    checked = sum(right is not None for _, right in whole)
    if json:
        screen.report({"ok": not damaged, "checked": checked, "damaged": list[screen.Json](damaged)})
    else:
        console = screen.out()
        for path in damaged:
            console.print(f"damaged: {path}", soft_wrap=True)
        console.print(f"{checked} entries, {len(damaged)} damaged" + (": they are made again when needed" if damaged else ""))
    return 1 if damaged else 0


def clear(json: bool) -> int:
    """Removes every entry. 1 where one stays."""
    if (refused := kept.refusal()) is not None:
        raise EinfuseError(f"{files.shown(kept.place())} is left alone: {refused}")
    found = kept.entries(kept.place() / kept.LAYOUT)
    gone = [x for x in found if kept.remove(x)]
    left = len(found) - len(gone)
    if json:
        screen.report({"ok": not left, "removed": len(gone), "bytes": sum(x.size for x in gone), "left": left})
    else:
        size = mebibytes(sum(x.size for x in gone))
        screen.out().print(f"removed {len(gone)} entries, {size} MiB" + (f"; {left} cannot be removed" if left else ""))
    return 1 if left else 0


def mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f}"
