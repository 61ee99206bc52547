"""`%load_ext einfuse` gives notebooks `%%attn`: a cell that is a spec."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import einfuse
from einfuse.ir import EinfuseError

if TYPE_CHECKING:
    from einfuse.runtime.attention import Attention


def load_ipython_extension(shell: Any) -> None:
    """Called by IPython."""

    def attn(line: str, cell: str) -> Attention | None:
        """%%attn NAME [PARAMETER=VALUE ...]: compiles the cell, and gives the attention that name."""
        name, params = _asked(line)
        try:
            found = einfuse.compile(f"{cell.rstrip()}\n", **params)
        except EinfuseError as error:  # its place, the line and a hint say more than a traceback through the compiler
            print(error, file=sys.stderr)
            return None
        shell.user_ns[name or found.name] = found
        return found

    shell.register_magic_function(attn, "cell", "attn")


def _asked(line: str) -> tuple[str, dict[str, Any]]:
    """The name and the parameters of a line. Raises ValueError where it is neither."""
    from einfuse.cli import assignment

    words = line.split()
    name = words.pop(0) if words and "=" not in words[0] else ""
    if name and not name.isidentifier():
        raise ValueError(f"%%attn NAME [PARAMETER=VALUE ...]: {name!r} is no name")
    return name, dict(map(assignment, words))
