"""The command playground: serves the built page to the browser of this machine."""

from __future__ import annotations

import argparse
import contextlib
import webbrowser
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from einfuse.ir import EinfuseError

HERE = Path(__file__).resolve()
PLACES = (HERE.parents[1] / "_page", HERE.parents[3] / "dist" / "playground")
"""Where the page is: in a released package, and where `make playground` puts it in a checkout."""


def playground(args: argparse.Namespace) -> int:
    """Serves until it is interrupted. Raises EinfuseError where there is no built page."""
    with server(built(args.folder), args.port) as serving:
        address = f"http://localhost:{serving.server_address[1]}/"
        print(f"{address} (Ctrl-C ends it)", flush=True)
        if not args.no_open:
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            serving.serve_forever()
    return 0


def built(folder: Path | None) -> Path:
    """The folder of the page: the one named, else that of the package or of this checkout."""
    places = (folder,) if folder else PLACES
    found = next((p for p in places if (p / "index.html").is_file()), None)
    if found is None:
        raise EinfuseError(
            f"there is no page in {places[-1]}: `make playground` builds it in a checkout, --folder names another place"
        )
    return found


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of one folder for this machine alone; port 0 is any free one."""
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(_Files, directory=str(folder)))
    except OSError as error:
        raise EinfuseError(f"cannot serve on port {port} ({error.strerror}); --port names another") from None


class _Files(SimpleHTTPRequestHandler):
    # A system may call scripts and wasm otherwise, and browsers refuse that.
    extensions_map: ClassVar[dict[str, str]] = {  # type: ignore[misc]  # the base declares it for instances
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: a page asks for ten files."""
