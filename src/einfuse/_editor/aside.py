"""A second process beside the language server: it fuses, which may take a second, while the first one answers key strokes.

A thread would not do: Python's lock lets one thread run at a time, and algebra keeps it for long.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Aside:
    """Runs functions one after the other in a process of its own, which starts when it is first asked and ends with this one.

    ``turn`` is held while it works. Functions, arguments and results are pickled.
    """

    def __init__(self) -> None:
        self.turn = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``work`` returns or raises there. Raises RuntimeError where the process ended before it answered."""
        with self.turn:
            if self._process is not None and self._process.poll() is not None:
                self.stop()
            there = self._process = self._process or _start()
            assert there.stdin is not None, "a pipe"
            assert there.stdout is not None, "a pipe"
            try:
                there.stdin.write(pickle.dumps((work, args, kwargs)))
                there.stdin.flush()
                found, error = pickle.load(there.stdout)
            except (EOFError, BrokenPipeError):
                code = there.wait()
                self.stop()
                raise RuntimeError(f"the process that fuses ended with {code}") from None
        if error is not None:
            raise error
        result: T = found
        return result

    def stop(self) -> None:
        """Ends the process, whatever it is at."""
        there, self._process = self._process, None
        if there is not None:
            there.kill()
            with contextlib.suppress(BrokenPipeError), there:
                pass  # the pipes are closed


def _start() -> subprocess.Popen[bytes]:
    """A process that imports from where this one does, and nothing (``-P``) from the folder that an editor was opened in."""
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    command = [sys.executable, "-P", "-m", __name__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path})


def serve() -> None:
    """Answers until nobody asks any more. A function that prints, prints to stderr."""
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    while True:
        try:
            work, args, kwargs = pickle.load(questions)
        except EOFError:
            return
        answer: tuple[object, Exception | None]
        try:
            answer = work(*args, **kwargs), None
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = None, error
        with contextlib.suppress(BrokenPipeError):
            answers.write(pickle.dumps(answer))
            answers.flush()


if __name__ == "__main__":
    serve()
