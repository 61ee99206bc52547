"""Real processes over gloo, started once: each waits for work, does it together with the others, and sends back what it made."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

Work = Callable[[int, int, Mapping[str, Any]], Any]


@dataclass
class Pool:
    """Processes 0, 1, ... of one group."""

    processes: list[Any]
    ends: list[Connection]

    def start(self, work: Work, **given: Any) -> None:
        for end in self.ends:
            end.send_bytes(pickle.dumps((work, given)))

    def result(self, rank: int, timeout: float = 600) -> Any:
        """What a process made of its work, or its error."""
        if not self.ends[rank].poll(timeout):
            raise TimeoutError(f"process {rank} says nothing")
        return pickle.loads(self.ends[rank].recv_bytes())

    def run(self, work: Work, **given: Any) -> list[Any]:
        """What every process made of ``work(rank, size, given)``; the first error is raised."""
        self.start(work, **given)
        out = [self.result(r) for r in range(len(self.ends))]
        for x in out:
            if isinstance(x, BaseException):
                raise x
        return out

    def close(self) -> None:
        for end, process in zip(self.ends, self.processes, strict=True):
            if process.is_alive():
                end.send_bytes(pickle.dumps(None))
                process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def pool(size: int) -> Pool:
    """Processes that share one import of torch: forked from a server that has done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "torch.distributed.device_mesh", "torch.distributed.fsdp", "einfuse.distributed", "einfuse.runtime.examples"]
    )
    store = os.path.join(tempfile.mkdtemp(), "store")
    ends, processes = [], []
    for rank in range(size):
        mine, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(rank, size, store, theirs), daemon=True)
        process.start()
        ends.append(mine)
        processes.append(process)
    return Pool(processes, ends)


def _serve(rank: int, size: int, store: str, end: Connection) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    files = dist.FileStore(store, size)  # type: ignore[attr-defined]  # torch says not that it exports it
    dist.init_process_group(
        "gloo",
        store=files,
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=60),
    )
    while (asked := pickle.loads(end.recv_bytes())) is not None:
        work, given = asked
        try:
            made = work(rank, size, given)
        except Exception as error:
            made = error
        end.send_bytes(pickle.dumps(made))  # by value: the sender may be gone before it is read
    dist.destroy_process_group()


def rows_of(total: int, counts: Sequence[int]) -> list[torch.Tensor]:
    """So many rows each; what is left over goes to the last."""
    ends = [0]
    for n in counts[:-1]:
        ends.append(min(ends[-1] + n, total))
    ends.append(total)
    return [torch.arange(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]  # noqa: RUF007  # of tensors' numbers
