"""Processes that work through tasks: one that hangs or breaks the device's context takes its own task with it and nothing else.

a task: "module:function" and arguments  --a line of JSON-->  a process that has torch already  --a line of JSON-->  what it returned
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

MARK = "result: "  # what else a task prints is no answer
ENDING = 5.0  # seconds for a process that was asked to end


@dataclass(frozen=True, slots=True)
class Task:
    """A call of ``function`` ("module:name") of this folder; arguments and result are JSON. Longer than ``seconds`` and it is a failure."""

    function: str
    arguments: tuple[Any, ...] = ()
    seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a task: what it returned, or why it did not; neither where the deadline came first."""

    task: Task
    value: Any = None
    error: str = ""
    reached: bool = True


def run(tasks: Sequence[Task], workers: int, deadline: float, each: Callable[[Answer], None] = lambda _: None) -> list[Answer]:
    """The answers in the order of the tasks, which are begun in that order; ``each`` hears of every one as it comes."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for n in range(len(tasks)):
        waiting.put(n)
    found: list[Answer] = [Answer(t, reached=False) for t in tasks]
    lock = threading.Lock()

    def work() -> None:
        process: Process | None = None
        while time.monotonic() < deadline:
            try:
                n = waiting.get_nowait()
            except queue.Empty:
                break
            process = process if process is not None and process.alive else Process()
            answer = process.answer(tasks[n], deadline)
            found[n] = answer
            if answer.reached:
                with lock:
                    each(answer)
        if process is not None:
            process.end()

    threads = [threading.Thread(target=work) for _ in range(max(1, min(workers, len(tasks))))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return found


class Process:
    """One process that answers tasks one after the other."""

    def __init__(self) -> None:
        env = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            start_new_session=True,  # what it has started goes with it: a compiler would keep the pipes open
        )
        self._last: list[str] = []  # of its stderr
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def answer(self, task: Task, deadline: float) -> Answer:
        """The answer to a task; the process is dead afterwards where there was none."""
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._kill()

        timer = threading.Timer(max(0.0, min(task.seconds, deadline - time.monotonic())), stop)
        timer.start()
        try:
            print(json.dumps([task.function, task.arguments]), file=self._pipe("stdin"), flush=True)
            for line in self._pipe("stdout"):
                if line.startswith(MARK):
                    return Answer(task, **json.loads(line.removeprefix(MARK)))
        except BrokenPipeError:
            pass
        finally:
            timer.cancel()
        code = self.end()
        if not late.is_set():
            return Answer(task, error="".join(self._last)[-500:].strip() or f"the process ended with code {code}")
        if time.monotonic() >= deadline:
            return Answer(task, reached=False)
        return Answer(task, error=f"no answer in {task.seconds:.0f} s")

    def end(self) -> int:
        """Its exit code, once it has read that there is no more to do."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe("stdin").close()
        try:
            code = self._process.wait(ENDING)
        except subprocess.TimeoutExpired:
            self._kill()
            code = self._process.wait()
        self._kill()
        self._listener.join()
        self._pipe("stdout").close()
        return code

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _listen(self) -> None:
        with self._pipe("stderr") as said:
            for line in said:
                self._last = [*self._last[-20:], line]

    def _pipe(self, name: str) -> IO[str]:
        pipe: IO[str] | None = getattr(self._process, name)
        assert pipe is not None, "it was opened with pipes"
        return pipe


def main() -> None:
    """Answers the tasks on stdin. An error of the device ends the process: nothing after it can be believed."""
    for line in sys.stdin:
        function, arguments = json.loads(line)
        module, name = function.split(":")
        try:
            answer = {"value": getattr(importlib.import_module(module), name)(*arguments)}
        except Exception as error:  # a kernel that does not compile is a result here, whatever the compiler raises
            answer = {"error": f"{type(error).__name__}: {str(error)[-500:]}"}
        print(MARK + json.dumps(answer), flush=True)
        if "error" in answer and _broken():
            return


def _broken() -> bool:
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


if __name__ == "__main__":
    main()
