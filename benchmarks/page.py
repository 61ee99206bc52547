"""How long the playground takes: from opening the page to its first diagnostics, Python's start and the first picture.

``python benchmarks/page.py [FOLDER]`` opens a built page (`make playground`) in headless Chromium several times, in one profile: the first
load fills the cache on disk. Every load is a browser of its own, and the medians are of the others. ``--text`` opens a text that the page
has not seen. It needs `make browser`.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
import threading
import zlib
from pathlib import Path
from typing import Any

import harness

from einfuse._cli.playground import PLACES, server

MARKS = """() => Object.fromEntries(
  ['diagnostics', 'python', 'picture'].map((n) => [n, performance.getEntriesByName(n)[0]?.startTime]))"""
TEXT = """attention mine(window: int = 40) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]; in k[b, h, j, d]; in v[b, h, j, e]; in slope[h]
  s = sum[d](q * k) / sqrt(D) + slope * (j - i) where j <= i and i - j < 2 * window
  o = sum[j](sigmoid(s) * v)
  out o
}
"""


def load(profile: str, address: str, text: str | None) -> dict[str, float]:
    """The marks of one load, in ms since the page was asked for."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        options: Any = {"executable_path": shutil.which("chromium"), "args": ["--no-sandbox"]}
        browser = driver.chromium.launch_persistent_context(profile, **options)
        page = browser.new_page()
        page.goto(address + (f"#{_packed(text)}" if text else ""), timeout=120_000)
        page.wait_for_function("performance.getEntriesByName('picture').length", timeout=120_000)
        found: dict[str, float] = page.evaluate(MARKS)
        page.wait_for_timeout(500)  # what is kept of compiled code is written after the page is ready
        browser.close()
    return found


def _packed(text: str) -> str:
    """A text as a link holds it (playground/link.js)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packer.compress(json.dumps({"text": text}).encode()) + packer.flush()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def main() -> None:
    parser = harness.options(__doc__, json=True, loads=7)
    parser.add_argument("folder", type=Path, nargs="?", default=PLACES[-1])
    parser.add_argument("--text", action="store_true")
    args = harness.parsed(parser)
    with server(args.folder, 0) as serving, tempfile.TemporaryDirectory() as profile:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        address = f"http://localhost:{serving.server_address[1]}/"
        loads = [load(profile, address, TEXT if args.text else None) for _ in range(args.loads + 1)]
        serving.shutdown()
    table = harness.Table("seconds to:12", "at first:.2f", "from disk:.2f", "least:.2f", "most:.2f")
    for name in loads[0]:
        first, *rest = (x[name] / 1e3 for x in loads)
        table.row(name, first, harness.spread(rest).median, min(rest), max(rest))
    harness.write(args.json, {"rows": table.rows})


if __name__ == "__main__":
    main()
