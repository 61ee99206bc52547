"""The command lsp: what an editor starts."""

from __future__ import annotations

import argparse

from einfuse.ir import EinfuseError


def lsp(args: argparse.Namespace) -> int:
    """Serves one editor until it says goodbye. Raises EinfuseError where pygls is missing."""
    try:
        from einfuse._editor import server
    except ImportError as error:
        raise EinfuseError(f"the language server needs pygls: pip install 'einfuse[editor]' ({error})") from None
    server.run()
    return 0
