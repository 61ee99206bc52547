"""How long the front end takes, as a user waits for it: `einfuse check FILE` as a process, every spec of the library elaborated, and a key
stroke in each of them, from the change that an editor sends to `einfuse lsp` until the faults are there.

    python benchmarks/front.py [--repeats 11]

Medians of wall time, and of processor time, which is the same on a quiet machine. The first check of a text proves how its reductions fuse;
later ones read that from disk.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

SPEC = harness.ROOT / "examples" / "alibi_window.attn"
MOST = 50
"""Milliseconds that a key stroke may take."""
ELABORATE = """
import time; start, spent = time.perf_counter(), time.process_time()
from einfuse import dsl
from einfuse.runtime.specs import library
found = library()
for path in found.values():
    dsl.elaborate(dsl.parse(dsl.read_spec(path), path.name), search=(path.parent,))
print(f"{len(found)} specs elaborated in {time.perf_counter() - start:.2f} s ({time.process_time() - spent:.2f} s of processor time)")
"""


def checked(folder: str) -> tuple[float, float]:
    """Wall time and processor time: they are the same on a quiet machine."""
    start, before = time.perf_counter(), os.times()
    command = [sys.executable, "-m", "einfuse", "check", str(SPEC)]
    env = {n: x for n, x in os.environ.items() if n != "PYTHONDONTWRITEBYTECODE"} | {"EINFUSE_CACHE": folder}
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, spent


def shown(times: list[tuple[float, float]]) -> str:
    wall, spent = (statistics.median(x) for x in zip(*times, strict=True))
    return f"{wall:.2f} s ({spent:.2f} s of processor time)"


class Editor:
    """A client of the protocol: what it sends, and the faults that come back."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "einfuse", "lsp", "--stdio"]
        self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.send("initialize", id=1, processId=None, rootUri=None, capabilities={})
        self.until(lambda m: m.get("id") == 1)
        self.send("initialized")

    def send(self, method: str, id: int | None = None, **params: object) -> None:
        body = json.dumps({"jsonrpc": "2.0", "method": method, "params": params} | ({} if id is None else {"id": id})).encode()
        assert self.server.stdin is not None
        self.server.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self.server.stdin.flush()

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Waits for a message."""
        out = self.server.stdout
        assert out is not None
        while True:
            length = 0
            while line := out.readline().strip():
                length = int(line.split(b":")[1]) if line.startswith(b"Content-Length") else length
            if wanted(json.loads(out.read(length))):
                return

    def spent(self) -> float:
        """Seconds of processor time of the server, without the process that fuses (Linux)."""
        return sum(int(x.read_text().split()[0]) for x in Path(f"/proc/{self.server.pid}/task").glob("*/schedstat")) / 1e9

    def key_stroke(self, path: Path) -> tuple[float, float]:
        """Seconds from a change of an open text to its faults, and of the server's processor time: the name that it gives out is misspelt."""
        uri, text = path.as_uri(), path.read_text(encoding="utf-8")
        head, out, tail = text.rpartition("out ")

        def said(m: dict[str, Any]) -> bool:
            return m.get("method") == "textDocument/publishDiagnostics" and bool(m["params"]["uri"] == uri)

        self.send("textDocument/didOpen", textDocument={"uri": uri, "languageId": "attn", "version": 1, "text": text})
        self.until(said)
        start, before = time.perf_counter(), self.spent()
        after = [{"text": f"{head}{out}x{tail}"}]
        self.send("textDocument/didChange", textDocument={"uri": uri, "version": 2}, contentChanges=after)
        self.until(lambda m: said(m) and bool(m["params"]["diagnostics"]))
        taken = time.perf_counter() - start, self.spent() - before
        self.send("textDocument/didClose", textDocument={"uri": uri})
        return taken


def key_strokes() -> str:
    from einfuse.runtime.specs import library

    editor = Editor()
    taken = {name: editor.key_stroke(path) for name, path in library().items()}
    editor.server.kill()
    out = [f"a key stroke in each of {len(taken)} specs"]
    for place, clock in enumerate(("wall", "processor time")):
        ms = {n: 1e3 * t[place] for n, t in taken.items()}
        worst = max(ms, key=lambda n: ms[n])
        above = sum(t > MOST for t in ms.values())
        out.append(
            f"  {clock}: {statistics.median(ms.values()):.0f} ms in the median, {ms[worst]:.0f} at most ({worst}), above {MOST}: {above}"
        )
    return "\n".join(out)


def main() -> None:
    repeats = harness.parsed(harness.options(__doc__, repeats=11)).repeats
    with tempfile.TemporaryDirectory() as folder:
        checked(folder)  # byte code, the tables of the grammar
        again = [checked(folder) for _ in range(repeats)]
    first = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            first.append(checked(folder))
    print(f"einfuse check {SPEC.name}: {shown(again)}; the first time {shown(first)}")
    subprocess.run([sys.executable, "-c", ELABORATE], check=True)
    print(key_strokes())


if __name__ == "__main__":
    main()
