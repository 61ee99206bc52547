"""Processes that begin with torch and einfuse imported: a server that has imported both and called nothing forks them.

Each has what a process has that Python was started for, except what it did to import: memory of its own, an environment of its own,
an exit code. That takes a tenth of the time.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

SERVER = """
import json, os, signal, sys
import hypothesis.stateful, lark, pytest, regex, sympy.codegen.ast, sympy.tensor.tensor, torch
from numpy import *  # as sympy does before it evaluates anything
import einfuse
from einfuse.codegen.cpu import source
from einfuse.dsl import elaborate, syntax
from einfuse.ir.passes import factorisation, tangent
from einfuse.runtime import attention, cache, compile, inside, verify

def served():
    for line in sys.stdin:
        text, environment, files = json.loads(line)
        if not (child := os.fork()):
            for number, file in enumerate(files):
                os.dup2(os.open(file, os.O_RDWR), number)
            os.environ.clear()
            os.environ.update(environment)
            signal.alarm({limit})
            return text
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

assert not cache.folder.cache_info().currsize
if text := served():
    exec(text, {{"__name__": "__main__"}})  # whatever becomes of it, this interpreter ends as any does
"""
LIMIT = 600
"""Seconds that a process may take."""


@functools.cache
def _server() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER.format(limit=LIMIT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    )
    atexit.register(process.communicate)  # it ends where nothing is left to read
    return process


def run(text: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What becomes of a process that executes ``text``: its exit code, or minus the signal that ended it, and what it printed."""
    server = _server()
    assert server.stdin is not None, "it is a pipe"
    assert server.stdout is not None, "it is a pipe"
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        for file in (out, err):
            file.touch()
        server.stdin.write(json.dumps([text, dict(environment), [os.devnull, str(out), str(err)]]) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        assert code != -signal.SIGALRM, f"it took more than {LIMIT} s: {text}"
        return subprocess.CompletedProcess([], code, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))
